"""Rules of provisioning and release as plain Python: every step can be the last one before a crash."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from mlinfra_prefect.errors import NotYetDestroyed
from mlinfra_prefect.keeper.desk import card_of, drain_at
from mlinfra_prefect.keeper.operate import step
from mlinfra_prefect.keeper.watch import BUSY
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle import provisioning, releasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release, mark_attempt
from mlinfra_prefect.lifecycle.provisioning import provision
from mlinfra_prefect.lifecycle.receipts import write_receipt
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.lifecycle.resuming import other_code
from mlinfra_prefect.local.platform import LocalPlatform
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import AttemptState, Keeper, LeaseRecord, State
from mlinfra_prefect.terraform import Stack

Ask = Callable[..., LeaseRecord]


def gone(context: Context, record: KeptRecord) -> KeptRecord:
    """Release a record to its end."""
    begin_release(context, record.id, reason="the test is over")
    return release_pass(context, context.record(record.id))


class Crash(BaseException):
    """SIGKILL, as far as this process can play it: nothing catches it."""


def crash(*_: object, **__: object) -> None:
    raise Crash


def test_a_lease_and_its_receipt(context: Context, asked: Ask) -> None:
    """Up, ready in the same write, released with two clean looks; each operation recorded with its deadline first."""
    told: list[str] = []
    context.tell = lambda record: told.append(str(record.attempt and record.attempt.operation))
    record = provision(context, asked())
    assert (record.state, record.attempts[0].state) == (State.READY, AttemptState.UP)
    over = gone(context, record)
    assert over.receipt is not None
    assert over.receipt.clean
    assert (over.receipt.reason, over.receipt.created) == ("the test is over", ("1/terraform_data.node",))
    assert over.receipt.destroyed == over.receipt.created
    assert over.receipt.idle_seconds == pytest.approx(over.receipt.up_seconds)
    assert told == ["plan", "destroy"]
    assert [line.reason for line in context.ledger.history(record.id)] == [
        "asked for", "attempt 1: local in " + record.attempts[0].offer.region, "applying local-node",
        "applied and found up", "the test is over", "attempt 1: stopping the meter, then destroying it",
        "attempt 1 is destroyed", "released: the test is over",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "attempts"),
    [
        ((provisioning, "_apply"), 1),
        ((Stack, "plan"), 1),
        ((Stack, "apply"), 2),
        ((provisioning, "_up"), 1),
    ],
    ids=["before the plan", "in the plan", "before the apply", "after the apply"],
)
def test_provisioning_goes_on_after_a_crash(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch, where: tuple[object, str], attempts: int
) -> None:
    """What was only planned is planned again; what was applied is kept if it is whole, and else given back first."""
    record = asked()
    with monkeypatch.context() as patch:
        patch.setattr(*where, crash)
        with pytest.raises(Crash):
            provision(context, record)
    ready = provision(context, context.record(record.id))
    assert ready.state is State.READY
    assert len(ready.attempts) == attempts
    assert [each.state for each in ready.attempts] == [AttemptState.RELEASED] * (attempts - 1) + [AttemptState.UP]
    assert gone(context, ready).state is State.RELEASED


def test_where_the_rest_goes_later_an_interrupted_apply_is_the_next_attempt_too(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody was left to say why the attempt failed; that must not keep the next one from beginning."""
    monkeypatch.setattr(LocalPlatform, "destroys_later", True)
    record = asked()
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "apply", crash)
        with pytest.raises(Crash):
            provision(context, record)
    ready = provision(context, context.record(record.id))
    assert [each.state for each in ready.attempts] == [AttemptState.RELEASING, AttemptState.UP]
    assert ready.attempts[0].outcome.startswith("KeeperUnavailable: ")
    assert gone(context, ready).state is State.RELEASED


