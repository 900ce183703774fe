"""The reaper: take over what nobody keeps. Taking over means a new keeper, not destruction.

On the owner's host a lease is taken over at once when its client and keeper are provably dead and no Terraform of it
runs. What then happens to it is what would have happened under its first keeper: client alive, or none by design → it
goes on; client lost → `on_client_lost`; deadline past → release. Two reapers at once are safe: the ledger decides.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlinfra_prefect.keeper.desk import ensure_watcher, is_provably_dead, lay, watcher_identity
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.releasing import begin_release
from mlinfra_prefect.local.process import is_here
from mlinfra_prefect.model.lease import AttemptState, EndpointRecord, State
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.terraform import in_flight

SETTLE_SECONDS = 900.0
OPEN = [state for state in State if state is not State.RELEASED]


class Finding(Record):
    """What a pass did with one record, or why it left it alone."""

    id: str
    reason: str


class Pass(Record):
    """What one pass of the reaper found. Nothing reapable is left when `stuck` is empty."""

    released: tuple[Finding, ...] = ()
    stuck: tuple[Finding, ...] = ()
    skipped: tuple[Finding, ...] = ()


def reap(context: Context, *, settle_seconds: float = SETTLE_SECONDS) -> Pass:
    """Take over everything that nobody keeps, and wait until it has settled. Idempotent; safe beside live keepers."""
    skipped: dict[str, str] = {}
    released: dict[str, str] = {}
    stuck: dict[str, str] = {record_id: why for record_id, why in context.ledger.unreadable()}
    taken: list[str] = []
    for seen in context.ledger.records(states=OPEN):
        record = seen.record
        why = _left_alone(context, record)
        if why is not None:
            skipped[record.id] = why
            continue
        if isinstance(record, EndpointRecord) and record.state is State.READY:
            gone = _gone_endpoint(context, record)
            if gone is None:
                skipped[record.id] = "its server lives by its own grant"
                continue
            record = begin_release(context, record.id, reason=gone, drain=False)
        lay(context, record)
        taken.append(record.id)
    if taken:
        ensure_watcher(context, *taken)
    until = time.monotonic() + settle_seconds
    for record_id in taken:
        _settle(context, record_id, until, released, stuck, skipped)
    return Pass(
        released=_findings(released), stuck=_findings(stuck), skipped=_findings(skipped)
    )


def has_reapable(context: Context) -> bool:
    """Whether a pass would take something over; cheap, for the pass that every lease start makes."""
    return any(_left_alone(context, seen.record) is None for seen in context.ledger.records(states=OPEN))


def _left_alone(context: Context, record: KeptRecord) -> str | None:
    """Why a record is not ours to take; None: it may be taken over."""
    if isinstance(record, EndpointRecord) and record.state is State.READY:
        return None  # nobody keeps it by design; whether it is gone is decided by looking at it
    keeper = record.keeper
    if keeper is not None:
        alive = watcher_identity(context.home)
        if alive == (keeper.process.pid, keeper.process.start_time) or (
            is_here(keeper.process) and not is_provably_dead(keeper.process)
        ):
            return f"kept by a live keeper, pid {keeper.process.pid}"
        if not is_here(keeper.process) and record.renewed_until > context.ledger.now():
            return f"kept on {keeper.process.host} until {record.renewed_until:%H:%M:%S} UTC"
    client = record.client.process
    if keeper is None and client is not None and record.live and not is_provably_dead(client):
        age = (context.ledger.now() - record.created_at).total_seconds()
        if age < 10 or not is_here(client):
            return "its client has just asked for it"
    for attempt in record.attempts:
        if attempt.state is not AttemptState.RELEASED and in_flight(Path(attempt.directory) / LOCK_NAME):
            return "a Terraform of it is still running"
    return None


def _gone_endpoint(context: Context, record: EndpointRecord) -> str | None:
    attempt = record.attempt
    if record.expires_at is not None and context.ledger.now() >= record.expires_at:
        return "it expired"
    if attempt is None or not context.platform(record.platform).is_up(record, attempt):
        return "its server is gone"
    return None


def _settle(
    context: Context, record_id: str, until: float, released: dict[str, str], stuck: dict[str, str], skipped: dict[str, str]
) -> None:
    while True:
        record = context.record(record_id)
        if record.state is State.RELEASED:
            released[record_id] = record.reason or "released"
            return
        if record.state is State.STUCK:
            stuck[record_id] = record.reason
            return
        mine = record.keeper is not None and not is_provably_dead(record.keeper.process)
        if record.state is State.READY and mine and _left_alone(context, record) is not None:
            skipped[record_id] = "taken over; it goes on under a new keeper"
            return
        if time.monotonic() > until:
            stuck[record_id] = f"still {record.state}: {record.reason}"
            return
        time.sleep(0.02)


def _findings(found: dict[str, str]) -> tuple[Finding, ...]:
    return tuple(Finding(id=record_id, reason=reason[:500]) for record_id, reason in found.items())


def replace_lost_keeper(context: Context) -> None:
    """Start a watcher where cards lie on the desk and nobody watches: every CLI verb calls this (cheap when all is well)."""
    from mlinfra_prefect.keeper.desk import has_work, watcher_alive

    if has_work(context.home) and not watcher_alive(context.home):
        ensure_watcher(context)


def as_json(found: Pass) -> dict[str, Any]:
    """The stable JSON of a pass: lists of {id, reason}."""
    return found.model_dump(mode="json")
