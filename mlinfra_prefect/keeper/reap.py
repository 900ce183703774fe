"""The reaper: take over what nobody keeps. Taking over means a new keeper, not destruction.

On the owner's host a lease is taken over at once when its client and keeper are provably dead and no Terraform of it
runs. What then happens to it is what would have happened under its first keeper: client alive, or none by design → it
goes on; client lost → `on_client_lost`; deadline past → release. Two reapers at once are safe: the ledger decides.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.keeper.desk import due_at, laid, lay, stands, watcher_alive, watcher_identity
from mlinfra_prefect.keeper.starting import ensure_watcher, replace_lost_keeper
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.clients import why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.releasing import terraform_runs
from mlinfra_prefect.local.process import is_alive, is_here, is_provably_dead
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.names import Id, Line, as_line
from mlinfra_prefect.model.record import Record

SETTLE_SECONDS = 900.0
POLL_SECONDS = 0.02
JUST_ASKED_SECONDS = 10.0
ON_THE_DESK = "a live keeper has it on its desk"
OPEN = [state for state in State if state is not State.RELEASED]

__all__ = ["Finding", "Pass", "as_json", "reap", "replace_lost_keeper"]


class Finding(Record):
    """What a pass did with one record, or why it left it alone."""

    id: Id | Line
    reason: Line


class Pass(Record):
    """What one pass of the reaper found. Nothing reapable is left when `stuck` is empty."""

    released: tuple[Finding, ...] = ()
    stuck: tuple[Finding, ...] = ()
    skipped: tuple[Finding, ...] = ()


def reap(context: Context, *, settle_seconds: float = SETTLE_SECONDS) -> Pass:
    """Take over everything that nobody keeps, and wait until it has settled. Idempotent; safe beside live keepers.

    What is going already is waited for, and what is stuck is tried again.

    Args:
        context: where.
        settle_seconds: how long to wait; 0: only see that everything has a keeper.
    """
    found: dict[str, dict[str, str]] = {"released": {}, "stuck": dict(context.ledger.unreadable()), "skipped": {}}
    waited_for: dict[str, int] = {}
    _end_hung_watcher(context)
    for seen in context.ledger.records(states=OPEN):
        record = seen.record
        try:
            why = _left_alone(context, record)
            if why is None:
                record = _prepared(context, record)
                lay(context, record)
            elif why != ON_THE_DESK or (record.live and _goes_on(context, record)):
                found["skipped"][record.id] = why
                continue
            elif not record.live:
                record = _another_try(context, record)
            waited_for[record.id] = record.failures
        except MlinfraError as error:  # one bad record never stops the others (rule R9)
            found["stuck"][record.id] = str(error)
    if waited_for:
        ensure_watcher(context, *waited_for)
    until = time.monotonic() + settle_seconds
    for record_id, failures in waited_for.items():
        where, why = _settled(context, record_id, failures, until)
        found[where][record_id] = why
    replace_lost_keeper(context)
    return Pass(**{where: _findings(each) for where, each in found.items()})


def as_json(found: Pass) -> dict[str, Any]:
    """The stable JSON of a pass: lists of {id, reason}."""
    return found.model_dump(mode="json")


def _left_alone(context: Context, record: KeptRecord) -> str | None:
    """Why a record is not ours to take; None: it may be taken over."""
    if isinstance(record, EndpointRecord | RolloutRecord) and _stands_alone(record):
        # Nobody keeps it by design: it stands by its servers' grants.
        over = isinstance(record, EndpointRecord) and _expired(context, record)
        return None if over else _how_it_stands(context, record)
    if laid(context.home, record.id) is not None and watcher_alive(context.home):
        return ON_THE_DESK
    keeper, now = record.keeper, context.ledger.now()
    if keeper is not None and not is_provably_dead(keeper.process):
        if is_here(keeper.process) and watcher_identity(context.home) != _pid_of(record):
            return f"kept by a live keeper, pid {keeper.process.pid}"
        if not is_here(keeper.process) and record.renewed_until > now:
            return f"kept on {keeper.process.host} until {record.renewed_until:%H:%M:%S} UTC"
    client = record.client.process
    if keeper is None and client is not None and record.live and not is_provably_dead(client):
        if now - record.created_at < timedelta(seconds=JUST_ASKED_SECONDS):
            return "its client has just asked for it"
        if not is_here(client) and record.renewed_until > now:
            return f"its client on {client.host} may be alive until {record.renewed_until:%H:%M:%S} UTC"
    running = [attempt for attempt in terraform_runs(record) if not _overdue(attempt.operation_deadline, now)]
    return "a Terraform of it is still running" if running else None


def _pid_of(record: KeptRecord) -> tuple[int, str] | None:
    return None if record.keeper is None else (record.keeper.process.pid, record.keeper.process.start_time)


def _overdue(deadline: Any, now: Any) -> bool:
    return deadline is not None and bool(now >= deadline)


def _stands_alone(record: EndpointRecord | RolloutRecord) -> bool:
    retires = isinstance(record, RolloutRecord) and record.due is not None
    return stands(record) and record.state is State.READY and not retires


def _expired(context: Context, record: EndpointRecord) -> bool:
    return record.expires_at is not None and context.ledger.now() >= record.expires_at


def _how_it_stands(context: Context, record: EndpointRecord | RolloutRecord) -> str:
    attempt = record.attempt
    if attempt is not None and context.platform(record.platform).is_up(record, attempt):
        return "its server lives by its own grant"
    return "it is down: `mlinfra-prefect endpoints --repair` brings it back"


def _prepared(context: Context, record: KeptRecord) -> KeptRecord:
    if isinstance(record, EndpointRecord) and record.state is State.READY and _expired(context, record):
        return begin_release(context, record.id, reason="it expired", drain=False)
    return _another_try(context, record)


def _another_try(context: Context, record: KeptRecord) -> KeptRecord:
    """Have a release tried again now, and not when its keeper would next."""

    def change(now: KeptRecord) -> KeptRecord | None:
        if now.state not in {State.RELEASING, State.STUCK} or now.retry_at is None:
            return None
        return now.revised(retry_at=None)

    record = revise(context.ledger, record.id, change, actor=context.actor, reason="the reaper has it tried again")
    lay(context, record)
    return record


def _settled(context: Context, record_id: str, failures: int, until: float) -> tuple[str, str]:
    """Wait until a record is released, has failed once more, or goes on under a keeper; say which, and why."""
    while True:
        record = context.record(record_id)
        if record.state is State.RELEASED:
            return "released", record.reason or "released"
        if record.failures > failures and record.state is State.STUCK:
            return "stuck", record.reason
        kept = record.keeper is not None and is_alive(record.keeper.process)
        if kept and record.live and _goes_on(context, record):
            return "skipped", "it goes on under a live keeper"
        if time.monotonic() >= until:
            if record.state is State.STUCK:
                return "stuck", record.reason
            return "skipped", f"its keeper is still at it: {record.state} ({record.reason})"
        time.sleep(POLL_SECONDS)


def _goes_on(context: Context, record: KeptRecord) -> bool:
    """Whether nothing calls for an operation that would end a live record."""
    alone = isinstance(record, EndpointRecord | RolloutRecord) and stands(record)
    if not alone and why_gone(record) is not None:
        return False
    if record.state is not State.READY:
        return True
    due = due_at(record)
    return due is None or due > context.ledger.now().timestamp()


def _end_hung_watcher(context: Context) -> None:
    """End a watcher of this home that lives and keeps nothing: it has renewed none of its leases for two windows.

    It may be ended at any moment without loss, so what a sleeping host looks like does no harm either.
    """
    alive = watcher_identity(context.home)
    limit = context.ledger.now() - timedelta(seconds=TTL_SECONDS)
    kept = [
        seen.record
        for seen in context.ledger.records(states=[State.REQUESTED, State.PROVISIONING, State.READY])
        if isinstance(seen.record, LeaseRecord) and alive is not None and _pid_of(seen.record) == alive
    ]
    if not kept or alive is None or any(record.renewed_until > limit for record in kept):
        return
    process = kept[0].keeper
    if process is None or not is_alive(process.process):
        return
    with suppress(ProcessLookupError):
        os.kill(alive[0], signal.SIGKILL)
    end = time.monotonic() + 5.0
    while watcher_alive(context.home) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)


def _findings(found: Mapping[str, str]) -> tuple[Finding, ...]:
    return tuple(Finding(id=record_id, reason=as_line(reason)) for record_id, reason in found.items())
