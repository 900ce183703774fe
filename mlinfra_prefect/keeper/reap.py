"""The reaper: take over what nobody keeps. Taking over means a new keeper, not destruction.

On the owner's host a lease is taken over at once when its client and keeper are provably dead and no Terraform of it
runs. What then happens to it is what would have happened under its first keeper: client alive, or none by design → it
goes on; client lost → `on_client_lost`; deadline past → release. Two reapers at once are safe: the ledger decides.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from mlinfra_prefect.errors import InvalidInput, LedgerUnreadable, MlinfraError
from mlinfra_prefect.keeper.cloud_sweeping import sweep_clouds
from mlinfra_prefect.keeper.desk import due_at, laid, lay, stands, watcher_alive, watcher_identity, why_over
from mlinfra_prefect.keeper.overdue import must_wait_for
from mlinfra_prefect.keeper.passes import Finding, Notes, Pass, as_json, merged
from mlinfra_prefect.keeper.sight import unknown_before
from mlinfra_prefect.keeper.starting import ensure_watcher, replace_lost_keeper
from mlinfra_prefect.keeper.sweeping import sweep_account, sweep_past_deadlines
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, Versioned, revise
from mlinfra_prefect.lifecycle.belonging import why_foreign
from mlinfra_prefect.lifecycle.clients import why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.whose_host import busy_until, on_another_host
from mlinfra_prefect.local.process import is_alive, is_here, is_provably_dead
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import OPEN, LeaseRecord, State

SETTLE_SECONDS = 900.0
POLL_SECONDS = 0.02
JUST_ASKED_SECONDS = 10.0
QUIET_SECONDS = 3600.0
"""After which `reap_until_quiet` gives up: longer than a lease TTL, an operation's deadline and a teardown together."""
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Between its passes; the last one until the end."""
ON_THE_DESK = "a live keeper has it on its desk"
JUST_ASKED = "its client has just asked for it"
STILL_AT_IT = "its keeper is still at it"
TERRAFORM_RUNS = "a Terraform of it is still running"

__all__ = ["Finding", "Pass", "as_json", "reap", "reap_until_quiet", "replace_lost_keeper"]


def reap(
    context: Context,
    *,
    settle_seconds: float = SETTLE_SECONDS,
    environment: str | None = None,
    dry_run: bool = False,
) -> Pass:
    """Take over everything that nobody keeps, and wait until it has settled. Idempotent; safe beside live keepers.

    What is going already is waited for, and what is stuck is tried again. Then what carries the marks of a ledger and
    has no open record is ended, within the limits of `keeper.sweeping`.

    Args:
        context: where.
        settle_seconds: how long to wait; 0: only see that everything has a keeper.
        environment: only what is in this one; None: all.
        dry_run: change nothing and start nothing; `Pass.planned` says what a pass would do.

    Raises:
        LedgerUnreadable: the whole ledger is a newer version's, or broken: no record was touched.
        InvalidInput: nothing of this home is in that environment, and it is not configured.
    """
    notes = Notes()
    killpoint("reap-began", context.home.root)
    seen = _open_records(context, environment, dry_run=dry_run)
    for record_id, why in context.ledger.unreadable():
        notes.add("stuck", record_id, why)
    if not dry_run:
        _end_hung_watcher(context, [each.record for each in seen])
    waited_for: dict[str, int] = {}
    for each in seen:
        record = each.record
        if environment is not None and record.environment != environment:
            continue
        try:
            taken = _taken(context, record, notes, dry_run=dry_run)
        except (MlinfraError, OSError) as error:  # one bad record never stops the others (rule R9)
            notes.add("stuck", record.id, str(error))
            continue
        if taken is not None:
            waited_for[record.id] = taken.failures
    if waited_for:
        ensure_watcher(context, *waited_for)
    killpoint("reap-before-settle", context.home.root)
    until = time.monotonic() + settle_seconds
    for record_id, failures in waited_for.items():
        where, why = _settled(context, record_id, failures, until)
        notes.add(where, record_id, why, again=why.startswith(STILL_AT_IT))
    since = unknown_before(context, seen, dry_run=dry_run)
    sweep_account(context, notes, unknown_before=since, environment=environment, dry_run=dry_run)
    sweep_clouds(context, notes, seen, unknown_before=since, environment=environment, dry_run=dry_run)
    if not dry_run:
        replace_lost_keeper(context)
    return notes.done(dry_run=dry_run)


def _taken(context: Context, record: KeptRecord, notes: Notes, *, dry_run: bool) -> KeptRecord | None:
    """Have the keeper look at a record, where it is ours to take; else note why not."""
    why = _left_alone(context, record)
    on_the_desk = why == ON_THE_DESK
    if why is not None and (not on_the_desk or (record.live and _goes_on(context, record))):
        notes.add("skipped", record.id, why, again=not record.live or why in {JUST_ASKED, TERRAFORM_RUNS})
        return None
    if dry_run:
        notes.add("planned", record.id, _would(context, record, on_the_desk=on_the_desk))
        return None
    return _prepared(context, record, on_the_desk=on_the_desk)


def reap_until_quiet(
    context: Context,
    *,
    environment: str | None = None,
    seconds: float = QUIET_SECONDS,
    pauses: tuple[float, ...] = BACKOFF_SECONDS,
) -> Pass:
    """Make passes until nothing is open but what lives or is stuck, with a growing pause between them.

    Args:
        context: where.
        environment: as for `reap`.
        seconds: how long at most; what is then still on its way is in `Pass.skipped`, and the pass is not `quiet`.
        pauses: between two passes; the last one until the end.
    """
    until = time.monotonic() + seconds
    found, number = Pass(), 0
    while True:
        settle = max(0.0, min(SETTLE_SECONDS, until - time.monotonic()))
        found = merged(found, latest := reap(context, settle_seconds=settle, environment=environment))
        if latest.quiet or time.monotonic() >= until:
            # What an earlier pass ended is no reason for another one.
            return found.revised(orphans=tuple(each.revised(again=False) for each in found.orphans))
        time.sleep(max(0.0, min(pauses[min(number, len(pauses) - 1)], until - time.monotonic())))
        number += 1


def _open_records(context: Context, environment: str | None, *, dry_run: bool) -> list[Versioned]:
    try:
        seen = context.ledger.records(states=OPEN)
    except LedgerUnreadable as error:
        ended = [] if dry_run else sweep_past_deadlines(context.home)
        if ended:
            raise LedgerUnreadable(
                f"{error.message} Past its own deadline, and ended: {', '.join(ended)}.", error.remedy
            ) from error
        raise
    known = environment is None or environment in context.config.environments
    if not known and not any(each.record.environment == environment for each in context.ledger.records()):
        there = ", ".join(sorted(context.config.environments))
        raise InvalidInput("environment", f"{environment!r} is not an environment of this home", f"There is: {there}.")
    return seen


def _would(context: Context, record: KeptRecord, *, on_the_desk: bool) -> str:
    """What a pass would do with a record that it may take; the record is left as it is."""
    if not record.live:
        by = "" if on_the_desk else " by a new keeper"
        return f"its release would be tried again{by}: {record.reason or record.state}"
    alone = isinstance(record, EndpointRecord | RolloutRecord) and stands(record)
    gone = None if alone else why_gone(record)
    over = None
    if not isinstance(record, RolloutRecord) and record.state is State.READY:
        over = why_over(record, context.ledger.now().timestamp())
    elif record.deadline is not None and context.ledger.now() >= record.deadline:
        over = "its hard deadline has passed"
    if over is not None:
        return f"it would be released: {over}"
    if gone is not None and isinstance(record, LeaseRecord):
        return f"it would be taken over, then: {gone} ({record.request.on_client_lost})"
    if gone is not None:
        return f"it would be taken over and rolled back: {gone}"
    return "it would be taken over and go on under a new keeper"


def _left_alone(context: Context, record: KeptRecord) -> str | None:
    """Why a record is not ours to take; None: it may be taken over."""
    elsewhere = _elsewhere(context, record)
    if elsewhere is not None:
        return elsewhere
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
        if not is_here(keeper.process) and (until := busy_until(record)) > now:
            return f"kept on {keeper.process.host} until {until:%H:%M:%S} UTC"
    client = record.client.process
    if keeper is None and client is not None and record.live and not is_provably_dead(client):
        if now - record.created_at < timedelta(seconds=JUST_ASKED_SECONDS):
            return JUST_ASKED
        if not is_here(client) and record.renewed_until > now:
            return f"its client on {client.host} may be alive until {record.renewed_until:%H:%M:%S} UTC"
    return TERRAFORM_RUNS if must_wait_for(context, record) else None


def _elsewhere(context: Context, record: KeptRecord) -> str | None:
    """Why a record is another home's or another host's; None: it may be looked at from here."""
    host = on_another_host(context, record)
    if host is not None:
        return f"it is on {host}: only a reaper there can prove it gone"
    return why_foreign(context, record)


def _pid_of(record: KeptRecord) -> tuple[int, str] | None:
    return None if record.keeper is None else (record.keeper.process.pid, record.keeper.process.start_time)


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


def _prepared(context: Context, record: KeptRecord, *, on_the_desk: bool) -> KeptRecord:
    """Have a record looked at by the keeper: its card lies on the desk afterwards."""
    if isinstance(record, EndpointRecord) and record.state is State.READY and _expired(context, record):
        record = begin_release(context, record.id, reason="it expired", drain=False)
    elif not on_the_desk or not record.live:
        record = _another_try(context, record)
    lay(context, record)
    killpoint("reap-after-lay", context.home.root)
    return record


def _another_try(context: Context, record: KeptRecord) -> KeptRecord:
    """Have a release tried again now, and not when its keeper would next."""

    def change(now: KeptRecord) -> KeptRecord | None:
        if now.state not in {State.RELEASING, State.STUCK} or now.retry_at is None:
            return None
        return now.revised(retry_at=None)

    return revise(context.ledger, record.id, change, actor=context.actor, reason="the reaper has it tried again")


def _settled(context: Context, record_id: str, failures: int, until: float) -> tuple[str, str]:
    """Wait until a record is released, has failed once more, or goes on under a keeper; say which, and why."""
    began = time.monotonic()
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
            return "skipped", f"{STILL_AT_IT}: {record.state} ({record.reason})"
        # A twentieth of what was waited already: a look is a read of a store that may be far away.
        time.sleep(min(1.0, POLL_SECONDS + (time.monotonic() - began) / 20))


def _goes_on(context: Context, record: KeptRecord) -> bool:
    """Whether nothing calls for an operation that would end a live record."""
    alone = isinstance(record, EndpointRecord | RolloutRecord) and stands(record)
    if not alone and why_gone(record, context.ledger.now()) is not None:
        return False
    if record.state is not State.READY:
        return True
    due = due_at(record)
    return due is None or due > context.ledger.now().timestamp()


def _end_hung_watcher(context: Context, there: Sequence[KeptRecord]) -> None:
    """End a watcher of this home that lives and keeps nothing: it has renewed none of its leases for two windows.

    It may be ended at any moment without loss, so what a sleeping host looks like does no harm either.
    """
    alive = watcher_identity(context.home)
    limit = context.ledger.now() - timedelta(seconds=TTL_SECONDS)
    kept = [
        record
        for record in there
        if record.live and isinstance(record, LeaseRecord) and alive is not None and _pid_of(record) == alive
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
