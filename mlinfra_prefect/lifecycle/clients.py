"""The client of a record, seen by its keeper: whether it is gone, and what is done then (`on_client_lost`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta

from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.marking import begin_release, current
from mlinfra_prefect.lifecycle.versions import version_of
from mlinfra_prefect.local.process import is_here, is_provably_dead
from mlinfra_prefect.model.endpoint import PROMOTED, EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import Client, LeaseRecord

WANTED_SECONDS = 0.25
"""How often a long wait asks whether anybody still wants what it waits for."""


def why_gone(record: KeptRecord, now: datetime | None = None) -> str | None:
    """Say why the client of a record is gone; None while it lives, is nobody by design, or is known to be lost.

    Args:
        record: whose client.
        now: on the ledger's clock, for clients that are known by their heartbeat; None: heartbeats are not looked at.
    """
    client = record.client
    if client.kind == "none" or client.process is None or client.lost_at is not None:
        return None
    if client.ended_at is not None:
        return "its client ended without releasing it"
    if is_provably_dead(client.process):
        return "its client was lost"
    silent_at = silent_from(record)
    if now is None or silent_at is None or now <= silent_at:
        return None
    return f"its client was lost: no heartbeat for {TTL_SECONDS:.0f} seconds"


def silent_from(record: KeptRecord) -> datetime | None:
    """The moment (ledger's clock) after which silence means that a client is lost; None: its process alone decides.

    A process that is seen from here needs no heartbeat: it lives or it does not. That says nothing of a run whose
    process outlives it.
    """
    client = record.client
    if client.heartbeat_at is None or client.process is None:
        return None
    if client.kind == "process" and is_here(client.process):
        return None
    return client.heartbeat_at + timedelta(seconds=TTL_SECONDS)


def last_heard(record: KeptRecord, now: datetime) -> Client:
    """Return the client as whoever takes a record over at `now` has to see it. Pure but for what runs here.

    A renewal means that the client lives (rule R4), and one that lives starts its keeper anew. So of a client that
    cannot be seen from here, and does not beat, the last renewal was the last word: else a lost host's lease would be
    renewed for nobody until its hard deadline.
    """
    client = record.client
    seen = client.process is None or client.heartbeat_at is not None or is_here(client.process)
    # An endpoint is never renewed, so nothing follows from that.
    if seen or isinstance(record, EndpointRecord) or not record.live or record.renewed_until >= now:
        return client
    return client.revised(heartbeat_at=record.renewed_until - timedelta(seconds=TTL_SECONDS))


def stands_by_itself(context: Context, record: KeptRecord) -> bool:
    """Whether a record has left its client behind: a version that was promoted, and an endpoint that has one."""
    if isinstance(record, RolloutRecord):
        version = version_of(context, record)
        return version is not None and version.state in PROMOTED
    return isinstance(record, EndpointRecord) and record.current is not None


def look_at_client(context: Context, record: KeptRecord) -> KeptRecord:
    """Do what the request says when the client of a record is gone. Returns the record as it stands now.

    A served model has left its client behind: nothing is done.

    Raises:
        LeaseLost: a newer keeper took the record over.
    """
    now = context.ledger.now()
    if record.live and why_gone(record, now) is not None:
        # An operation carries its record for minutes, and its client has beaten since.
        record = current(context, record)
    why = why_gone(record, now) if record.live else None
    if why is None or stands_by_itself(context, record):
        return record
    lost = record.client.revised(lost_at=now)
    if not isinstance(record, LeaseRecord):
        reason = f"{why} before it was {'promoted' if isinstance(record, RolloutRecord) else 'ready'}: rolled back"
        return begin_release(context, record.id, reason=reason, drain=False, generation=record.generation, lost=lost)
    policy = record.request.on_client_lost
    if policy != "keep":
        drain = policy == "checkpoint_then_release"
        return begin_release(
            context, record.id, reason=f"{why} ({policy})", drain=drain, generation=record.generation, lost=lost
        )
    until = min(now + timedelta(minutes=record.request.keep_minutes or 0), record.deadline)

    def keep(seen: KeptRecord) -> KeptRecord | None:
        if not seen.live or seen.client.process != lost.process:
            return None
        if seen.client.heartbeat_at != lost.heartbeat_at:
            return None  # it has beaten meanwhile
        return seen.revised(client=lost, keep_until=until)

    reason = f"{why}; kept until {until:%H:%M:%S} UTC"
    return revise(context.ledger, record.id, keep, actor=context.actor, reason=reason, generation=record.generation)


def still_wanted(context: Context, record: KeptRecord) -> Callable[[], bool]:
    """Return a function that tells whether what an operation makes for a record is still wanted; cheap to ask often."""
    keeps = isinstance(record, LeaseRecord) and record.request.on_client_lost == "keep"
    answer, next_look = True, 0.0

    def wanted() -> bool:
        nonlocal answer, next_look
        if answer and time.monotonic() >= next_look:
            next_look = time.monotonic() + WANTED_SECONDS
            seen = context.ledger.read(record.id)
            now = seen.record if seen is not None else None
            needs = now is not None and not keeps and not stands_by_itself(context, now)
            answer = now is not None and now.live and not (needs and why_gone(now, context.ledger.now()) is not None)
        return answer

    return wanted
