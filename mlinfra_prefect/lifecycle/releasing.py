"""Release: idempotent, fenced, resumable and ordered; it never says `released` with anything left.

The order is the promise: mark, drain (checkpoint and upload, bounded), stop the meter, keep what is finished, destroy
each attempt, sweep, look again, receipt. One undeletable attempt never stops the others (rule R9); what fails is tried
again for ever. Every step is recorded with its deadline before it begins, so that the next operation can go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from mlinfra_prefect.errors import LeaseLost, LedgerUnavailable, MlinfraError, NotYetDestroyed, TerraformFailed
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.adopting import adopt_jobs
from mlinfra_prefect.lifecycle.collecting import ENDED, collect_all
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.leaving import leave_whole, withdraw
from mlinfra_prefect.lifecycle.marking import attempt_of, current, mark, mark_attempt
from mlinfra_prefect.lifecycle.receipts import write_receipt
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord, State
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.receipt import CLEAN_SWEEPS, Search
from mlinfra_prefect.terraform import Stack, in_flight

DESTROY = "destroy"
DESTROY_SECONDS = 600.0
"""The deadline of destroying one attempt."""
UPLOAD_SECONDS = 60.0
"""What a drain may take beyond the grace, for uploads."""
COLLECT_SECONDS = 3600.0
"""What storing the finished artifacts may take: they are copied and hashed on this host."""
STUCK_AFTER = 3
"""Failed passes after which a lease is `stuck`: shown in red, still retried for ever."""
BACKOFF_SECONDS = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
"""Between release passes; the last one for ever."""
MOST_SWEEPS = 4
DRAIN_POLL_SECONDS = 0.05


def release_pass(context: Context, record: KeptRecord) -> KeptRecord:
    """Try once to bring a releasing or stuck record to `released`. Runs in an operation; resumable at any step.

    Raises:
        LeaseLost: a newer keeper took over: nothing more was touched.
    """
    record = current(context, record)
    if record.state is State.STUCK:
        record = mark(context, record, "another pass", state=State.RELEASING)
    left = _left(record)
    problems: list[str] = []
    record = _stop(context, record, left, problems)
    if not isinstance(record, LeaseRecord):
        problems += leave_whole(context, record)
    if isinstance(record, LeaseRecord) and record.jobs and (left or _unended(record)):
        problems += _collect(context, record)
    record = _each(context, record, left, _destroy, problems)
    searches: list[Search] = []
    if not terraform_runs(record):
        searches = _sweep(context, record)  # also beside an attempt that cannot be destroyed: what runs costs money
        still = [name for search in searches[-CLEAN_SWEEPS:] for name in search.found]
        if still:
            problems.append(f"still there: {', '.join(dict.fromkeys(still))}")
    if problems:
        return _failed(context, record, "; ".join(dict.fromkeys(problems)))
    if isinstance(record, LeaseRecord) and record.jobs:
        record = current(context, record)  # what could not be kept was noted since
        if isinstance(record, LeaseRecord) and _unended(record):
            return _failed(context, record, "what became of its jobs could not be written down")
    for attempt in record.attempts:
        context.platform(record.platform).tidy(record, attempt)
    killpoint("before-receipt", context.home.root)
    return write_receipt(context, record, searches)


def stop_pass(context: Context, record: KeptRecord) -> list[str]:
    """Drain a releasing record and stop its meters: the part of a release that waits for no other one. Idempotent.

    The release pass that follows finds that done, and meets again whatever stood in the way, which is returned.

    Raises:
        LeaseLost: a newer keeper took over: nothing more was touched.
    """
    record = current(context, record)
    problems: list[str] = []
    _stop(context, record, _left(record), problems)
    return problems


def _left(record: KeptRecord) -> list[int]:
    return [attempt.number for attempt in record.attempts if attempt.state is not AttemptState.RELEASED]


def _stop(context: Context, record: KeptRecord, left: list[int], problems: list[str]) -> KeptRecord:
    try:
        if record.drain and isinstance(record, LeaseRecord):
            record = _drain(context, record)
        if isinstance(record, RolloutRecord):
            withdraw(context, record)
    except LeaseLost:
        raise
    except Exception as error:
        # Another pass may keep what would be lost now; but what costs money does not wait for that for ever.
        if time.time() < _patience(context, record):
            raise
        problems.append(f"it could not be drained: {error}")
    return _each(context, record, left, _stop_meter, problems)


def _patience(context: Context, record: KeptRecord) -> float:
    """Until when (epoch seconds, this host's) a release that cannot drain waits with the meter running."""
    began = record.releasing_at or record.created_at
    grace = record.request.grace_seconds if isinstance(record, LeaseRecord) else 0.0
    return context.here(began) + grace + UPLOAD_SECONDS


def _collect(context: Context, record: LeaseRecord) -> list[str]:
    """Keep what is finished; returns what stood in the way, which stops neither the destroying nor the sweep."""
    try:
        if record.attempt is not None:
            _note(context, record, record.attempt.number, "collect", COLLECT_SECONDS)
        collect_all(context, record)
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 (whatever a node wrote, too: what costs money is destroyed)
        return [f"finished work could not be kept: {error}"]
    return []


def _unended(record: LeaseRecord) -> bool:
    """Whether a job's end is not written down yet: an earlier pass could not."""
    return any(job.state not in ENDED for job in record.jobs)


def _each(
    context: Context,
    record: KeptRecord,
    numbers: list[int],
    step: Callable[[Context, KeptRecord, int], KeptRecord],
    problems: list[str],
) -> KeptRecord:
    """Take a step for each attempt; what fails for one is noted and does not stop the others."""
    for number in numbers:
        try:
            record = step(context, record, number)
        except LeaseLost:
            raise
        except (MlinfraError, OSError) as error:
            problems.append(f"attempt {number}: {error}")
    return record


def release_attempt(context: Context, record: KeptRecord, number: int) -> KeptRecord:
    """Stop the meter of one attempt and destroy it, while the record itself may go on. Idempotent.

    Raises:
        NotYetDestroyed: something of it is left.
        TerraformFailed, OperationTimedOut: as the driver says.
        LeaseLost: a newer keeper took over.
    """
    return _destroy(context, _stop_meter(context, record, number), number)


def stop_attempt(context: Context, record: KeptRecord, number: int) -> KeptRecord:
    """Stop the meter of one attempt, while the record itself goes on; the rest of it goes at release. Idempotent.

    Raises:
        TemporaryError: what costs money could not be ended.
        LeaseLost: a newer keeper took over.
    """
    return _stop_meter(context, record, number)


def record_failed_pass(context: Context, record: KeptRecord, why: str) -> KeptRecord:
    """Count a pass that failed in a way that nobody foresaw."""
    return _failed(context, current(context, record), why)


def _note(context: Context, record: KeptRecord, number: int, operation: str, seconds: float) -> KeptRecord:
    """Record an operation, and that it may take `seconds`, before it begins; nothing is begun that is not ours."""
    attempt = attempt_of(record, number)
    if attempt.state is AttemptState.RELEASED:
        return current(context, record)
    record = mark_attempt(
        context, record, number, f"attempt {number}: {operation}",
        operation=operation, operation_deadline=context.ledger.now() + timedelta(seconds=seconds),
    )  # fmt: skip
    context.tell(record)
    return record


def _drain(context: Context, record: LeaseRecord) -> KeptRecord:
    """*Checkpoint now*, and wait for the end of the training and its upload. Bounded; never past the hard deadline."""
    attempt = record.attempt
    if attempt is None or attempt.state is not AttemptState.UP:
        return record
    until = min(time.time() + record.request.grace_seconds + UPLOAD_SECONDS, context.here(record.deadline))
    if attempt.operation == "drain" and attempt.operation_deadline is not None:
        until = context.here(attempt.operation_deadline)  # begun by an operation that was killed: no longer for that
    if until <= time.time():
        return record
    adopt_jobs(context, record)
    node = context.platform(record.platform).node(attempt)
    if not node.jobs():
        return record
    noted = _note(context, record, attempt.number, "drain", until - time.time())
    killpoint("after-drain-mark", context.home.root)
    if node.alive():
        node.stop(None, grace_seconds=min(record.request.grace_seconds, max(0.1, until - time.time())))
        while time.time() < until and node.lives():
            statuses = [node.status(job) for job in node.jobs()]
            if all(status is not None and status.ended for status in statuses):
                break
            time.sleep(DRAIN_POLL_SECONDS)
    return noted


def _stop_meter(context: Context, record: KeptRecord, number: int) -> KeptRecord:
    attempt = attempt_of(record, number)
    try:
        record = mark_attempt(
            context, record, number, f"attempt {number}: stopping the meter, then destroying it",
            state=AttemptState.RELEASING, operation=DESTROY,
            operation_deadline=context.ledger.now() + timedelta(seconds=DESTROY_SECONDS),
        )  # fmt: skip
    except LedgerUnavailable:
        # A full disk takes no note. That the record goes was durable before, so what costs money still ends now.
        if not current(context, record).live:
            context.platform(record.platform).stop_meter(record, attempt)
        raise
    killpoint("before-stop-meter", context.home.root)
    try:
        context.tell(record)
    finally:  # a desk that cannot be written keeps no meter running
        platform = context.platform(record.platform)
        platform.stop_meter(record, attempt)
    killpoint("after-stop-meter", context.home.root)
    if platform.destroys_later and attempt.stopped_at is None and attempt.applied_at is not None:
        # What follows takes a while there, and costs nothing.
        now = context.ledger.now()
        record = mark_attempt(context, record, number, f"attempt {number}: the meter is stopped", stopped_at=now)
    return record


def _destroy(context: Context, record: KeptRecord, number: int) -> KeptRecord:
    attempt = attempt_of(record, number)
    platform, place = context.platform(record.platform), context.directory(record, attempt.directory)
    if attempt.applied_at is not None:
        platform.check_login(record)  # a state that is refreshed in another account names nothing
    created, destroyed, how = attempt.resources, attempt.destroyed, "is destroyed"
    if place.is_dir():
        if attempt.operation != DESTROY or attempt.operation_deadline is None:
            record = _note(context, record, number, DESTROY, DESTROY_SECONDS)
            attempt = attempt_of(record, number)
        record = current(context, record)  # nothing is destroyed that is not ours any more
        noted = attempt.operation_deadline
        until = context.here(noted) if noted else time.time() + DESTROY_SECONDS
        stack = context.open_stack(place, record, number)
        broken = stack.break_stale_lock()
        named = _named(stack)
        if named is None and platform.found_by_mark:
            how = "has a state that cannot be read: what carries its mark decides"
        else:
            created = _merged(created, named or ())
            if created != attempt.resources:
                record = mark_attempt(context, record, number, f"attempt {number}: what it has", resources=created)
            killpoint("before-destroy", context.home.root)
            done = stack.destroy(deadline=until)
            killpoint("after-destroy", context.home.root)
            if done.remaining:
                raise NotYetDestroyed(f"{record.id}/{number} still has {', '.join(done.remaining)}.")
            # A state that lost things says nothing about what it does not name.
            destroyed = _merged(destroyed, done.destroyed if stack.suspect else created)
        if broken is not None:
            how += f"; broke the lock {broken.id} that a dead Terraform of {broken.who} left"
    elif attempt.applied_at is not None:
        if not platform.found_by_mark:
            raise NotYetDestroyed(f"{record.id}/{number}: its Terraform directory {place} is gone.")
        how = "has lost its Terraform directory: what carries its mark decides"
    return mark_attempt(
        context, record, number, f"attempt {number} {how}",
        state=AttemptState.RELEASED, resources=created, destroyed=destroyed, operation=None,
        operation_deadline=None, gone_at=context.ledger.now(),
    )  # fmt: skip


def _named(stack: Stack) -> tuple[str, ...] | None:
    """What a state names; None where it cannot be read."""
    try:
        return stack.resources()
    except TerraformFailed:
        return None


def _merged(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*one, *other)))


