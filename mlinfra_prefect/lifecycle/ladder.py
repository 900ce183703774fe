"""The ladder: which rung a lease tries next, and until when its money lasts for that. Pure.

A rung is what one request to a cloud can try at once. What failed for want of capacity or quota is not tried again by
the same lease; what failed by accident (a bad machine, a lost answer) is, once.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile

from mlinfra_prefect.errors import BudgetExceeded, CapacityUnavailable, QuotaExceeded
from mlinfra_prefect.lifecycle.platform import Platform
from mlinfra_prefect.model.environment import SHORTEST_LIFE_SECONDS
from mlinfra_prefect.model.lease import Attempt, AttemptState, Kept, LeaseRecord
from mlinfra_prefect.model.offer import Offer

ENDS = (CapacityUnavailable, QuotaExceeded)
"""What a rung can answer that stays so for the lease's other tries of it."""
TRIES_OF_A_RUNG = 2


def is_past(platform: Platform, attempt: Attempt) -> bool:
    """Whether the next attempt may begin: this one is gone, or its meter is stopped and its rest goes later."""
    if attempt.state is AttemptState.RELEASING and platform.destroys_later:
        # The state is written before anything is told to end; only the moment says that it was.
        return bool(attempt.outcome) and (attempt.stopped_at is not None or attempt.applied_at is None)
    return attempt.state is AttemptState.RELEASED


def tried(record: Kept) -> tuple[Attempt, ...]:
    """The attempts of this round, none of which was up.

    A round begins after the last one that was, for what served for months may be repaired as often; and after a wait.
    """
    found: list[Attempt] = []
    before = record.waited_after if isinstance(record, LeaseRecord) else 0
    for attempt in reversed(record.attempts):
        if attempt.up_at is not None or attempt.number <= before:
            break
        found.insert(0, attempt)
    return tuple(found)


def lacked(attempt: Attempt) -> bool:
    """Whether there was nothing to be had for an attempt."""
    return attempt.outcome.startswith(tuple(error.__name__ for error in ENDS))


def next_rung(record: LeaseRecord, rungs: tuple[tuple[Offer, ...], ...]) -> tuple[Offer, ...]:
    """Return the first rung that a lease has not used up.

    Raises:
        CapacityUnavailable, QuotaExceeded: there is none; the error of the last try.
    """
    before = tried(record)
    over = {_rung(each) for each in before if lacked(each)}
    over |= {rung for rung, count in Counter(map(_rung, before)).items() if count >= TRIES_OF_A_RUNG}
    # A quota is of a whole family of types: a dearer one of them meets the same.
    spent = {
        _family(offer)
        for each in before
        if each.outcome.startswith(QuotaExceeded.__name__)
        for offer in each.candidates or (each.offer,)
    }
    for rung in rungs:
        if _key(rung[0]) not in over and not all(_family(offer) in spent for offer in rung):
            return rung
    last = before[-1].outcome if before else ""
    error = QuotaExceeded if last.startswith(QuotaExceeded.__name__) else CapacityUnavailable
    raise error(
        f"None of {len(rungs)} rung(s) of the ladder could be taken for {record.request.accelerator}.",
        "Try again later, or allow more regions or another accelerator.",
    )


def deadline(record: LeaseRecord, usd_per_hour: float, now: datetime) -> datetime | None:
    """Return the earlier deadline that an attempt at a price needs, from what is left of the money; None: none.

    Raises:
        BudgetExceeded: what is left buys less than a minute.
    """
    budget = record.request.max_usd
    if budget is None or usd_per_hour <= 0:
        return None
    left = budget - sum(attempt.cost_usd(now) for attempt in record.attempts)
    seconds = 3600.0 * left / usd_per_hour
    if seconds < SHORTEST_LIFE_SECONDS:
        raise BudgetExceeded(
            f"max_usd: {left:.2f} USD is left of {budget:.2f}, and buys {max(0.0, seconds):.0f} seconds at "
            f"{usd_per_hour:.2f} USD per hour.",
            "Raise max_usd, or ask for a cheaper accelerator.",
        )
    until = now + timedelta(seconds=seconds)
    return until if until < record.deadline else None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the attempts table: what was tried, what it became, and what that cost until now."""

    number: int
    state: str
    tried: str
    became: str
    outcome: str
    cost_usd: float

    def __str__(self) -> str:
        end = f"became {self.became}" if self.became else self.outcome or self.state
        return f"attempt {self.number}, {self.tried}: {end}, {self.cost_usd:.4f} USD"


def table(record: Kept, now: datetime) -> tuple[Row, ...]:
    """The attempts of a record as people read them; the same in the log, the artifact and on the command line."""
    return tuple(
        Row(
            number=each.number,
            state=each.state,
            tried=described(each),
            became=_became(each),
            outcome=each.outcome,
            cost_usd=each.cost_usd(now),
        )
        for each in record.attempts
    )


def _became(attempt: Attempt) -> str:
    if attempt.up_at is None:
        return ""
    zones = f" in {', '.join(attempt.offer.zones)}" if attempt.offer.zones else ""
    machines = f" ({', '.join(attempt.nodes)})" if attempt.nodes else ""
    return f"{attempt.offer.type}{zones}{machines}"


def described(attempt: Attempt) -> str:
    """What an attempt tried: types, region and market."""
    offers = attempt.candidates or (attempt.offer,)
    types = ", ".join(dict.fromkeys(each.type for each in offers))
    return f"{types} in {attempt.offer.region} ({attempt.offer.market})"


def _family(offer: Offer) -> tuple[str, str, str]:
    """What a quota counts together, as far as names tell: ``g`` of g6.xlarge, in one region and market."""
    return offer.region, offer.market, "".join(takewhile(str.isalpha, offer.type))


def _rung(attempt: Attempt) -> tuple[str, str, str]:
    return _key((attempt.candidates or (attempt.offer,))[0])


def _key(first: Offer) -> tuple[str, str, str]:
    """What a rung is known by: its first offer. Prices move between two looks, and its last one with them."""
    return first.region, first.market, first.type
