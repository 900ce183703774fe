"""Rule: where nothing is to be had, who may wait begins the ladder again later, and costs nothing until then."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from mlinfra_prefect.errors import (
    CapacityUnavailable,
    InvalidInput,
    MlinfraError,
    NodeLost,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
)
from mlinfra_prefect.keeper.desk import card_of
from mlinfra_prefect.lifecycle import provisioning, waiting
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.provisioning import provision
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.terraform import Stack
from mlinfra_prefect.testing.records import MOMENT, sample_attempt, sample_lease

Ask = Callable[..., LeaseRecord]
NONE_LEFT = CapacityUnavailable("no machine is left")


def after(minutes: float) -> datetime:
    return MOMENT + timedelta(minutes=minutes)


def lease(wait_minutes: int = 60, **changes: Any) -> LeaseRecord:
    request = TrainingRequest(max_minutes=1000, wait_minutes=wait_minutes)
    return sample_lease(**{"request": request, "created_at": MOMENT, "deadline": after(1000), **changes})


# --- when ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "pause"), [(0, 0.5), (0.5, 0.5), (2, 1), (20, 10), (45, 15), (59, 1), (59.5, 0.5), (59.6, None), (90, None)]
)
def test_the_pauses_grow_and_the_last_round_is_at_the_end_of_the_wait(now: float, pause: float | None) -> None:
    """Half of what it has waited, 30 s at least; and none of the wait is given away."""
    at = waiting.next_round(lease(), NONE_LEFT, after(now))
    assert at == (None if pause is None else after(now + pause))


def test_a_long_wait_asks_each_half_hour() -> None:
    """At the most."""
    assert waiting.next_round(lease(700), NONE_LEFT, after(300)) == after(330)


@pytest.mark.parametrize(
    ("problem", "waits"),
    [
        (NONE_LEFT, True), (QuotaExceeded("it is used up"), True),
        (PermanentError("no permission"), False), (NodeLost("it ended"), False),
    ],
)  # fmt: skip
def test_only_what_may_come_back_is_waited_for(problem: MlinfraError, waits: bool) -> None:
    """A permission does not come by waiting."""
    assert (waiting.next_round(lease(), problem, after(1)) is not None) is waits


def test_neither_without_end_nor_unasked_nor_for_nobody() -> None:
    """Each round leaves stacks behind; and where the client is gone, its keep minutes are the end."""
    assert waiting.next_round(lease(keep_until=after(5)), NONE_LEFT, after(4.4)) == after(5)
    assert waiting.next_round(lease(keep_until=after(5)), NONE_LEFT, after(4.6)) is None
    attempts = tuple(sample_attempt(number) for number in range(1, waiting.MOST_ATTEMPTS + 1))
    assert waiting.next_round(lease(attempts=attempts), NONE_LEFT, after(1)) is None
    assert waiting.next_round(lease(0), NONE_LEFT, after(0)) is None


def test_a_wait_that_leaves_no_time_for_a_training_is_refused() -> None:
    """Naming the field, before anything is written."""
    with pytest.raises(InvalidInput, match=r"wait_minutes: may be 45 with max_minutes=60: the wait is part"):
        parsed(TrainingRequest, {"wait_minutes": 46})
    with pytest.raises(InvalidInput, match="wait_minutes"):
        TrainingRequest(max_minutes=100, wait_minutes=75).merged({"max_minutes": 90})
    assert TrainingRequest(max_minutes=100, wait_minutes=75).wait_minutes == 75


def test_a_round_that_could_not_even_ask_is_no_end_of_the_wait() -> None:
    """A throttle after hours; but the first round has to be able to ask, and what failed after a try is told."""
    waits = lease(retry_at=after(1), waited_after=1, attempts=(sample_attempt(1),))
    assert waiting.next_round(waits, TemporaryError("throttled"), after(2)) == after(3)
    assert waiting.next_round(lease(), TemporaryError("throttled"), after(2)) is None
    tried = waits.revised(attempts=(sample_attempt(1), sample_attempt(2)))
    assert waiting.next_round(tried, TemporaryError("throttled"), after(2)) is None


# --- what ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> list[MlinfraError]:
    """Each apply meets the next of these; when none is left it works."""
    apply, problems = Stack.apply, []  # type: ignore[var-annotated]

    def met(self: Stack, **how: Any) -> Any:
        if problems:
            raise problems.pop(0)
        return apply(self, **how)

    monkeypatch.setattr(Stack, "apply", met)
    monkeypatch.setattr(waiting, "SHORTEST_PAUSE_SECONDS", 1.0)
    return problems


def test_a_lease_that_waits_tries_nothing_and_then_all_of_it_again(
    context: Context, asked: Ask, scarce: list[MlinfraError]
) -> None:
    """No attempt before its moment, the same rungs after it, and its deadline stays."""
    scarce += [NONE_LEFT, QuotaExceeded("it is used up")]
    record = asked(wait_minutes=2)
    for rounds in (1, 2):
        waits = provision(context, context.record(record.id))
        assert (waits.state, len(waits.attempts), waits.deadline) == (State.PROVISIONING, rounds, record.deadline)
        assert waits.retry_at is not None
        assert waits.reason.startswith("it waits for a machine; the next look is at ")
        card = card_of(waits, context.home)
        assert card is not None
        assert card.due == waits.retry_at.timestamp()
        assert provision(context, waits) == waits
        time.sleep(max(0.0, (waits.retry_at - context.ledger.now()).total_seconds()))
    ready = provision(context, context.record(record.id))
    assert (ready.state, ready.reason, ready.retry_at) == (State.READY, "", None)
    assert [each.outcome.partition(":")[0] for each in ready.attempts] == ["CapacityUnavailable", "QuotaExceeded", ""]
    begin_release(context, record.id, reason="done")
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


def test_what_waits_is_released_at_once(context: Context, asked: Ask, scarce: list[MlinfraError]) -> None:
    """Its next moment is that of a look for a machine, not of its release."""
    scarce += [NONE_LEFT]
    record = provision(context, asked(wait_minutes=2))
    begin_release(context, record.id, reason="changed my mind")
    going = context.record(record.id)
    assert going.retry_at is None
    assert release_pass(context, going).state is State.RELEASED


def test_after_its_wait_it_is_given_up_with_the_reason(
    context: Context, asked: Ask, scarce: list[MlinfraError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without one."""
    scarce += [NONE_LEFT]
    monkeypatch.setattr(waiting, "SHORTEST_PAUSE_SECONDS", 90.0)
    after_all = provision(context, asked(wait_minutes=1))
    assert (after_all.state, after_all.error) == (State.RELEASING, "CapacityUnavailable")
    assert release_pass(context, after_all).state is State.RELEASED


