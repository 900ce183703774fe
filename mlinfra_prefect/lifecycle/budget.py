"""What an environment's leases may cost together: each one reserves its worst case in the ledger, and gives it back.

The worst case is the price times the time that is left, or the request's own budget where that is less. It stands in
the record from the first write on. Two clients can write at the same moment, so the sum is looked at before the write
and once more before anything is rented; of two that do not both fit the one that was asked for first goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from mlinfra_prefect.errors import BudgetExceeded
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.lease import OPEN, LeaseRecord
from mlinfra_prefect.model.request import TrainingRequest


def worst_case_usd(request: TrainingRequest, usd_per_hour: float, seconds: float, spent_usd: float = 0.0) -> float:
    """What a lease can come to cost: what it has cost, and the rest of its time at a price; its budget at most. Pure.

    Args:
        request: admitted.
        usd_per_hour: of one node, disks included.
        seconds: that are left until its hard deadline.
        spent_usd: of attempts before.
    """
    worst = spent_usd + max(0.0, seconds) / 3600 * usd_per_hour * request.nodes
    return round(worst if request.max_usd is None else min(worst, request.max_usd), 6)


def refuse_beyond_cap(context: Context, record: LeaseRecord) -> None:
    """Refuse what does not fit beside the leases of its environment that were asked for before it.

    Raises:
        BudgetExceeded: naming what is reserved already.
    """
    cap = context.config.environment(record.environment).caps.max_reserved_usd
    if cap is None or record.reserved_usd <= 0:
        return
    others = [
        seen.record
        for seen in context.ledger.records(states=OPEN)
        if isinstance(seen.record, LeaseRecord) and seen.record.environment == record.environment
    ]
    taken = sum(each.reserved_usd for each in before(record, others))
    if taken + record.reserved_usd > cap:
        raise BudgetExceeded(
            f"environment: {record.environment!r} has reserved {taken:.2f} USD for the leases that live, its cap is "
            f"{cap:.2f}, and this one can come to cost {record.reserved_usd:.2f}.",
            "Ask for less (max_minutes, max_usd), wait until one is released, or raise max_reserved_usd.",
        )


def before(record: LeaseRecord, others: Iterable[LeaseRecord]) -> list[LeaseRecord]:
    """The leases that were asked for before one, by moment and then by id. Pure."""
    mine: tuple[datetime, str] = (record.created_at, record.id)
    return [each for each in others if each.id != record.id and (each.created_at, each.id) < mine]
