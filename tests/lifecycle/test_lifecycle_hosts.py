"""Rules R5 and R6: which host answers for a record, and until when a keeper that cannot be seen may be at work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from mlinfra_prefect.agent.identity import boot
from mlinfra_prefect.keeper import operate
from mlinfra_prefect.keeper.operate import step
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle import whose_host
from mlinfra_prefect.lifecycle.clients import last_heard, why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.whose_host import busy_until, on_another_host
from mlinfra_prefect.local import process
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Attempt, AttemptState, Client, Keeper, LeaseRecord, State
from mlinfra_prefect.model.ledger_address import parse_address
from mlinfra_prefect.model.process import ProcessIdentity
from mlinfra_prefect.testing.records import MOMENT, sample_attempt, sample_lease

RENEWED = MOMENT + timedelta(minutes=2)
LATER = MOMENT + timedelta(minutes=9)


def keeper(where: str) -> Keeper:
    return Keeper(place="process", process=ProcessIdentity(host="there", boot=where, pid=7, start_time="1"))


def attempt(number: int, **changes: object) -> Attempt:
    changed = {"state": AttemptState.APPLYING, "operation": "apply", "operation_deadline": LATER, **changes}
    return sample_attempt(number, **changed)


@pytest.mark.parametrize(
    ("where", "attempts", "until"),
    [
        ("another boot", (attempt(1),), LATER),
        ("another boot", (attempt(1, operation_deadline=MOMENT),), RENEWED),
        ("another boot", (attempt(1, operation_deadline=None),), RENEWED),
        ("another boot", (attempt(1, state=AttemptState.RELEASED),), RENEWED),
        ("another boot", (attempt(1, operation_deadline=None), attempt(2)), LATER),
        (f"{boot().partition('/')[0]}/77", (attempt(1),), RENEWED),
    ],
    ids=["in flight", "overdue", "nothing in flight", "released", "the second", "a container of this kernel"],
)
def test_an_operation_of_another_host_is_respected_until_its_deadline(where, attempts, until) -> None:
    """Nobody can look there. On this kernel the lock that a running Terraform holds tells, so the renewal is enough."""
    assert busy_until(sample_lease(keeper=keeper(where), attempts=attempts)) == until


def test_without_a_keeper_nothing_is_in_flight() -> None:
    assert busy_until(sample_lease(keeper=None, attempts=(attempt(1),))) == RENEWED


def test_a_host_that_was_renamed_still_keeps_what_it_keeps(
    context: Context, asked: Callable[..., LeaseRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher goes on, and each of its operations says the new name: it is no other keeper for that."""
    record = asked()
    mine = identify()
    monkeypatch.setattr(operate, "_take_operation_lock", lambda *_: 0)  # an operation is a process, and holds it
    assert step(context, record.id, Keeper(place="process", process=mine)) == 0
    for place in (whose_host.socket, process.socket):
        monkeypatch.setattr(place, "gethostname", lambda: "renamed")
    renamed = Keeper(place="process", process=mine.revised(host="renamed"))
    begin_release(context, record.id, reason="done")
    assert step(context, record.id, renamed) == 0
    over = context.record(record.id)
    assert (over.state, over.generation) == (State.RELEASED, record.generation)


def test_a_container_beside_this_one_is_another_host(
    context: Context, asked: Callable[..., LeaseRecord], tmp_path: Path
) -> None:
    """It has this kernel and this name, and a home of its own: its processes cannot be looked for here."""
    assert context.ledger  # its own; only where it lies is another matter
    vars(context)["address"] = parse_address("s3://somewhere/else", field="ledger")
    kernel, name = boot().partition("/")[0], socket.gethostname()
    beside = Keeper(place="process", process=ProcessIdentity(host=name, boot=f"{kernel}/77", pid=7, start_time="1"))
    there = sample_lease(keeper=beside, attempts=(attempt(1, directory=str(tmp_path / "gone" / "1" / "terraform")),))
    assert on_another_host(context, there) == name
    ours = sample_lease(keeper=beside, attempts=(attempt(1, directory=str(tmp_path / "1" / "terraform")),))
    assert on_another_host(context, ours) is None
    renamed = Keeper(place="process", process=identify().revised(host="an-older-name"))
    assert on_another_host(context, sample_lease(keeper=renamed)) is None
    # One PID namespace for containers with homes of their own: whose directory it is decides.
    assert on_another_host(context, sample_lease(keeper=renamed, attempts=there.attempts)) == "an-older-name"
    assert on_another_host(context, sample_lease(keeper=renamed, attempts=ours.attempts)) is None


ELSEWHERE = ProcessIdentity(host="there", boot="another boot", pid=7, start_time="1")


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, True),
        ({"renewed_until": MOMENT + timedelta(minutes=4)}, False),
        ({"client": Client(kind="process", process=identify())}, False),
        ({"client": Client(kind="none")}, False),
        ({"client": Client(kind="process", process=ELSEWHERE, heartbeat_at=RENEWED)}, False),
    ],
    ids=["nobody renews", "it is renewed", "it is here", "nobody by design", "it beats"],
)
def test_the_client_of_a_lost_host_is_lost_with_it(changes: dict[str, object], lost: bool) -> None:
    """It cannot be seen, and beats nowhere: that nobody has renewed its lease for the TTL is its silence (R4)."""
    client = Client(kind="process", process=ELSEWHERE)
    record = sample_lease(**{"keeper": keeper("another boot"), "client": client, **changes})
    moment = RENEWED + timedelta(seconds=1)
    assert why_gone(record, moment) is None  # what whoever looks finds, and so nobody would ever end it
    taken = record.revised(client=last_heard(record, moment))
    assert (why_gone(taken, moment) is not None) is lost


def test_a_lease_of_a_lost_host_is_released_by_who_takes_it_over(
    context: Context, asked: Callable[..., LeaseRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not renewed for nobody until its hard deadline: it is taken over once nobody renews it, and then given up."""
    monkeypatch.setattr(operate, "_take_operation_lock", lambda *_: 0)
    record = asked(client=Client(kind="process", process=ELSEWHERE))
    theirs, mine = keeper("another boot"), Keeper(place="process", process=identify())

    def kept(until: timedelta) -> Callable[[KeptRecord], KeptRecord]:
        return lambda now: now.revised(keeper=theirs, renewed_until=context.ledger.now() + until)

    revise(context.ledger, record.id, kept(timedelta(minutes=1)), actor="test", reason="kept there")
    assert step(context, record.id, mine) == operate.FAILED
    assert context.record(record.id).keeper == theirs
    revise(context.ledger, record.id, kept(-timedelta(seconds=1)), actor="test", reason="silent since")
    assert step(context, record.id, mine) == 0
    over = context.record(record.id)
    assert (over.state, over.generation) == (State.RELEASED, record.generation + 1)
    assert "its client was lost: no heartbeat for 120 seconds" in over.reason
