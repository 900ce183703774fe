"""Asking again: what a retry of the same run gets."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from mlinfra_prefect.errors import LeaseHeld
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import Asked, Key, ask
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, Keeper, LeaseRecord, State
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.request import TrainingRequest

KEY = Key("run", "training", "task#1")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(Home(tmp_path / "home"))


def asks(context: Context, pid: int, *, dead: bool, **request: object) -> Asked:
    """Ask as the process with this pid; `dead` says whether the former client can be proven dead."""
    process = ProcessIdentity(host="here", pid=pid, start_time="1")
    return ask(
        context,
        TrainingRequest().merged(request),
        key=KEY,
        owner=Owner(user="ada", host="here"),
        client=Client(kind="process", process=process),
        is_dead=lambda _: dead,
    )


def test_a_retry_with_the_same_request_adopts(context: Context) -> None:
    """The live lease is what is needed: it gets the new client."""
    first = asks(context, 1, dead=True)
    again = asks(context, 2, dead=True)
    assert (again.adopted, again.record.id) == (True, first.record.id)
    assert again.record.client.process
    assert again.record.client.process.pid == 2


def test_a_retry_with_another_request_opens_the_next_round(context: Context) -> None:
    """A node that was asked for otherwise is given back, never handed over."""
    first = asks(context, 1, dead=True, max_minutes=5)
    again = asks(context, 2, dead=True, max_minutes=6)
    assert (again.adopted, again.record.round, again.record.request.max_minutes) == (False, 2, 6)
    left = context.lease(first.record.id)
    assert (left.state, left.reason) == (State.RELEASING, "a retry of its run asks for something else")


def test_a_live_clients_lease_is_never_taken_nor_given_back(context: Context) -> None:
    """Whatever the second runner asks for, the first one's lease stays as it is."""
    first = asks(context, 1, dead=False, max_minutes=5)
    for minutes in (5, 6):
        with pytest.raises(LeaseHeld, match="alive or cannot be proven dead"):
            asks(context, 2, dead=False, max_minutes=minutes)
    assert context.lease(first.record.id) == first.record


def test_who_adopts_the_lease_of_a_lost_host_says_that_it_lives(context: Context) -> None:
    """Nobody may take the record over for a while yet, so nobody renews it; another runner must not adopt it again."""
    first = asks(context, 1, dead=False)
    lost = Keeper(place="process", process=ProcessIdentity(host="there", boot="another boot", pid=7, start_time="1"))

    def silent(now: KeptRecord) -> KeptRecord:
        return now.revised(keeper=lost, renewed_until=context.ledger.now() - timedelta(seconds=1))

    revise(context.ledger, first.record.id, silent, actor="test", reason="its host is gone")
    again = asks(context, 2, dead=False)
    assert (again.adopted, again.record.id) == (True, first.record.id)
    assert again.record.renewed_until > context.ledger.now()
    assert again.record.client.heartbeat_at is not None
    revise(context.ledger, first.record.id, silent, actor="test", reason="still nobody renews")
    with pytest.raises(LeaseHeld, match="alive or cannot be proven dead"):
        asks(context, 3, dead=False)


def test_the_record_names_the_clients_interpreter(context: Context) -> None:
    """What is preinstalled on this host is what the client sees, whoever started the keeper."""
    assert asks(context, 1, dead=True).record.python == sys.executable


def alone(context: Context, run: str, **request: object) -> LeaseRecord:
    """Ask in another run for a lease that must be the only one of its name."""
    return ask(
        context, TrainingRequest(exclusive="nightly").merged(request), key=Key(run, "training", "task#1"),
        owner=Owner(user="ada", host="here"), client=Client(kind="none"),
    ).record  # fmt: skip


def released(context: Context, lease: str) -> None:
    release_pass(context, begin_release(context, lease, reason="done"))


def test_of_an_exclusive_name_one_lease_lives_at_a_time(context: Context) -> None:
    """Two runs: the second is refused with the first one's id, and nothing is written, until the first is released."""
    first = alone(context, "one")
    with pytest.raises(LeaseHeld, match=f"exclusive: 'nightly' is held in 'dev' by lease {first.id}") as refused:
        alone(context, "two")
    assert f"mlinfra-prefect show {first.id}" in refused.value.remedy
    assert [seen.record for seen in context.ledger.records()] == [first]
    assert alone(context, "two", exclusive="hourly").live
    begin_release(context, first.id, reason="done")
    with pytest.raises(LeaseHeld, match=first.id):
        alone(context, "three")
    released(context, first.id)
    assert alone(context, "three").live


def test_of_many_who_want_an_exclusive_name_at_once_one_gets_it(context: Context) -> None:
    def tries(number: int) -> bool:
        mine = Context(context.home)
        try:
            return alone(mine, f"run-{number}").live
        except LeaseHeld:
            return False
        finally:
            mine.ledger.close()

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(tries, range(8))) == 1
    assert len(context.ledger.records()) == 1
