"""Provision: from a durable record to a node or a server that is really there. Runs in an operation of the keeper.

An ephemeral state is applied once; a new try is a new attempt with a state of its own. What Terraform reports is a
claim: an attempt is *up* when the platform says that what was applied exists.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import (
    KeeperUnavailable,
    LeaseLost,
    MlinfraError,
    PermanentError,
    TemporaryError,
    TerraformFailed,
)
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.clients import look_at_client, stands_by_itself, still_wanted
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import attempt_of, begin_release, current, mark, mark_attempt
from mlinfra_prefect.lifecycle.planning import choose_offer
from mlinfra_prefect.lifecycle.releasing import release_attempt
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord, State
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.offer import Offer

PROVISION_SECONDS = 900.0
"""The deadline of one provisioning operation, installation of a server's environment included."""
MAX_ATTEMPTS = 2
"""How many attempts are made on the local platform, one after the other, before it is given up."""


def provision(context: Context, record: KeptRecord) -> KeptRecord:
    """Bring a requested record up, or leave it `releasing` with the reason.

    Idempotent: goes on with the attempt that an earlier operation left half-way. What was only planned is planned
    again; what was applied is looked at, kept if it is whole, and else given back before the next attempt.

    Returns:
        The record: ready, or no longer provisioning because somebody released it, its client is gone, or every
        attempt failed.

    Raises:
        LeaseLost: a newer keeper took over.
    """
    problem: MlinfraError | None = None
    fresh = 0
    while record.state in {State.REQUESTED, State.PROVISIONING}:
        record = look_at_client(context, record)
        if not record.live:
            break
        attempt = record.attempt
        try:
            if attempt is None or attempt.state is AttemptState.RELEASED:
                if _failed_in_a_row(record) >= MAX_ATTEMPTS:
                    return fail(context, record, problem or _interrupted(record))
                record = _add_attempt(context, record)
                fresh = len(record.attempts)
                killpoint("after-attempt", context.home.root)
            elif attempt.state is AttemptState.PLANNED:
                if attempt.number != fresh:
                    record = _note_plan(context, record, attempt)
                record = _apply(context, record, attempt.number)
            elif attempt.state is AttemptState.APPLYING:
                record = _look_at_leftover(context, record, attempt)
            else:
                record = _abandon(context, record, attempt)
        except LeaseLost:
            raise
        except (MlinfraError, OSError) as error:
            problem = error if isinstance(error, MlinfraError) else TemporaryError(f"Provisioning failed: {error}.")
            record = _next(context, current(context, record), problem)
    return record


def fail(context: Context, record: KeptRecord, problem: MlinfraError) -> KeptRecord:
    """Leave a record `releasing` because of a problem that the client will be told."""
    text = " ".join(str(problem).split())
    error = type(problem).__name__
    if stands_by_itself(context, record):  # a repair that failed: what is left serves on, and this is told
        return mark(context, record, f"repair failed: {text}", state=State.READY, reason=as_line(text))
    return begin_release(context, record.id, reason=text, drain=False, error=error, generation=record.generation)


def _failed_in_a_row(record: KeptRecord) -> int:
    """How many attempts were not up since the last one that was: what served for months may be repaired as often."""
    count = 0
    for attempt in reversed(record.attempts):
        if attempt.up_at is not None:
            break
        count += 1
    return count


def _interrupted(record: KeptRecord) -> MlinfraError:
    return KeeperUnavailable(f"The keeper was ended in each of {len(record.attempts)} attempts before anything was up.")


def _next(context: Context, record: KeptRecord, problem: MlinfraError) -> KeptRecord:
    """Give the failed attempt back so that another one can follow, or give up."""
    record = look_at_client(context, record)
    if not record.live:
        return record
    attempt = record.attempt
    if isinstance(problem, PermanentError) or not isinstance(record, LeaseRecord) or attempt is None:
        return fail(context, record, problem)
    try:
        return _abandon(context, record, attempt)
    except LeaseLost:
        raise
    except (MlinfraError, OSError):
        return fail(context, record, problem)  # release goes on with it, for ever


