"""For how long the meter of an attempt has run: one formula for the records and for the quick listings of them.

Standard library only: the listings load no models.
"""

from __future__ import annotations

from datetime import datetime

NOTHING_RENTED = ("CapacityUnavailable", "QuotaExceeded")
"""How an outcome begins when there was nothing to be had; their own names, so that this module loads nothing."""


def rents_nothing(applied_at: object, outcome: str, *, nodes: bool) -> bool:
    """Whether it is known to have cost nothing: nothing was applied, or there was nothing to be had. Pure."""
    return applied_at is None or (not nodes and outcome.startswith(NOTHING_RENTED))


def cost_usd(began: datetime, until: datetime, usd_per_hour: float) -> float:
    """What a meter costs that ran between two moments, by the second. Pure."""
    return max(0.0, (until - began).total_seconds()) / 3600 * usd_per_hour
