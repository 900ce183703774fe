"""Caps belong to the environment: they fill what a request leaves open and a request can only lower them."""

from __future__ import annotations

from typing import Any

import pytest

from mlinfra_prefect.errors import BudgetExceeded, InvalidInput
from mlinfra_prefect.model.environment import Caps, Environment, longest_life_seconds
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import MAX_HOURLY_USD, MAX_MINUTES, MAX_USD, TrainingRequest


def environment(**caps: Any) -> Environment:
    return Environment(name="prod", caps=Caps(**caps))


def asked(**fields: Any) -> TrainingRequest:
    return TrainingRequest.model_validate(fields)


@pytest.mark.parametrize(
    ("caps", "fields", "filled"),
    [
        ({}, {}, {"max_minutes": 60, "max_usd": None, "max_hourly_usd": None}),
        ({}, {"max_minutes": 500}, {"max_minutes": 500}),
        ({"max_minutes": 480}, {}, {"max_minutes": 60}),
        ({"max_minutes": 30}, {}, {"max_minutes": 30}),
        ({"max_minutes": 480}, {"max_minutes": 480}, {"max_minutes": 480}),
        ({"max_minutes": 480}, {"max_minutes": 5}, {"max_minutes": 5}),
        ({"max_usd": 25}, {}, {"max_usd": 25}),
        ({"max_usd": 25}, {"max_usd": 1.5}, {"max_usd": 1.5}),
        ({"max_hourly_usd": 4}, {}, {"max_hourly_usd": 4}),
        ({"max_hourly_usd": 4}, {"max_hourly_usd": 4}, {"max_hourly_usd": 4}),
        ({"max_gpus": 8}, {"accelerator": "A100:8"}, {}),
        ({"max_gpus": 0}, {"accelerator": "cpu"}, {}),
    ],
)
def test_open_limits_are_filled_and_given_ones_kept(
    caps: dict[str, Any], fields: dict[str, Any], filled: dict[str, Any]
) -> None:
    """An open limit is the cap's (minutes: at most the default); everything else of the request stays."""
    request = asked(name="churn", **fields)
    admitted = environment(**caps).admit(request)
    for name, value in filled.items():
        assert getattr(admitted, name) == value
    assert admitted == request.revised(
        platform="local",
        max_minutes=admitted.max_minutes,
        max_usd=admitted.max_usd,
        max_hourly_usd=admitted.max_hourly_usd,
    )


@pytest.mark.parametrize(
    ("caps", "fields", "field"),
    [
        ({"max_minutes": 30}, {"max_minutes": 31}, "max_minutes"),
        ({"max_usd": 25}, {"max_usd": 25.01}, "max_usd"),
        ({"max_hourly_usd": 4}, {"max_hourly_usd": 5}, "max_hourly_usd"),
        ({"max_gpus": 4}, {"accelerator": "A100:8"}, "accelerator"),
        ({"max_gpus": 0}, {"accelerator": "T4"}, "accelerator"),
    ],
)
def test_a_cap_is_never_raised_by_a_request(caps: dict[str, Any], fields: dict[str, Any], field: str) -> None:
    """Asking for more than the cap is refused; the sentence names field, cap and environment."""
    with pytest.raises(InvalidInput, match=r"environment 'prod'.*\. Ask for") as raised:
        environment(**caps).admit(asked(**fields))
    assert raised.value.field == field
    assert str(next(iter(caps.values()))) in str(raised.value)


def test_a_partial_override_never_drops_a_cap() -> None:
    """Clearing a limit in a form gives the cap back, not freedom."""
    prod = environment(max_usd=25)
    assert prod.admit(prod.admit(asked(max_usd=5)).merged({"max_usd": None})).max_usd == 25


@pytest.mark.parametrize(
    "caps",
    [
        {"max_minutes": MAX_MINUTES + 1},
        {"max_usd": MAX_USD * 2},
        {"max_hourly_usd": MAX_HOURLY_USD * 2},
        {"max_minutes": 0},
        {"max_usd": 0},
        {"max_usd": float("inf")},
        {"max_gpus": -1},
        {"max_leases": 0},
        {"max_gpu": 1},
    ],
)
def test_a_cap_out_of_bounds_names_its_field(caps: dict[str, Any]) -> None:
    """A cap above what any request may ask for would fill requests with values that they refuse."""
    with pytest.raises(InvalidInput) as raised:
        parsed(Environment, {"name": "prod", "caps": caps})
    assert raised.value.field == f"caps.{next(iter(caps))}"


@pytest.mark.parametrize(
    ("fields", "usd_per_hour", "seconds"),
    [
        ({"max_minutes": 30}, 0.0, 1800),
        ({"max_minutes": 30, "max_usd": 1}, 0.0, 1800),
        ({"max_minutes": 30, "max_usd": 1}, 2.0, 1800),
        ({"max_minutes": 30, "max_usd": 1}, 4.0, 900),
        ({"max_minutes": 30, "max_usd": 1}, 60.0, 60),
        ({"max_minutes": 30, "max_hourly_usd": 4}, 4.0, 1800),
        ({}, 1.0, 3600),
    ],
)
def test_a_life_is_the_lesser_of_its_minutes_and_its_money(
    fields: dict[str, Any], usd_per_hour: float, seconds: float
) -> None:
    """Rule R5: the hard deadline is what the minutes allow or what the budget buys."""
    assert longest_life_seconds(asked(**fields), usd_per_hour) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("fields", "usd_per_hour", "says"),
    [
        ({"max_hourly_usd": 4}, 4.01, "max_hourly_usd: the offer costs 4.01 USD per hour, above 4.00"),
        ({"max_usd": 1}, 61.0, "max_usd: 1.00 USD buys 59 seconds"),
    ],
)
def test_what_the_money_does_not_buy_is_refused(fields: dict[str, Any], usd_per_hour: float, says: str) -> None:
    """Too dear, or too little money for a minute: the sentence names the limit."""
    with pytest.raises(BudgetExceeded, match=says):
        longest_life_seconds(asked(**fields), usd_per_hour)
