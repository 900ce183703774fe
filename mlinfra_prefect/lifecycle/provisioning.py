"""Provision: from a durable record to a node or a server that is really there. Runs in an operation of the keeper.

An ephemeral state is applied once; a new try is a new attempt with a state of its own. What Terraform reports is a
claim: an attempt is *up* when the platform says that what was applied exists.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlinfra_prefect.errors import (
    BudgetExceeded,
    CapacityUnavailable,
    InvalidInput,
    LeaseLost,
    MlinfraError,
    PermanentError,
)
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.planning import choose_offer
from mlinfra_prefect.model.lease import Attempt, AttemptState, EndpointRecord, LeaseRecord, State
from mlinfra_prefect.model.offer import Offer

PROVISION_SECONDS = 900.0
"""The deadline of one provisioning operation, installation of a server's environment included."""
MAX_ATTEMPTS = 2
"""How many attempts a lease makes on the local platform before it gives up."""

Note = Callable[..., KeptRecord]


def noting(context: Context, record_id: str, generation: int) -> Note:
    """Return a function that changes one record under one fencing generation."""

    def note(reason: str, **changes: Any) -> KeptRecord:
        def change(record: KeptRecord) -> KeptRecord:
            return record.revised(**changes)

        return revise(
            context.ledger, record_id, change, actor=context.actor, reason=reason, generation=generation
        )

    return note


def change_attempt(context: Context, record: KeptRecord, number: int, reason: str, **changes: Any) -> KeptRecord:
    """Change one attempt of a record under the record's generation; returns the record as it stands now."""

    def change(current: KeptRecord) -> KeptRecord:
        attempts = tuple(a.revised(**changes) if a.number == number else a for a in current.attempts)
        return current.revised(attempts=attempts)

    return revise(
        context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation
    )


def provision(context: Context, record: KeptRecord) -> KeptRecord:
    """Bring a requested record up, or leave it `releasing` with the reason.

    Idempotent: an attempt that an earlier operation left half-way is looked at, and kept if what it made is whole.

    Returns:
        The record: ready, or no longer provisioning because somebody released it or every attempt failed.

    Raises:
        LeaseLost: a newer keeper took over.
    """
    attempt = record.attempt
    if attempt is not None and attempt.state in {AttemptState.PLANNED, AttemptState.APPLYING}:
        record = _look_at_leftover(context, record, attempt)
        if record.state is not State.PROVISIONING or record.attempt is None or record.attempt.state is AttemptState.UP:
            return record
    problem: MlinfraError | None = None
    while record.state in {State.REQUESTED, State.PROVISIONING} and len(record.attempts) < MAX_ATTEMPTS:
        try:
            record = _try_attempt(context, record)
        except LeaseLost:
            raise
        except MlinfraError as error:
            problem = error
            record = _current(context, record)
            if isinstance(error, PermanentError) or not record.live or isinstance(record, EndpointRecord):
                break
            record = _abandon(context, record)
            continue
        return record
    record = _current(context, record)
    if not record.live or record.state is State.READY:
        return record
    if problem is None:
        problem = CapacityUnavailable(f"{len(record.attempts)} attempts ended before anything was up.")
    return fail(context, record, problem)


def fail(context: Context, record: KeptRecord, problem: MlinfraError) -> KeptRecord:
    """Leave a record `releasing` because of a problem that the client will be told."""
    text = " ".join(str(problem).split())[:500]
    return _begin_release(context, record, text, error=type(problem).__name__)


def _begin_release(context: Context, record: KeptRecord, reason: str, *, error: str) -> KeptRecord:
    def change(current: KeptRecord) -> KeptRecord | None:
        if not current.live:
            return None
        return current.revised(
            state=State.RELEASING, reason=reason, error=error, releasing_at=context.ledger.now(), drain=False
        )

    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _current(context: Context, record: KeptRecord) -> KeptRecord:
    found = context.ledger.read(record.id)
    if found is None or found.record.generation != record.generation:
        raise LeaseLost(f"{record.id} was taken over while it was being provisioned.")
    return found.record


