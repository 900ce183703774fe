"""Rule: what the leases of an environment can come to cost together is reserved before anything is rented."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.errors import BudgetExceeded, InvalidInput
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle import budget, provisioning
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.testing.records import sample_lease

Ask = Callable[..., LeaseRecord]
Priced = Callable[..., None]


@pytest.fixture
def caps(context: Context, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes the caps of environment dev."""

    def write(text: str) -> None:
        path = Path(context.home.root) / "mlinfra.toml"
        path.write_text(f"[environments.dev]\ncaps = {{ {text} }}\n")
        monkeypatch.setenv("MLINFRA_CONFIG", str(path))
        context.__dict__.pop("config", None)

    return write


@pytest.fixture
def priced(context: Context, monkeypatch: pytest.MonkeyPatch) -> Priced:
    """Gives this machine a price, and a second, dearer offer where one is named."""

    def price(usd: float, *more: float) -> None:
        offers = tuple(
            Offer(type=f"t{number}", region="local", market="on-demand", usd_per_hour=each, gpus=0)
            for number, each in enumerate((usd, *more))
        )
        monkeypatch.setattr(context.platform("local"), "offers", lambda _: offers)

    return price


def kept(context: Context) -> list[LeaseRecord]:
    return [seen.record for seen in context.ledger.records() if isinstance(seen.record, LeaseRecord)]


def released(context: Context, record: LeaseRecord) -> None:
    release_pass(context, begin_release(context, record.id, reason="done"))


# --- the worst case ---------------------------------------------------------------------------------------------------


def worst(usd_per_hour: float, seconds: float, spent: float = 0.0, **request: Any) -> float:
    return budget.worst_case_usd(TrainingRequest(**request), usd_per_hour, seconds, spent)


def test_the_worst_case_is_the_price_until_the_hard_deadline() -> None:
    """What was spent counts too; a time that is over costs nothing more."""
    assert worst(2.0, 1800) == 1.0
    assert worst(2.0, 1800, spent=0.25) == 1.25
    assert worst(2.0, -5.0, spent=0.25) == 0.25
    assert worst(0.0, 1800) == 0.0


def test_no_lease_reserves_more_than_its_own_budget() -> None:
    """It cannot cost more: its deadline is fixed from that money."""
    assert worst(2.0, 3600, max_usd=1.5) == 1.5
    assert worst(2.0, 3600, spent=1.0, max_usd=1.5) == 1.5
    assert worst(2.0, 360, max_usd=1.5) == 0.2


# --- who was first ----------------------------------------------------------------------------------------------------


def test_of_two_that_do_not_both_fit_the_one_that_was_asked_for_first_goes_on() -> None:
    """By moment, and by id in the same moment: both clients come to the same answer."""
    first, second = sample_lease("a"), sample_lease("b")
    later = second.revised(created_at=second.created_at + timedelta(seconds=1))
    assert budget.before(first, [first, later]) == []
    assert budget.before(later, [first, later]) == [first]
    low, high = sorted((first, second), key=lambda each: each.id)
    assert budget.before(low, [low, high]) == []
    assert budget.before(high, [low, high]) == [low]


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_lease_reserves_what_it_can_come_to_cost(context: Context, asked: Ask, priced: Priced) -> None:
    """From the first write on."""
    priced(6.0)
    assert asked(max_minutes=30).reserved_usd == pytest.approx(3.0)
    assert asked("two", max_minutes=180, max_usd=7.0).reserved_usd == pytest.approx(7.0)
    assert len(kept(context)) == 2


def test_the_deadline_is_fixed_from_the_money(asked: Ask, priced: Priced) -> None:
    """Nine dollars at six an hour are ninety minutes, though three hours were asked for (R5)."""
    priced(6.0)
    record = asked(max_minutes=180, max_usd=9.0)
    assert record.deadline - record.created_at == timedelta(minutes=90)


def test_what_does_not_fit_beside_the_others_is_refused_before_it_is_written(
    context: Context, asked: Ask, priced: Priced, caps: Callable[[str], None]
) -> None:
    """The sentence says what is reserved, what the cap is, and what this one would need."""
    caps("max_reserved_usd = 5.0")
    priced(6.0)
    first = asked(max_minutes=30)
    with pytest.raises(BudgetExceeded, match=r"'dev' has reserved 3\.00 USD.*cap is 5\.00.*cost 3\.00.*wait until one"):
        asked("two", max_minutes=30)
    assert kept(context) == [first]
    assert asked("three", max_minutes=20).reserved_usd == pytest.approx(2.0)


def test_a_released_lease_gives_its_money_back(
    context: Context, asked: Ask, priced: Priced, caps: Callable[[str], None]
) -> None:
    """And not before: one that is going may still cost."""
    caps("max_reserved_usd = 5.0")
    priced(6.0)
    first = asked(max_minutes=30)
    begin_release(context, first.id, reason="done")
    with pytest.raises(BudgetExceeded):
        asked("two", max_minutes=30)
    released(context, first)
    assert asked("two", max_minutes=30).state is State.REQUESTED


