"""Provision: from a durable record to a node or a server that is really there. Runs in an operation of the keeper.

An ephemeral state is applied once; a new try is a new attempt with a state of its own. What Terraform reports is a
claim: an attempt is *up* when the platform says that what was applied exists.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import (
    KeeperUnavailable,
    LeaseLost,
    MlinfraError,
    NotYetDestroyed,
    PermanentError,
    TemporaryError,
    TerraformFailed,
)
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle import ladder
from mlinfra_prefect.lifecycle.budget import refuse_beyond_cap, worst_case_usd
from mlinfra_prefect.lifecycle.clients import look_at_client, stands_by_itself, still_wanted
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.ladder import is_past, next_rung, tried
from mlinfra_prefect.lifecycle.late import end_late, given_up
from mlinfra_prefect.lifecycle.marking import attempt_of, begin_release, current, mark, mark_attempt
from mlinfra_prefect.lifecycle.planning import affordable_rungs, check_plan
from mlinfra_prefect.lifecycle.releasing import release_attempt, stop_attempt
from mlinfra_prefect.lifecycle.waiting import next_round, wait, waits
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord, State
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.stack import Found

MOST_TOLD = 3
"""Attempts that the reason of a lease that was given up names."""
PROVISION_SECONDS = 900.0
"""The deadline of one provisioning operation: a machine's boot, or the installation of a server's environment."""


def provision(context: Context, record: KeptRecord) -> KeptRecord:
    """Bring a requested record up, or leave it `releasing` with the reason.

    Idempotent: goes on with the attempt that an earlier operation left half-way. What was only planned is planned
    again; what was applied is looked at, kept if it is whole, and else given back before the next attempt.

    Returns:
        The record: ready; or waiting for a machine; or no longer provisioning because somebody released it, its client
        is gone, or every attempt failed.

    Raises:
        LeaseLost: a newer keeper took over.
    """
    problem: MlinfraError | None = None
    fresh = 0
    platform = context.platform(record.platform)
    while record.state in {State.REQUESTED, State.PROVISIONING}:
        record = look_at_client(context, record)
        now = context.ledger.now()
        if not record.live or waits(record, now) or (record.deadline is not None and now >= record.deadline):
            break
        attempt = record.attempt
        try:
            if attempt is None or is_past(platform, attempt):
                record, problem = _begin_attempt(context, record, problem), None
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


def _begin_attempt(context: Context, record: KeptRecord, problem: MlinfraError | None) -> KeptRecord:
    """Add the next attempt; where nothing more is tried now, wait, or leave the record `releasing`."""
    if len(tried(record)) >= context.platform(record.platform).most_attempts:
        why = problem or _last_word(record)
    else:
        try:
            return _add_attempt(context, record, *_next_rung(context, record))
        except LeaseLost:
            raise
        except MlinfraError as error:
            why = _no_more(record, error, problem)
    until = next_round(record, why, context.ledger.now())
    return fail(context, record, why) if until is None else wait(context, record, why, until)


def fail(context: Context, record: KeptRecord, problem: MlinfraError) -> KeptRecord:
    """Leave a record `releasing` because of a problem that the client will be told."""
    text = " ".join(str(problem).split())
    error = type(problem).__name__
    if stands_by_itself(context, record):  # a repair that failed: what is left serves on, and this is told
        return mark(context, record, f"repair failed: {text}", state=State.READY, reason=as_line(text))
    return begin_release(context, record.id, reason=text, drain=False, error=error, generation=record.generation)


def _last_word(record: KeptRecord) -> MlinfraError:
    """Why the last attempt failed, where the operation that met it is gone."""
    last = tried(record)[-1]
    if ladder.lacked(last):
        kind, _, text = last.outcome.partition(": ")
        return next(error for error in ladder.ENDS if error.__name__ == kind)(text)
    return KeeperUnavailable(f"The keeper was ended in each of {len(record.attempts)} attempts before anything was up.")


def _next(context: Context, record: KeptRecord, problem: MlinfraError) -> KeptRecord:
    """Give the failed attempt back so that another one can follow, or give up."""
    record = look_at_client(context, record)
    if not record.live:
        return record
    attempt = record.attempt
    if attempt is not None:
        outcome = as_line(f"{type(problem).__name__}: {problem}")
        record = mark_attempt(context, record, attempt.number, f"attempt {attempt.number}: {outcome}", outcome=outcome)
    if isinstance(problem, PermanentError) or not isinstance(record, LeaseRecord) or attempt is None:
        return fail(context, record, problem)
    try:
        return _abandon(context, record, attempt)
    except LeaseLost:
        raise
    except (MlinfraError, OSError):
        return fail(context, record, problem)  # release goes on with it, for ever


def _add_attempt(
    context: Context, record: KeptRecord, rung: tuple[Offer, ...], deadline: datetime | None
) -> KeptRecord:
    # Until it is known which of them it has become, the dearest is what it may cost.
    offer = max(rung, key=lambda each: each.usd_per_hour)
    number = len(record.attempts) + 1
    place = context.home.record_dir(record.id) / str(number)
    attempt = Attempt(
        number=number, offer=offer, candidates=rung if len(rung) > 1 else (), stack="planned",
        directory=str(place / "terraform"), node_dir=str(place / "node"),
        engine=f"{context.engine.name} {context.engine.version}", operation="plan",
        operation_deadline=_until(context, record),
    )  # fmt: skip
    changes: dict[str, Any] = {"retry_at": None}
    if deadline is not None:
        changes["deadline"] = deadline
    if record.retry_at is not None:
        changes["reason"] = ""  # it was that it waits
    if isinstance(record, LeaseRecord):
        now = context.ledger.now()
        spent = sum(each.cost_usd(now) for each in record.attempts)
        left = ((deadline or record.deadline) - now).total_seconds()
        changes["reserved_usd"] = worst_case_usd(record.request, offer.usd_per_hour, left, spent)
        refuse_beyond_cap(context, record.revised(**changes))

    def change(now: KeptRecord) -> KeptRecord | None:
        if not now.live:
            return None
        return now.revised(state=State.PROVISIONING, attempts=(*now.attempts, attempt), **changes)

    reason = as_line(f"attempt {number}: {', '.join(dict.fromkeys(each.type for each in rung))} in {offer.region}")
    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _next_rung(context: Context, record: KeptRecord) -> tuple[tuple[Offer, ...], datetime | None]:
    """What is tried next, and until when the money lasts for that (rule R5); None: the deadline stays as it is."""
    if not isinstance(record, LeaseRecord):
        return (Offer(type="local", region="local", market="on-demand", usd_per_hour=0.0, gpus=0),), None
    rung = next_rung(record, affordable_rungs(context, record.request))
    price = max(each.usd_per_hour for each in rung)
    return rung, ladder.deadline(record, price, context.ledger.now())


def _no_more(record: KeptRecord, error: MlinfraError, problem: MlinfraError | None = None) -> MlinfraError:
    """Why nothing more is tried, with what became of each attempt; `problem` ended the last one."""
    if type(error) not in ladder.ENDS:
        return error
    if problem is not None and not any(ladder.lacked(each) for each in tried(record)):
        # Nobody lacked machines: to look for another region or accelerator would help nobody.
        return type(problem)(f"{error.message} The last attempt: {problem.message}", problem.remedy)
    # In a word each: a dozen attempts have to fit into a reason, and the attempts table has the rest.
    told = [
        f"attempt {a.number}, {ladder.described(a)}: {a.outcome.partition(':')[0]}" for a in tried(record) if a.outcome
    ]
    more = [f"{len(told) - MOST_TOLD} before"] if len(told) > MOST_TOLD else []
    last = "; ".join([*more, *told[-MOST_TOLD:]])
    return type(error)(f"{error.message} {last}." if last else error.message, error.remedy)


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
    directory = context.directory(record, attempt.directory)
    private_folder(directory.parent)
    stack_input = platform.stack(record, attempt)
    stack = context.open_stack(directory, record, attempt.number)
    stack.prepare(
        stack_input.root_module, stack_input.variables,
        deadline=until, within=stack_input.within, init_cache=context.home.init_cache,
    )  # fmt: skip
    check_plan(stack_input, stack.plan(deadline=until), stack.module)
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
    found = platform.check_up(record, attempt, applied.outputs, until, still_wanted(context, record))
    return _up(context, record, attempt, "applied and found up", resources=applied.resources, found=found)


def _look_at_leftover(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    """Keep what an interrupted apply left, if it is whole; else give that attempt back."""
    stack = context.open_stack(context.directory(record, attempt.directory), record, attempt.number)
    platform = context.platform(record.platform)
    try:
        resources = () if stack.suspect else stack.resources()
    except TerraformFailed:
        resources = ()  # it cannot be read, so nothing of it can be kept
    if not resources or not platform.is_up(record, attempt):
        return _abandon(context, record, attempt)
    until = context.here(attempt.operation_deadline or _until(context, record))
    found = platform.check_up(record, attempt, stack.outputs(), until, still_wanted(context, record))
    return _up(context, record, attempt, "found whole after an interrupted apply", resources=resources, found=found)


def _up(
    context: Context, record: KeptRecord, attempt: Attempt, reason: str, *, resources: tuple[str, ...], found: Found
) -> KeptRecord:
    """The attempt is up and the record ready, in one write: an operation that dies here leaves no attempt behind."""
    record = look_at_client(context, record)
    with suppress(NotYetDestroyed):  # the keeper looks again, so nothing good is given back for that
        record = end_late(context, record, given_up(record))
    killpoint("before-ready", context.home.root)

    def change(now: KeptRecord) -> KeptRecord:
        moment = context.ledger.now()
        up = {
            "state": AttemptState.UP, "resources": resources, "operation": None, "operation_deadline": None,
            "up_at": moment, "nodes": found.nodes, "fleet": found.fleet, "mailbox": found.mailbox,
            "launched_at": found.launched_at, "offer": found.offer or attempt.offer,
        }  # fmt: skip
        changes: dict[str, Any] = {
            "attempts": tuple(a.revised(**up) if a.number == attempt.number else a for a in now.attempts)
        }
        if now.live:
            changes |= {"state": State.READY, "reason": "", "ready_at": moment}
        return now.revised(**changes)

    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _abandon(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    """Give an attempt back before the next one begins, or what of it costs money, where the rest may wait."""
    if attempt.state is AttemptState.RELEASED:
        return record
    if context.platform(record.platform).destroys_later:
        # Without an outcome it would count as still being given back (`is_past`), for ever; who met it has told it.
        if not attempt_of(record, attempt.number).outcome:
            outcome = f"{KeeperUnavailable.__name__}: the operation that made it was ended."
            why = f"attempt {attempt.number}: {outcome}"
            record = mark_attempt(context, record, attempt.number, why, outcome=outcome)
        return stop_attempt(context, record, attempt.number)
    return release_attempt(context, record, attempt.number)


def renewed(record: KeptRecord, now: datetime, ttl_seconds: float) -> KeptRecord | None:
    """Return the record renewed, never past its hard deadline; None when it is not live (rule R4)."""
    if not record.live:
        return None
    until = now + timedelta(seconds=ttl_seconds)
    if record.deadline is not None:
        until = min(until, record.deadline)
    return record.revised(renewed_until=until)
