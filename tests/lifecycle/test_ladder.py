"""Rule: which rung a lease tries next, and until when its money lasts for that; both from the record alone."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from mlinfra_prefect.errors import BudgetExceeded, CapacityUnavailable, QuotaExceeded, TerraformFailed
from mlinfra_prefect.lifecycle import ladder, provisioning
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.offer import Offer, rungs
from mlinfra_prefect.testing.records import MOMENT, sample_attempt, sample_lease, sample_offer

NO_CAPACITY = "CapacityUnavailable: AWS has no machine to give."
NO_QUOTA = "QuotaExceeded: the quota of this account is used up."
BAD_MACHINE = "NodeLost: the machine i-0a1b is unfit."


def offer(type_: str, price: float = 1.0, *, region: str = "eu-central-1", **more: Any) -> Offer:
    return sample_offer(type=type_, region=region, usd_per_hour=price, **more)


LADDER = (
    (offer("g6.xlarge", 0.8), offer("g6.2xlarge", 1.0)),
    (offer("g6.8xlarge", 2.4),),
    (offer("g6.xlarge", 0.9, region="us-east-1"),),
)


def attempt(number: int, rung: tuple[Offer, ...], outcome: str = "", **more: Any) -> Attempt:
    dearest = max(rung, key=lambda each: each.usd_per_hour)
    return sample_attempt(
        number, offer=dearest, candidates=rung if len(rung) > 1 else (), outcome=outcome, state=AttemptState.RELEASING,
        **more,
    )  # fmt: skip


def lease(*attempts: Attempt, **request: Any) -> LeaseRecord:
    record = sample_lease()
    return record.revised(attempts=attempts, request=record.request.merged(request))


# --- the rungs --------------------------------------------------------------------------------------------------------


def test_a_rung_is_one_region_one_market_and_prices_that_are_near() -> None:
    """What is much dearer comes after, on a rung of its own: the money is reckoned with a rung's dearest."""
    offers = (offer("a", 1.0), offer("b", 1.5), offer("c", 1.51), offer("d", 1.0, region="us-east-1"), offer("e", 2.2))
    assert [[each.type for each in rung] for rung in rungs(offers)] == [["a", "b"], ["c", "e"], ["d"]]


def test_markets_are_never_mixed() -> None:
    """A fleet buys in one market."""
    found = rungs((offer("a"), offer("b", market="spot"), offer("c")))
    assert [[each.type for each in rung] for rung in found] == [["a", "c"], ["b"]]


def test_what_is_skipped_is_on_no_rung() -> None:
    """A quota of zero is known before anything is tried."""
    assert rungs((offer("a", skipped="quota 0"), offer("b"), offer("c", 1.2, skipped="no zone"))) == ((offer("b"),),)
    assert rungs((offer("a", skipped="quota 0"),)) == ()


# --- what is next -----------------------------------------------------------------------------------------------------


def test_the_first_rung_is_the_first_that_was_not_used_up() -> None:
    """No capacity and no quota hold for the lease's other tries of that rung."""
    first, second, third = LADDER
    assert ladder.next_rung(lease(), LADDER) == first
    assert ladder.next_rung(lease(attempt(1, first, NO_CAPACITY)), LADDER) == second
    assert ladder.next_rung(lease(attempt(1, first, NO_CAPACITY), attempt(2, second, NO_QUOTA)), LADDER) == third


def test_a_bad_machine_is_tried_once_more_and_not_for_ever() -> None:
    """An accident says nothing about the rung, two of them do."""
    first, second, _ = LADDER
    once = lease(attempt(1, first, BAD_MACHINE))
    assert ladder.next_rung(once, LADDER) == first
    assert ladder.next_rung(once.revised(attempts=(*once.attempts, attempt(2, first, BAD_MACHINE))), LADDER) == second


def test_an_interrupted_attempt_is_no_reason_to_leave_its_rung() -> None:
    """A keeper that was killed says nothing of the rung either."""
    assert ladder.next_rung(lease(attempt(1, LADDER[0])), LADDER) == LADDER[0]


def test_a_rung_is_known_again_though_its_prices_moved() -> None:
    """Spot prices move between two looks; the rung that had no capacity is still the same one."""
    first, second, _ = LADDER
    moved = (tuple(each.revised(usd_per_hour=each.usd_per_hour * 1.2) for each in first), second)
    assert ladder.next_rung(lease(attempt(1, first, NO_CAPACITY)), moved) == second