def test_a_release_that_begins_while_a_round_ends_is_not_written_over(
    context: Context, asked: Ask, scarce: list[MlinfraError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for the next offer takes seconds, in which a client may say that it wants nothing any more."""
    scarce += [NONE_LEFT]
    record = asked(wait_minutes=2)
    rung = provisioning._next_rung

    def asks(here: Context, found: LeaseRecord) -> Any:
        if found.attempts:
            begin_release(here, found.id, reason="changed my mind")
        return rung(here, found)

    monkeypatch.setattr(provisioning, "_next_rung", asks)
    going = provision(context, record)
    assert (going.state, going.reason, going.retry_at) == (State.RELEASING, "changed my mind", None)
    assert release_pass(context, going).state is State.RELEASED


def test_what_was_kept_for_a_client_that_is_gone_is_given_up_in_time(
    context: Context, asked: Ask, scarce: list[MlinfraError]
) -> None:
    """Its keep minutes count while it waits, too: nothing is rented for nobody."""
    scarce += [NONE_LEFT]
    record = provision(context, asked(wait_minutes=2))
    kept = record.revised(keep_until=context.ledger.now(), retry_at=context.ledger.now() + timedelta(minutes=1))
    card = card_of(kept, context.home)
    assert card is not None
    assert card.due == pytest.approx(time.time(), abs=2)
    begin_release(context, record.id, reason="done")
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


def test_a_dear_rung_that_had_nothing_does_not_shorten_the_life(
    context: Context, asked: Ask, scarce: list[MlinfraError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it would have cost was not spent."""
    scarce += [NONE_LEFT]
    record = asked(wait_minutes=2)
    soon = record.created_at + timedelta(minutes=1)
    rung = provisioning._next_rung
    monkeypatch.setattr(provisioning, "_next_rung", lambda *given: (rung(*given)[0], soon))
    waits = provision(context, record)
    assert waits.retry_at is not None
    assert waits.deadline == record.created_at + timedelta(minutes=5)
    begin_release(context, record.id, reason="done")
    assert release_pass(context, context.record(record.id)).state is State.RELEASED
