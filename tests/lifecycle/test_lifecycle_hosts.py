"""Rules R5 and R6: which host answers for a record, and until when a keeper that cannot be seen may be at work."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlinfra_prefect.agent.identity import boot
from mlinfra_prefect.lifecycle.whose_host import busy_until
from mlinfra_prefect.model.lease import Attempt, AttemptState, Keeper
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