@pytest.mark.parametrize(
    ("last", "error"),
    [(NO_CAPACITY, CapacityUnavailable), (NO_QUOTA, QuotaExceeded), (BAD_MACHINE, CapacityUnavailable)],
)
def test_at_the_end_of_the_ladder_the_last_answer_decides(last: str, error: type[Exception]) -> None:
    """No quota is another decision than no capacity: one waits for a colleague, the other one for AWS."""
    attempts = [attempt(number, rung, NO_CAPACITY) for number, rung in enumerate(LADDER[:2], 1)]
    attempts += [attempt(3, LADDER[2], last), attempt(4, LADDER[2], last)]
    with pytest.raises(error, match=r"None of 3 rung\(s\)") as raised:
        ladder.next_rung(lease(*attempts), LADDER)
    assert "Try again later" in str(raised.value)


def test_what_was_up_begins_the_count_anew() -> None:
    """A lease that was up for a day may be repaired by the rungs that had nothing before."""
    first = LADDER[0]
    record = lease(attempt(1, first, NO_CAPACITY), attempt(2, LADDER[1], up_at=MOMENT))
    assert ladder.tried(record) == ()
    assert ladder.next_rung(record, LADDER) == first


# --- when the next one may begin --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "outcome", "later", "past"),
    [
        (AttemptState.RELEASED, "", False, True),
        (AttemptState.RELEASED, "", True, True),
        (AttemptState.RELEASING, NO_CAPACITY, True, True),
        (AttemptState.RELEASING, NO_CAPACITY, False, False),
        (AttemptState.RELEASING, "", True, False),
        (AttemptState.APPLYING, NO_CAPACITY, True, False),
        (AttemptState.PLANNED, "", True, False),
    ],
)
def test_the_next_attempt_waits_for_the_meter_and_not_for_the_destroy(
    state: AttemptState, outcome: str, later: bool, past: bool
) -> None:
    """Where the rest may go at release; elsewhere all of it goes first."""
    platform: Any = SimpleNamespace(destroys_later=later)
    assert ladder.is_past(platform, attempt(1, LADDER[0], outcome).revised(state=state)) is past


def test_an_attempt_whose_meter_nobody_stopped_is_not_past() -> None:
    """Its state says *releasing* before anything is told to end: an operation that is killed there has told nothing."""
    platform: Any = SimpleNamespace(destroys_later=True)
    going = attempt(1, LADDER[0], BAD_MACHINE, applied_at=MOMENT)
    assert not ladder.is_past(platform, going)
    assert ladder.is_past(platform, going.revised(stopped_at=MOMENT))


# --- the money --------------------------------------------------------------------------------------------------------


def test_without_a_budget_the_deadline_stays() -> None:
    """Nor does a price of zero shorten it: local machines cost nothing."""
    assert ladder.deadline(lease(), 5.0, MOMENT) is None
    assert ladder.deadline(lease(max_usd=1.0), 0.0, MOMENT) is None


def test_a_budget_that_lasts_longer_than_the_lease_changes_nothing() -> None:
    """A deadline is only ever brought nearer (R5)."""
    assert ladder.deadline(lease(max_usd=10.0), 1.0, MOMENT) is None


def test_the_deadline_is_when_the_money_is_gone() -> None:
    """Half a dollar at one dollar an hour is half an hour, from now on."""
    now = MOMENT + timedelta(minutes=10)
    assert ladder.deadline(lease(max_usd=0.5), 1.0, now) == now + timedelta(minutes=30)


def test_what_former_attempts_cost_is_gone() -> None:
    """A machine that ran for a quarter of an hour and was unfit has used a quarter of the money; no capacity none."""
    one = LADDER[1]
    bad = attempt(
        1, one, BAD_MACHINE, nodes=("i-0a",), applied_at=MOMENT, launched_at=MOMENT,
        stopped_at=MOMENT + timedelta(minutes=15),
    )  # fmt: skip
    none = attempt(2, one, NO_CAPACITY, applied_at=MOMENT, stopped_at=MOMENT + timedelta(minutes=15))
    now = MOMENT + timedelta(minutes=16)
    found = ladder.deadline(lease(bad, none, max_usd=1.2), 2.4, now)
    assert found == now + timedelta(hours=(1.2 - 0.6) / 2.4)


