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
)
from mlinfra_prefect.keeper.desk import card_of
from mlinfra_prefect.lifecycle import waiting
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
    assert waiting.next_round(lease(900), NONE_LEFT, after(300)) == after(330)


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


def test_neither_past_its_deadline_nor_without_end_nor_unasked() -> None:
    """The wait is part of its life, and each round leaves stacks behind."""
    assert waiting.next_round(lease(deadline=after(1.2)), NONE_LEFT, after(1)) is None
    attempts = tuple(sample_attempt(number) for number in range(1, waiting.MOST_ATTEMPTS + 1))
    assert waiting.next_round(lease(attempts=attempts), NONE_LEFT, after(1)) is None
    assert waiting.next_round(lease(0), NONE_LEFT, after(0)) is None


def test_a_wait_that_leaves_no_time_for_a_training_is_refused() -> None:
    """Naming the field, before anything is written."""
    with pytest.raises(InvalidInput, match=r"wait_minutes: must be less than max_minutes, which is 60"):
        parsed(TrainingRequest, {"wait_minutes": 60})
    with pytest.raises(InvalidInput, match="wait_minutes"):
        TrainingRequest(max_minutes=90, wait_minutes=80).merged({"max_minutes": 70})
    assert TrainingRequest(max_minutes=90, wait_minutes=89).wait_minutes == 89


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