@pytest.mark.parametrize("step", ["_drain", "_stop_meter", "_destroy", "_sweep", "write_receipt"])
def test_release_goes_on_after_a_crash(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Idempotent and resumable at each step; the receipt is whole in the end."""
    record = provision(context, asked())
    begin_release(context, record.id, reason="done")
    with monkeypatch.context() as patch:
        patch.setattr(releasing, step, crash)
        with pytest.raises(Crash):
            release_pass(context, context.record(record.id))
    assert context.record(record.id).state is State.RELEASING
    over = release_pass(context, context.record(record.id))
    assert over.receipt is not None
    assert (over.receipt.destroyed, over.receipt.clean) == (("1/terraform_data.node",), True)


def test_released_is_never_said_with_anything_left(context: Context, asked: Ask) -> None:
    """Neither without two clean looks, nor with an attempt that is not gone."""
    record = provision(context, asked())
    begin_release(context, record.id, reason="done")
    going = context.record(record.id)
    with pytest.raises(NotYetDestroyed):
        write_receipt(context, going, [])
    assert context.record(record.id).state is State.RELEASING
    release_pass(context, going)


def test_a_pass_that_fails_counts_waits_longer_and_becomes_stuck(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three passes, each later than the one before; the first reason stays the receipt's."""
    record = provision(context, asked())
    begin_release(context, record.id, reason="done")
    waits = []
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "destroy", lambda *_, **__: (_ for _ in ()).throw(NotYetDestroyed("it does not go")))
        for number, state in enumerate((State.RELEASING, State.RELEASING, State.STUCK, State.STUCK), 1):
            failed = release_pass(context, context.record(record.id))
            assert (failed.state, failed.failures) == (state, number)
            assert failed.retry_at is not None
            waits.append((failed.retry_at - context.ledger.now()).total_seconds())
            card = card_of(failed, context.home)
            assert card is not None
            assert card.due == failed.retry_at.timestamp()
    assert waits == sorted(waits)
    over = release_pass(context, context.record(record.id))
    assert over.receipt is not None
    assert over.receipt.reason == "done"