def _sweep(context: Context, record: KeptRecord) -> list[Search]:
    """Look until the last two looks found nothing, a few times at most (rule R7). Ends what it finds.

    In a cloud what was told to end is seen for a while: there it is looked at for as long as that usually takes. For
    what could not be told to end nobody waits: the next pass tells it again.
    """
    platform = context.platform(record.platform)
    until = time.monotonic() + platform.settle_seconds
    searches = [platform.sweep(record)]
    while len(searches) < CLEAN_SWEEPS or any(search.found for search in searches[-CLEAN_SWEEPS:]):
        leaving = searches[-1].ended or searches[-1].going
        if len(searches) >= MOST_SWEEPS and not (leaving and time.monotonic() < until):
            break
        killpoint("between-sweeps", context.home.root)
        time.sleep(platform.consistency_seconds)
        searches.append(platform.sweep(record))
    # Looks that only saw it go say nothing to anybody.
    return [each for each in searches[:-CLEAN_SWEEPS] if each.ended] + searches[-CLEAN_SWEEPS:]


def _failed(context: Context, record: KeptRecord, why: str) -> KeptRecord:
    failures = record.failures + 1
    wait = BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS)) - 1]
    if any(attempt.state is AttemptState.UP for attempt in record.attempts):
        # Its meter still runs, for as long as what it did may be kept by another pass and no longer.
        wait = min(wait, max(1.0, _patience(context, record) - time.time()))
    told = as_line(" ".join(why.split()))
    state = State.STUCK if failures >= STUCK_AFTER else State.RELEASING
    return mark(
        context, record, f"release pass {failures} failed: {told}",
        state=state, failures=failures, retry_at=context.ledger.now() + timedelta(seconds=wait),
        reason=as_line(f"{failures} release passes failed: {told}"),
    )  # fmt: skip


def terraform_runs(record: KeptRecord) -> list[Attempt]:
    """The attempts of a record of which a Terraform process is alive, whoever started it."""
    return [
        attempt
        for attempt in record.attempts
        if attempt.state is not AttemptState.RELEASED and in_flight(Path(attempt.directory) / LOCK_NAME)
    ]
