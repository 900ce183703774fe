"""Rule: what appears after its attempt was told to end is looked for some times, ended once, and reckoned once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from mlinfra_prefect.cli import entries
from mlinfra_prefect.errors import NotYetDestroyed
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.lifecycle import late
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.platform import LocalPlatform
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord, State
from mlinfra_prefect.model.stack import Late, PartlyEnded
from mlinfra_prefect.testing.records import MOMENT, path_to, sample_attempt, sample_lease, sample_offer

LOOKS = (30.0, 60.0, 120.0)
RATE = 3.6
"""USD an hour: a tenth of a cent for a second."""


def after(seconds: float) -> Any:
    return MOMENT + timedelta(seconds=seconds)


def stopped(number: int = 1, **changes: Any) -> Attempt:
    return sample_attempt(
        number, state=AttemptState.RELEASING, applied_at=after(-20), stopped_at=MOMENT,
        offer=sample_offer(usd_per_hour=RATE), outcome="TerraformFailed: it was killed.", **changes,
    )  # fmt: skip


def lease(*attempts: Attempt, state: State = State.READY) -> LeaseRecord:
    return sample_lease(platform="aws", attempts=attempts, state=state)


LIVE = sample_attempt(2, state=AttemptState.UP, applied_at=MOMENT, up_at=MOMENT)


@pytest.mark.parametrize(
    ("looked", "now", "is_due"),
    [
        (None, 29, False), (None, 30, True), (None, 500, True), (30, 31, False), (30, 59, False), (31, 60, True),
        (61, 119, False), (61, 120, True), (120, 10_000, False), (119, 10_000, True),
    ],
)  # fmt: skip
def test_a_look_is_due_at_its_moment_and_once(looked: float | None, now: float, is_due: bool) -> None:
    """One look makes up for those that were missed, and after the last one there is none."""
    attempt = stopped(looked_at=None if looked is None else after(looked))
    assert bool(late.due(lease(attempt, LIVE), after(now), LOOKS)) is is_due


def test_only_what_was_given_up_by_a_lease_that_goes_on_is_looked_for() -> None:
    """Neither the live attempt, nor one that rented nothing, nor any of a lease that is being released."""
    nothing = sample_attempt(3, state=AttemptState.RELEASING)
    record = lease(stopped(), LIVE, nothing)
    assert [each.number for each in late.due(record, after(1000), LOOKS)] == [1]
    assert late.due(record.revised(state=State.RELEASING), after(1000), LOOKS) == ()


def test_on_this_host_nothing_is_late() -> None:
    """No look is ever due, so nothing is asked."""
    assert LocalPlatform.late_looks == ()
    assert late.due(lease(stopped(), LIVE), after(1000), LocalPlatform.late_looks) == ()


class Cloud:
    """Says what appeared, or that it cannot."""

    def __init__(self, *found: Late, blind: bool = False) -> None:
        self.found, self.blind, self.asked = found, blind, []  # type: ignore[var-annotated]

    def end_late(self, _: Any, attempts: Any) -> tuple[Late, ...]:
        self.asked.append([each.number for each in attempts])
        if self.blind or not self.found:
            raise PartlyEnded("nobody can look everywhere", found=self.found)
        return self.found


@pytest.fixture
def ledger(tmp_path: Any) -> Iterator[SqliteLedger]:
    made = SqliteLedger(tmp_path / "ledger.sqlite")
    made.now = lambda: after(100)  # type: ignore[method-assign]
    yield made
    made.close()


def written(ledger: SqliteLedger, *attempts: Attempt) -> LeaseRecord:
    record = sample_lease(platform="aws", ledger_id=ledger.ledger_id)
    seen = ledger.create(record, actor="test", reason="written by a test")
    planned = tuple(sample_attempt(each.number, offer=each.offer) for each in attempts)
    for step in path_to(State.READY):
        seen = ledger.replace(seen, seen.record.revised(state=step, attempts=planned), actor="test", reason="on")
    applying = tuple(each.revised(state=AttemptState.APPLYING) for each in planned)
    seen = ledger.replace(seen, seen.record.revised(attempts=applying), actor="test", reason="on")
    seen = ledger.replace(seen, seen.record.revised(attempts=attempts), actor="test", reason="on")
    assert isinstance(seen.record, LeaseRecord)
    return seen.record


def story(ledger: SqliteLedger, cloud: Cloud) -> Context:
    return SimpleNamespace(ledger=ledger, actor="test", platform=lambda _: cloud)  # type: ignore[return-value]


def test_what_a_late_machine_cost_is_its_attempt_s(ledger: SqliteLedger) -> None:
    """From its launch, or from when the attempt was reckoned with, to its end; and once, whoever looks as well."""
    record = written(ledger, stopped(), LIVE)
    before = record.attempts[0].cost_usd(after(100))
    found = Cloud(Late(1, "i-1", after(40)), Late(1, "i-2", after(-5)))
    for _ in range(2):
        now = late.end_late(story(ledger, found), record, [record.attempts[0]])
    first, live = now.attempts
    assert first.looked_at == after(100)
    assert first.nodes == ("i-1", "i-2")
    assert first.cost_usd(after(100)) - before == pytest.approx(0.06 + 0.1)
    assert live == LIVE
    assert "appeared late, and ended: i-1 of attempt 1, i-2 of attempt 1" in ledger.history(record.id)[-1].reason
    listed = entries._cost({"attempts": [first.model_dump(mode="json")]})
    assert listed == pytest.approx(first.cost_usd(after(100)), abs=1e-6)


def test_a_look_that_failed_was_none(ledger: SqliteLedger) -> None:
    """What could not be looked for is due again."""
    record = written(ledger, stopped(), LIVE)
    with pytest.raises(NotYetDestroyed):
        late.end_late(story(ledger, Cloud()), record, [record.attempts[0]])
    seen = ledger.read(record.id)
    assert seen is not None
    assert late.due(seen.record, after(100), LOOKS)


def test_what_was_ended_is_reckoned_also_where_not_all_could_be_looked_for(ledger: SqliteLedger) -> None:
    """Its machine is going when the next look comes, and would be nobody's then."""
    record = written(ledger, stopped(), LIVE)
    with pytest.raises(NotYetDestroyed):
        late.end_late(story(ledger, Cloud(Late(1, "i-1", after(40)), blind=True)), record, [record.attempts[0]])
    seen = ledger.read(record.id)
    assert seen is not None
    assert seen.record.attempts[0].late_usd == pytest.approx(0.06)
    assert late.due(seen.record, after(100), LOOKS)


def test_where_nothing_was_given_up_nobody_is_asked(ledger: SqliteLedger) -> None:
    """The way to ready of a lease whose first attempt works costs no call and no write."""
    record, cloud = written(ledger, LIVE.revised(number=1)), Cloud()
    assert late.end_late(story(ledger, cloud), record, late.given_up(record)) is record
    assert cloud.asked == []