def test_money_for_less_than_a_minute_buys_nothing() -> None:
    """It would be a boot, and its end: the sentence says what is left and what it would buy."""
    with pytest.raises(BudgetExceeded, match=r"max_usd: 0\.01 USD is left of 0\.01, and buys 36 seconds at 1\.00"):
        ladder.deadline(lease(max_usd=0.01), 1.0, MOMENT)


def test_a_quota_that_is_used_up_is_so_for_dearer_types_of_its_family_too() -> None:
    """One attempt each would cost seconds and end the same; another region has a quota of its own."""
    assert ladder.next_rung(lease(attempt(1, LADDER[0], NO_QUOTA)), LADDER) == LADDER[2]
    other = (*LADDER[:1], (offer("p5.48xlarge", 60.0),))
    assert ladder.next_rung(lease(attempt(1, LADDER[0], NO_QUOTA)), other) == other[1]


# --- for people -------------------------------------------------------------------------------------------------------


def test_an_attempt_is_described_by_what_it_tried() -> None:
    """All types of a rung, each once, with region and market."""
    assert ladder.described(attempt(1, LADDER[0])) == "g6.xlarge, g6.2xlarge in eu-central-1 (on-demand)"
    assert ladder.described(attempt(1, LADDER[1])) == "g6.8xlarge in eu-central-1 (on-demand)"


def test_the_attempts_table_says_what_each_became_and_cost() -> None:
    """What was tried, what it became or why not, and the money until now, whoever shows it."""
    failed = attempt(1, LADDER[0], NO_CAPACITY, applied_at=MOMENT)
    up = attempt(2, LADDER[1]).revised(
        offer=LADDER[1][0].revised(zones=("eu-central-1b",)), nodes=("i-0a",), applied_at=MOMENT, launched_at=MOMENT,
        up_at=MOMENT + timedelta(seconds=30),
    )  # fmt: skip
    first, second = ladder.table(lease(failed, up), MOMENT + timedelta(minutes=15))
    assert (first.number, first.became, first.outcome, first.cost_usd) == (1, "", NO_CAPACITY, 0.0)
    assert (second.became, second.cost_usd) == ("g6.8xlarge in eu-central-1b (i-0a)", pytest.approx(0.6))
    assert str(first).startswith("attempt 1, g6.xlarge, g6.2xlarge in eu-central-1 (on-demand): CapacityUnavailable")
    assert str(second).endswith("became g6.8xlarge in eu-central-1b (i-0a), 0.6000 USD")


def test_why_nothing_more_is_tried_fits_into_a_reason() -> None:
    """A dozen attempts with a dozen pools each: the last ones in a word each, and the remedy is never cut off."""
    long = f"CapacityUnavailable: AWS has no machine to give: {', '.join(['g6.xlarge in eu-central-1a'] * 12)}."
    record = lease(*(attempt(number, LADDER[number % 3], long) for number in range(1, 12)))
    told = str(provisioning._no_more(record, CapacityUnavailable("None could be taken.", "Try again later.")))
    assert told.startswith(
        "None could be taken. 8 before; attempt 9, g6.xlarge, g6.2xlarge in eu-central-1 (on-demand): "
    )
    assert told.endswith("attempt 11, g6.xlarge in us-east-1 (on-demand): CapacityUnavailable. Try again later.")
    assert as_line(told) == told
    other = BudgetExceeded("It costs too much.", "Ask for less.")
    assert provisioning._no_more(record, other) is other


def test_a_ladder_that_capacity_did_not_end_is_told_by_what_did() -> None:
    """AWS throttled every launch: neither another region nor another accelerator helps, and nobody says so."""
    spent = CapacityUnavailable("None of 2 rung(s) could be taken.", "Try again later, or allow more regions.")
    problem = TerraformFailed("CreateFleet: RequestLimitExceeded.", "See the log.")
    throttled = lease(*(attempt(number, LADDER[0], f"TerraformFailed: {problem}") for number in (1, 2)))
    told = provisioning._no_more(throttled, spent, problem)
    assert type(told) is TerraformFailed
    last = "The last attempt: CreateFleet: RequestLimitExceeded. See the log."
    assert str(told) == f"None of 2 rung(s) could be taken. {last}"
    once = lease(attempt(1, LADDER[0], NO_CAPACITY), attempt(2, LADDER[1], f"TerraformFailed: {problem}"))
    assert type(provisioning._no_more(once, spent, problem)) is CapacityUnavailable
