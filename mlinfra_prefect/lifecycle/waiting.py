"""Waiting for a machine: where every rung was tried and nothing was to be had, the ladder begins again, later.

Machines that everybody wants come and go within minutes, and a quota is free again when a lease ends. A lease that
may wait (`wait_minutes`) costs nothing meanwhile and holds its place: its record stays `provisioning`, its client is
watched, and between two rounds no process of it runs. The wait is part of its life: its hard deadline stays (rule R5).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from mlinfra_prefect.errors import LeaseLost, MlinfraError, TemporaryError
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.ladder import ENDS, tried
from mlinfra_prefect.lifecycle.releasing import release_attempt
from mlinfra_prefect.model.lease import AttemptState, Kept, LeaseRecord
from mlinfra_prefect.model.names import as_line

SHORTEST_PAUSE_SECONDS = 30.0
LONGEST_PAUSE_SECONDS = 1800.0
PAUSE_SHARE = 0.5
"""Of the time that it waits already: who has waited long asks less often."""
MOST_ATTEMPTS = 100
"""Of one lease, all rounds together: each is a stack of its own that its release destroys."""


def waits(record: Kept, now: datetime) -> bool:
    """Whether nothing is to be tried yet. Pure."""
    return record.live and record.retry_at is not None and now < record.retry_at


def next_round(record: Kept, problem: MlinfraError, now: datetime) -> datetime | None:
    """When the ladder of a lease begins again after a problem; None: it has to be given up. Pure.

    Args:
        record: of the lease.
        problem: why its last round ended.
        now: on the ledger's clock.
    """
    if not isinstance(record, LeaseRecord) or len(record.attempts) >= MOST_ATTEMPTS:
        return None
    # A round that could not even ask is none: who waits for hours meets a throttle or a broken line some time.
    unasked = isinstance(problem, TemporaryError) and record.retry_at is not None and not tried(record)
    if type(problem) not in ENDS and not unasked:
        return None
    last = record.created_at + timedelta(minutes=record.request.wait_minutes)
    if record.keep_until is not None:  # its client is gone: nobody waits any longer than that
        last = min(last, record.keep_until)
    pause = PAUSE_SHARE * (now - record.created_at).total_seconds()
    at = now + timedelta(seconds=min(max(pause, SHORTEST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS))
    # What is left of the wait is not thrown away because a pause would be longer.
    at = min(at, max(last, now + timedelta(seconds=SHORTEST_PAUSE_SECONDS)))
    return at if at <= last else None


def wait(context: Context, record: KeptRecord, problem: MlinfraError, until: datetime) -> KeptRecord:
    """Note that the next round begins `until` then, and why; what earlier rounds left is destroyed meanwhile.

    What dear rungs made of the deadline is void: the next attempt reckons it from its own price (rule R5).

    Raises:
        LeaseLost: a newer keeper took the record over.
    """
    why = " ".join(problem.message.split())
    changes: dict[str, Any] = {
        "retry_at": until, "waited_after": len(record.attempts),
        "reason": as_line(f"it waits for a machine; the next look is at {until:%H:%M:%S} UTC. {why}"),
    }  # fmt: skip
    if isinstance(record, LeaseRecord):
        changes["deadline"] = record.created_at + timedelta(minutes=record.request.life_minutes)

    def change(now: KeptRecord) -> KeptRecord | None:
        return now.revised(**changes) if now.live else None  # somebody may have begun its release meanwhile

    record = revise(
        context.ledger, record.id, change, actor=context.actor, reason=as_line(f"waits for a machine: {why}"),
        generation=record.generation,
    )  # fmt: skip
    if not record.live:
        return record
    context.tell(record)
    looks = context.platform(record.platform).late_looks
    settled = context.ledger.now() - timedelta(seconds=max(looks, default=0.0))
    for attempt in record.attempts:
        # One of which a machine may still appear is looked at again, so it stays until that is over.
        if attempt.state is AttemptState.RELEASING and attempt.stopped_at is not None and attempt.stopped_at < settled:
            try:
                record = release_attempt(context, record, attempt.number)
            except LeaseLost:
                raise
            except (MlinfraError, OSError):
                continue  # the release goes on with it, for ever
    return record