def test_one_attempt_that_does_not_go_does_not_stop_the_others(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R9: the second attempt's node is gone and destroyed though the first one's stack fails."""
    record = asked()
    with monkeypatch.context() as patch:
        patch.setattr(Stack, "apply", crash)
        with pytest.raises(Crash):
            provision(context, record)
    record = provision(context, context.record(record.id))
    assert len(record.attempts) == 2
    begin_release(context, record.id, reason="done")
    destroy = releasing._destroy

    def fails_first(here: Context, kept: KeptRecord, number: int) -> KeptRecord:
        if number == 2 and not fails:
            fails.append(number)
            raise NotYetDestroyed("not this one")
        return destroy(here, kept, number)

    fails: list[int] = []
    monkeypatch.setattr(releasing, "_destroy", fails_first)
    failed = release_pass(context, context.record(record.id))
    assert failed.state is State.RELEASING
    assert not context.platform("local").node(failed.attempts[1]).lives()
    assert release_pass(context, failed).state is State.RELEASED


def test_a_drain_is_bounded_by_the_deadline_and_skipped_past_it(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hard deadline contains the drain; one that was interrupted gets no second helping of time."""
    record = provision(context, asked(grace_seconds=3600))
    begin_release(context, record.id, reason="done")
    attempt = record.attempts[0]
    going = mark_attempt(
        context, context.record(record.id), 1, "drained before", operation="drain",
        operation_deadline=context.ledger.now() - timedelta(seconds=1),
    )  # fmt: skip
    monkeypatch.setattr("mlinfra_prefect.local.node.LocalNode.jobs", lambda _: ["one-that-does-not-end"])
    began = time.monotonic()
    assert releasing._drain(context, going) == going  # type: ignore[arg-type]
    assert not (Path(attempt.node_dir) / "stop.json").exists()
    until = context.ledger.now() + timedelta(seconds=0.5)
    drained = releasing._drain(context, going.revised(deadline=until).revised(attempts=(attempt,)))  # type: ignore[arg-type]
    assert drained.attempts[0].operation == "drain"
    assert (Path(attempt.node_dir) / "stop.json").exists()
    assert time.monotonic() - began < 5
    release_pass(context, going)


def test_checkpoint_now_comes_early_enough_for_the_grace(context: Context, asked: Ask) -> None:
    """Five minutes before the deadline, earlier for a longer grace, never before five sixths of its life."""
    leads = {
        (minutes, grace): record.deadline.timestamp() - drain_at(record)
        for minutes, grace in ((600, 30.0), (600, 1800.0), (6, 30.0), (1, 30.0))
        for record in [asked(f"{minutes}-{grace}", max_minutes=minutes, grace_seconds=grace)]
    }
    assert leads == pytest.approx({(600, 30.0): 300, (600, 1800.0): 1860, (6, 30.0): 60, (1, 30.0): 10}, abs=0.01)


def test_a_record_released_while_it_was_planned_is_not_applied(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's small write wins over whatever is being prepared."""
    record = asked()
    plan = Stack.plan

    def release_meanwhile(self: Stack, **how: float):
        begin_release(context, record.id, reason="changed my mind")
        return plan(self, **how)

    monkeypatch.setattr(Stack, "plan", release_meanwhile)
    monkeypatch.setattr(Stack, "apply", crash)
    after = provision(context, record)
    assert (after.state, after.attempts[0].applied_at) == (State.RELEASING, None)
    monkeypatch.setattr(LocalPlatform, "check_login", crash)  # and where nothing exists, no login is needed to say so
    assert release_pass(context, after).state is State.RELEASED


def test_an_agent_whose_heartbeat_is_old_gets_a_second_look(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that slept or whose clock was set shows old heartbeats for a moment; that is not death."""
    record = provision(context, asked())
    platform = context.platform("local")
    real = time.time
    monkeypatch.setattr("mlinfra_prefect.local.node.time.time", lambda: real() + 3600)
    assert platform.is_up(record, record.attempts[0])
    monkeypatch.undo()
    gone(context, record)
    assert not platform.node(record.attempts[0]).lives()


def test_a_lost_working_directory_is_no_destroyed_resource(context: Context, asked: Ask) -> None:
    """What carries the mark decides, and the receipt claims nothing that Terraform did not do."""
    record = provision(context, asked())
    shutil.rmtree(record.attempts[0].directory)
    over = gone(context, record)
    assert over.receipt is not None
    assert (over.receipt.created, over.receipt.destroyed) == (("1/terraform_data.node",), ())


def test_a_card_says_everything_that_an_operation_needs(context: Context, asked: Ask) -> None:
    """The locks of every attempt that is left, the recorded deadline, and the attempt that comes next."""
    record = asked()
    card = card_of(record, context.home)
    assert card is not None
    assert (card.lock_files, card.operation_deadline, card.env["MLINFRA_ATTEMPT"]) == ((), None, "1")
    ready = provision(context, record)
    until = context.ledger.now() + timedelta(seconds=5)
    noted = mark_attempt(context, ready, 1, "noted", operation="drain", operation_deadline=until)
    card = card_of(noted, context.home)
    assert card is not None
    assert card.lock_files == (str(Path(ready.attempts[0].directory) / "lock"),)
    assert card.operation_deadline == until.timestamp()
    lost = releasing.release_attempt(context, noted, 1)
    card = card_of(lost, context.home)
    assert card is not None
    assert card.env["MLINFRA_ATTEMPT"] == "2"
    revise(context.ledger, record.id, lambda r: r.revised(state=State.RELEASING), actor="t", reason="over")
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


@pytest.mark.parametrize(
    ("resumed_from", "makers", "other"),
    [
        (None, [(0, "a")], False),
        ("key/1", [(0, "a")], True),
        ("key/1", [(0, "mine")], False),
        ("key/3", [(0, "a"), (2, "mine")], False),
        ("key/2", [(0, "a"), (2, "mine")], True),
        ("key:with/slash/2", [(0, "a"), (2, "mine"), (2, "b")], True),
        ("key/3", [(0, "a"), (2, "mine"), (3, "b")], False),
        ("key/1", [], False),
    ],
)
def test_whose_code_made_a_checkpoint(resumed_from: str | None, makers: list[tuple[int, str]], other: bool) -> None:
    """A checkpoint is of the last code that was handed over before it, also when that code left none of its own."""
    listed = [{"after": after, "code_hash": code} for after, code in makers]
    assert other_code(resumed_from, listed, "mine") is other


def test_an_operation_waits_for_a_terraform_and_for_another_operation(context: Context, asked: Ask) -> None:
    """The lock that a Terraform inherits, and the operation's own: while one is held, nothing is touched."""
    record = provision(context, asked())
    begin_release(context, record.id, reason="done")
    keeper = Keeper(place="process", process=identify())
    history = context.ledger.history(record.id)
    place = Path(record.attempts[0].directory) / "lock"
    for path in (place, context.home.record_dir(record.id) / "operation.lock"):
        with path.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            other = subprocess.run([sys.executable, "-c", STEP, record.id], check=False, capture_output=True, text=True)
            assert other.returncode == BUSY, other.stderr
            assert context.ledger.history(record.id) == history
            assert context.platform("local").node(record.attempts[0]).lives()
    assert step(context, record.id, keeper) == 0
    assert context.record(record.id).state is State.RELEASED


STEP = """
import os, sys
from mlinfra_prefect.keeper.operate import step
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.platform import LocalPlatform
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Keeper
os._exit(step(Context(), sys.argv[1], Keeper(place="process", process=identify())))
"""