def _add_attempt(context: Context, record: KeptRecord) -> KeptRecord:
    offer = _offer_for(context, record)
    number = len(record.attempts) + 1
    place = context.home.record_dir(record.id) / str(number)
    attempt = Attempt(
        number=number, offer=offer, stack="planned", directory=str(place / "terraform"), node_dir=str(place / "node"),
        engine=f"{context.engine.name} {context.engine.version}", operation="plan",
        operation_deadline=_until(context, record),
    )  # fmt: skip

    def change(now: KeptRecord) -> KeptRecord | None:
        return now.revised(state=State.PROVISIONING, attempts=(*now.attempts, attempt)) if now.live else None

    reason = f"attempt {number}: {offer.type} in {offer.region}"
    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _offer_for(context: Context, record: KeptRecord) -> Offer:
    if isinstance(record, LeaseRecord):
        return choose_offer(context, record.request)[1]
    return Offer(type="local", region="local", market="on-demand", usd_per_hour=0.0, gpus=0)


def _note_plan(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    reason = f"planning attempt {attempt.number} again"
    return mark_attempt(
        context, record, attempt.number, reason,
        only_live=True, operation="plan", operation_deadline=_until(context, record),
    )  # fmt: skip


def _until(context: Context, record: KeptRecord) -> datetime:
    """The deadline, on the ledger's clock, of a provisioning operation that begins now."""
    until = context.ledger.now() + timedelta(seconds=PROVISION_SECONDS)
    if record.deadline is not None:
        until = min(until, record.deadline)
    if isinstance(record, RolloutRecord) and record.promoted_at is None:
        until = min(until, record.until)
    return until


def _apply(context: Context, record: KeptRecord, number: int) -> KeptRecord:
    """Plan an attempt whose operation is recorded, and apply that very plan."""
    attempt = attempt_of(current(context, record), number)
    until = context.here(attempt.operation_deadline or _until(context, record))
    context.tell(record)
    platform = context.platform(record.platform)
    directory = Path(attempt.directory)
    private_folder(directory.parent)
    stack_input = platform.stack(record, attempt)
    stack = context.open_stack(directory, record, attempt.number)
    stack.prepare(stack_input.root_module, stack_input.variables, deadline=until)
    stack.plan(deadline=until)
    record = look_at_client(context, record)
    if record.live:
        record = mark_attempt(
            context, record, attempt.number, f"applying {stack_input.name}", only_live=True,
            state=AttemptState.APPLYING, stack=stack_input.name, operation="apply", applied_at=context.ledger.now(),
        )  # fmt: skip
    if not record.live:
        return record  # released while it was planned: nothing exists, so nothing is applied
    killpoint("before-apply", context.home.root)
    applied = stack.apply(deadline=until)
    killpoint("after-apply", context.home.root)
    platform.check_up(record, attempt, until, still_wanted(context, record))
    return _up(context, record, attempt, "applied and found up", applied.resources)


def _look_at_leftover(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    """Keep what an interrupted apply left, if it is whole; else give that attempt back."""
    stack = context.open_stack(Path(attempt.directory), record, attempt.number)
    platform = context.platform(record.platform)
    try:
        resources = () if stack.suspect else stack.resources()
    except TerraformFailed:
        resources = ()  # it cannot be read, so nothing of it can be kept
    if not resources or not platform.is_up(record, attempt):
        return _abandon(context, record, attempt)
    until = context.here(attempt.operation_deadline or _until(context, record))
    platform.check_up(record, attempt, until, still_wanted(context, record))
    return _up(context, record, attempt, "found whole after an interrupted apply", resources)


def _up(context: Context, record: KeptRecord, attempt: Attempt, reason: str, resources: tuple[str, ...]) -> KeptRecord:
    """The attempt is up and the record ready, in one write: an operation that dies here leaves no attempt behind."""
    record = look_at_client(context, record)
    killpoint("before-ready", context.home.root)

    def change(now: KeptRecord) -> KeptRecord:
        moment = context.ledger.now()
        up = {
            "state": AttemptState.UP, "resources": resources, "operation": None, "operation_deadline": None,
            "up_at": moment,
        }  # fmt: skip
        changes: dict[str, Any] = {
            "attempts": tuple(a.revised(**up) if a.number == attempt.number else a for a in now.attempts)
        }
        if now.live:
            changes |= {"state": State.READY, "reason": "", "ready_at": moment}
        return now.revised(**changes)

    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _abandon(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    """Give an attempt back before the next one begins."""
    if attempt.state is AttemptState.RELEASED:
        return record
    return release_attempt(context, record, attempt.number)


def renewed(record: KeptRecord, now: datetime, ttl_seconds: float) -> KeptRecord | None:
    """Return the record renewed, never past its hard deadline; None when it is not live (rule R4)."""
    if not record.live:
        return None
    until = now + timedelta(seconds=ttl_seconds)
    if record.deadline is not None:
        until = min(until, record.deadline)
    return record.revised(renewed_until=until)