def test_another_environment_has_money_of_its_own(
    context: Context, asked: Ask, priced: Priced, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caps are an environment's, and so is what counts against them."""
    path = context.home.root / "mlinfra.toml"
    path.write_text("[environments.dev]\ncaps = { max_reserved_usd = 5.0 }\n[environments.prod]\n")
    monkeypatch.setenv("MLINFRA_CONFIG", str(path))
    priced(6.0)
    asked(max_minutes=60, environment="prod")
    assert asked("two", max_minutes=50).reserved_usd == pytest.approx(5.0)


def test_what_costs_nothing_is_never_refused_for_money(
    context: Context, asked: Ask, caps: Callable[[str], None]
) -> None:
    """This machine is free, whatever a cloud's leases have reserved."""
    caps("max_reserved_usd = 0.01")
    assert asked(max_minutes=60).reserved_usd == 0.0
    assert len(kept(context)) == 1


# --- before anything is rented ----------------------------------------------------------------------------------------


def test_a_client_that_was_faster_in_writing_does_not_break_the_cap(
    context: Context, asked: Ask, priced: Priced, caps: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked before either had written. Of the two records the second one ends before its first attempt."""
    caps("max_reserved_usd = 5.0")
    priced(6.0)
    monkeypatch.setattr("mlinfra_prefect.lifecycle.leasing.refuse_beyond_cap", lambda *_: None)
    first, second = asked(max_minutes=30), asked("two", max_minutes=30)
    record = provisioning.provision(context, second)
    assert (record.state, record.error, record.attempts) == (State.RELEASING, "BudgetExceeded", ())
    assert "has reserved 3.00 USD" in record.reason
    budget.refuse_beyond_cap(context, first)  # and the first one goes on
    released(context, record)  # type: ignore[arg-type]


def test_an_attempt_reserves_for_the_dearest_of_its_rung(context: Context, asked: Ask, priced: Priced) -> None:
    """Until it is known what it has become; the deadline is fixed for that price before it is launched."""
    priced(6.0, 8.0)
    record = asked(max_minutes=180, max_usd=8.0)
    assert record.deadline - record.created_at == timedelta(minutes=80)
    seen: list[LeaseRecord] = []

    def stop_there(*_: Any, **__: Any) -> None:
        seen.append(context.record(record.id))  # type: ignore[arg-type]
        revise(context.ledger, record.id, lambda now: now.revised(state=State.RELEASING), actor="t", reason="t")

    context.tell = stop_there
    provisioning.provision(context, record)
    attempt = seen[0].attempt
    assert attempt is not None
    assert (attempt.offer.usd_per_hour, len(attempt.candidates)) == (8.0, 2)
    assert (seen[0].deadline - record.created_at).total_seconds() == pytest.approx(3600, abs=60)
    assert seen[0].deadline < record.deadline
    assert seen[0].reserved_usd == pytest.approx(8.0, abs=0.01)
    released(context, record)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"max_usd": 0.05}, r"max_usd: 0\.05 USD buys 30 seconds at 6\.00"),
        ({"max_usd": 5.99}, r"max_usd: 5\.99 USD buys 59 minutes of t0.*raise max_usd to 6\.00"),
        ({"max_usd": 1.0}, r"max_usd: 1\.00 USD buys 10 minutes of t0.*Ask for max_minutes=10"),
        ({"max_hourly_usd": 5.0}, r"max_hourly_usd: the offer costs 6\.00 USD per hour, above 5\.00"),
    ],
)
def test_money_that_buys_nothing_is_refused_before_anything_is_written(
    context: Context, asked: Ask, priced: Priced, request_: dict[str, Any], sentence: str
) -> None:
    """Nothing is written down, and nothing is rented."""
    priced(6.0)
    with pytest.raises(BudgetExceeded, match=sentence):
        asked(max_minutes=60, **request_)
    assert kept(context) == []


def test_a_dearer_rung_than_the_price_cap_is_never_tried(context: Context, priced: Priced) -> None:
    """The cheap one may be had, the other is no offer of this request."""
    from mlinfra_prefect.lifecycle.planning import admitted, affordable_rungs

    priced(6.0, 60.0)
    request = admitted(context, TrainingRequest(max_hourly_usd=10.0))
    assert [[each.usd_per_hour for each in rung] for rung in affordable_rungs(context, request)] == [[6.0]]


@pytest.mark.parametrize("value", ["0", "-1.0", "2e6", '"much"'])
def test_a_cap_that_is_no_sum_of_money_is_wrong_input(
    context: Context, caps: Callable[[str], None], value: str
) -> None:
    """The field is named."""
    caps(f"max_reserved_usd = {value}")
    with pytest.raises(InvalidInput, match="max_reserved_usd"):
        _ = context.config
