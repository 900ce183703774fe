"""Release: idempotent, fenced, resumable and ordered; it never says `released` with anything left.

The order is the promise: mark, drain (checkpoint and upload, bounded), stop the meter, destroy each attempt, sweep, look
again, receipt. One undeletable attempt never stops the others (rule R9); what fails is tried again for ever.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

from mlinfra_prefect.errors import LeaseLost, MlinfraError, NotYetDestroyed
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.provisioning import change_attempt
from mlinfra_prefect.lifecycle.training import collect_all
from mlinfra_prefect.model.lease import LIVE, Attempt, AttemptState, EndpointRecord, LeaseRecord, State
from mlinfra_prefect.model.receipt import Receipt, Search

DESTROY_SECONDS = 600.0
"""The deadline of destroying one attempt."""
UPLOAD_SECONDS = 60.0
"""What a drain may take beyond the grace, for uploads."""
STUCK_AFTER = 3
"""Failed passes after which a lease is `stuck`: shown in red, still retried for ever."""
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Between release passes; the last one for ever."""


def begin_release(context: Context, record_id: str, *, reason: str, drain: bool = True) -> KeptRecord:
    """Mark a record as releasing: one small write, from any process. Idempotent; an absent record is an error.

    Args:
        context: where.
        record_id: which lease or endpoint.
        reason: for the history and the receipt.
        drain: whether the node gets *checkpoint now* first.

    Returns:
        The record as it stands: releasing, or further on already.

    Raises:
        NotFound: there is none of that id.
    """

    def change(current: KeptRecord) -> KeptRecord | None:
        if current.state not in LIVE:
            return None
        return current.revised(state=State.RELEASING, reason=reason, releasing_at=context.ledger.now(), drain=drain)

    return revise(context.ledger, record_id, change, actor=context.actor, reason=reason)


def release_pass(context: Context, record: KeptRecord) -> KeptRecord:
    """Try once to bring a releasing or stuck record to `released`. Runs in an operation; resumable at any step.

    Raises:
        LeaseLost: a newer keeper took over: nothing more was touched.
    """
    if record.state is State.STUCK:
        record = _mark(context, record, "another pass", state=State.RELEASING)
    problems: list[str] = []
    if record.drain and isinstance(record, LeaseRecord):
        _drain(context, record)
    for attempt in record.attempts:
        if attempt.state is AttemptState.RELEASED:
            continue
        try:
            record = release_attempt(context, record, attempt, until=time.time() + DESTROY_SECONDS)
        except LeaseLost:
            raise
        except MlinfraError as error:
            problems.append(f"attempt {attempt.number}: {' '.join(str(error).split())}")
    searches: list[Search] = []
    platform = context.platform(record.platform)
    if not problems:
        searches = [platform.sweep(record)]
        # Three looks at most: what the first one ended must not be found by the last two.
        while len(searches) < 2 or (any(s.found for s in searches[-2:]) and len(searches) < 4):
            time.sleep(platform.consistency_seconds)
            searches.append(platform.sweep(record))
        if any(search.found for search in searches[-2:]):
            problems.append(f"still there: {', '.join(searches[-1].found)}")
    if problems:
        return _failed(context, record, "; ".join(problems))
    for attempt in record.attempts:
        platform.tidy(record, attempt)
    return _released(context, record, searches)


def release_attempt(context: Context, record: KeptRecord, attempt: Attempt, *, until: float) -> KeptRecord:
    """Stop the meter of one attempt and destroy it. Idempotent.

    Raises:
        NotYetDestroyed: something of it is left.
        TerraformFailed, OperationTimedOut: as the driver says.
    """
    platform = context.platform(record.platform)
    if attempt.state is not AttemptState.RELEASING:
        record = change_attempt(
            context, record, attempt.number, f"giving attempt {attempt.number} back",
            state=AttemptState.RELEASING, operation="destroy",
        )  # fmt: skip
    platform.stop_meter(record, attempt)
    created, destroyed = attempt.resources, attempt.destroyed
    place = Path(attempt.directory)
    if place.is_dir():
        stack = context.open_stack(place, record, attempt.number)
        created = created or stack.resources()
        done = stack.destroy(deadline=until)
        destroyed = tuple(dict.fromkeys((*destroyed, *done.destroyed)))
        if done.remaining:
            raise NotYetDestroyed(f"{record.id}/{attempt.number} still has {', '.join(done.remaining)}.")
    return change_attempt(
        context, record, attempt.number, f"attempt {attempt.number} is destroyed",
        state=AttemptState.RELEASED, resources=created, destroyed=destroyed or created, operation=None,
        operation_deadline=None, gone_at=context.ledger.now(),
    )  # fmt: skip