def _look_at_leftover(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    """Keep what an interrupted operation left, if it is whole; else give that attempt back."""
    stack = context.open_stack(Path(attempt.directory), record, attempt.number)
    platform = context.platform(record.platform)
    resources = stack.resources() if Path(attempt.directory).is_dir() and not stack.suspect else ()
    if resources and platform.is_up(record, attempt):
        record = change_attempt(
            context, record, attempt.number, "found whole after an interrupted apply",
            state=AttemptState.UP, resources=resources, up_at=context.ledger.now(),
        )  # fmt: skip
        return _ready(context, record)
    return _abandon(context, record)


def _try_attempt(context: Context, record: KeptRecord) -> KeptRecord:
    offer = _offer_for(context, record)
    number = len(record.attempts) + 1
    place = context.home.record_dir(record.id) / str(number)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    platform = context.platform(record.platform)
    until = time.time() + PROVISION_SECONDS
    if record.deadline is not None:
        until = min(until, record.deadline.timestamp())
    deadline = datetime.fromtimestamp(until, UTC)
    attempt = Attempt(
        number=number, offer=offer, stack="planned", directory=str(place / "terraform"), node_dir=str(place / "node"),
        engine=f"{context.engine.name} {context.engine.version}", operation="plan", operation_deadline=deadline,
    )  # fmt: skip
    record = _add_attempt(context, record, attempt)
    stack_input = platform.stack(record, attempt)
    stack = context.open_stack(Path(attempt.directory), record, number)
    stack.prepare(stack_input.root_module, stack_input.variables, deadline=until)
    stack.plan(deadline=until)
    record = change_attempt(
        context, record, number, f"applying {stack_input.name}",
        state=AttemptState.APPLYING, stack=stack_input.name, operation="apply", applied_at=context.ledger.now(),
    )  # fmt: skip
    if not record.live:
        return record  # released while it was planned: nothing exists, so nothing is applied
    applied = stack.apply(deadline=until)
    platform.check_up(record, attempt, until)
    record = change_attempt(
        context, record, number, "applied and found up",
        state=AttemptState.UP, resources=applied.resources, operation=None, operation_deadline=None,
        up_at=context.ledger.now(),
    )  # fmt: skip
    return _ready(context, record)


def _offer_for(context: Context, record: KeptRecord) -> Offer:
    if isinstance(record, LeaseRecord):
        try:
            return choose_offer(context, record.request)[1]
        except (InvalidInput, BudgetExceeded, CapacityUnavailable):
            raise
    return Offer(type="local", region="local", market="on-demand", usd_per_hour=0.0, gpus=0)


def _add_attempt(context: Context, record: KeptRecord, attempt: Attempt) -> KeptRecord:
    def change(current: KeptRecord) -> KeptRecord | None:
        if not current.live:
            raise LeaseLost(f"{current.id} was released before attempt {attempt.number} began.")
        return current.revised(state=State.PROVISIONING, attempts=(*current.attempts, attempt))

    return revise(
        context.ledger, record.id, change, actor=context.actor,
        reason=f"attempt {attempt.number}: {attempt.offer.type} in {attempt.offer.region}", generation=record.generation,
    )  # fmt: skip


def _ready(context: Context, record: KeptRecord) -> KeptRecord:
    def change(current: KeptRecord) -> KeptRecord | None:
        if not current.live:
            return None
        now = context.ledger.now()
        changes: dict[str, Any] = {"state": State.READY, "reason": "", "ready_at": now}
        if isinstance(current, EndpointRecord):
            changes["versions"] = tuple(v.revised(state="serving") for v in current.versions)
        return current.revised(**changes)

    return revise(context.ledger, record.id, change, actor=context.actor, reason="ready", generation=record.generation)


def _abandon(context: Context, record: KeptRecord) -> KeptRecord:
    """Give the latest attempt back before the next one begins."""
    from mlinfra_prefect.lifecycle.releasing import release_attempt

    attempt = record.attempt
    if attempt is None or attempt.state is AttemptState.RELEASED:
        return record
    return release_attempt(context, record, attempt, until=time.time() + PROVISION_SECONDS)


def renewed(record: KeptRecord, now: datetime, ttl_seconds: float) -> KeptRecord | None:
    """Return the record renewed, never past its hard deadline; None when it is not live (rule R4)."""
    if not record.live:
        return None
    until = now + timedelta(seconds=ttl_seconds)
    if record.deadline is not None:
        until = min(until, record.deadline)
    return record.revised(renewed_until=until)