def _drain(context: Context, record: LeaseRecord) -> None:
    """*Checkpoint now*, wait for uploads, keep what is finished. Bounded; skipped past the hard deadline."""
    attempt = record.attempt
    if attempt is None or attempt.state is not AttemptState.UP:
        return
    node = context.platform(record.platform).node(attempt)
    until = min(time.time() + record.request.grace_seconds + UPLOAD_SECONDS, record.deadline.timestamp())
    grace = min(record.request.grace_seconds, max(0.1, until - time.time()))
    if node.alive():
        node.stop(None, grace_seconds=grace)
        while time.time() < until and node.alive():
            statuses = [node.status(job) for job in node.jobs()]
            if all(status is not None and status.ended for status in statuses):
                break
            time.sleep(0.05)
    collect_all(context, record)


def _mark(context: Context, record: KeptRecord, reason: str, **changes: object) -> KeptRecord:
    return revise(
        context.ledger, record.id, lambda current: current.revised(**changes),
        actor=context.actor, reason=reason, generation=record.generation,
    )  # fmt: skip


def _failed(context: Context, record: KeptRecord, why: str) -> KeptRecord:
    failures = record.failures + 1
    wait = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
    state = State.STUCK if failures >= STUCK_AFTER else State.RELEASING
    return _mark(
        context, record, f"release pass {failures} failed: {why}"[:500],
        state=state, failures=failures, retry_at=context.ledger.now() + timedelta(seconds=wait),
        reason=f"{failures} release passes failed: {why}"[:500],
    )  # fmt: skip


def _released(context: Context, record: KeptRecord, searches: list[Search]) -> KeptRecord:
    def change(current: KeptRecord) -> KeptRecord:
        now = context.ledger.now()
        up = sum(
            ((a.gone_at or now) - (a.up_at or a.applied_at or now)).total_seconds() for a in current.attempts if a.applied_at
        )
        jobs = current.jobs if isinstance(current, LeaseRecord) else ()
        trained = sum((j.finished_at - j.started_at).total_seconds() for j in jobs if j.started_at and j.finished_at)
        served = up if isinstance(current, EndpointRecord) else 0.0
        receipt = Receipt(
            kind=current.kind,
            id=current.id,
            ledger_id=current.ledger_id,
            reason=current.reason,
            attempts=len(current.attempts),
            created=tuple(f"{a.number}/{r}" for a in current.attempts for r in a.resources),
            destroyed=tuple(f"{a.number}/{r}" for a in current.attempts for r in a.destroyed),
            searches=tuple(searches),
            requested_at=current.created_at,
            released_at=now,
            up_seconds=max(0.0, up),
            trained_seconds=max(0.0, trained),
            idle_seconds=max(0.0, up - trained - served),
            cost_usd=round(
                sum(
                    ((a.gone_at or now) - a.applied_at).total_seconds() / 3600 * a.offer.usd_per_hour
                    for a in current.attempts
                    if a.applied_at
                ),
                6,
            ),
        )
        changes: dict[str, object] = {
            "state": State.RELEASED, "released_at": now, "receipt": receipt, "retry_at": None,
        }  # fmt: skip
        if isinstance(current, EndpointRecord):
            changes["versions"] = tuple(v.revised(state="retired", share=0) for v in current.versions)
        return current.revised(**changes)

    return revise(
        context.ledger, record.id, change, actor=context.actor,
        reason=f"released: {record.reason}"[:500], generation=record.generation,
    )  # fmt: skip
