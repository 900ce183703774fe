"""Rolling out: what the keeper of a rollout does once its servers are up. Runs in operations; resumable at any line.

Probe past the router → canary shares, each watched and probed → promote → the routes follow → the versions before go at
the end of their retirement lease. The endpoint's record says how far it is (`lifecycle.versions`); an operation that
finds itself after a crash reads it and goes on: before the promotion back or on, after it always on.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from mlinfra_prefect.errors import MlinfraError, ProbeFailed, RolledBack
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release, current, mark
from mlinfra_prefect.lifecycle.probing import base_of, counted, current_rollout, judge_samples, judge_traffic
from mlinfra_prefect.lifecycle.versions import decide, endpoint_of, give_share, promote
from mlinfra_prefect.model.endpoint import (
    IN_ROLLOUT,
    EndpointRecord,
    RolloutRecord,
    Version,
    VersionState,
)
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.probe import Question, Step

WAIT_SECONDS = 5.0
"""A wait that is no longer is made in the operation; for a longer one it ends, and the keeper starts another."""
OPERATION_SECONDS = 60.0
"""An operation that has lived so long leaves the next look to another one."""
POLL_SECONDS = 0.04
LOOK_SECONDS = 1.0
"""How often a canary is looked at that has not had its requests yet."""


def advance(context: Context, rollout: RolloutRecord) -> KeptRecord:
    """Bring a rollout whose servers are up as far as it can go now. Returns its record as it stands.

    Raises:
        LeaseLost: a newer keeper took it over.
    """
    endpoint = endpoint_of(context, rollout)
    version = endpoint.version(rollout.version) if endpoint is not None and endpoint.live else None
    if endpoint is None or version is None:
        return _back(context, rollout, RolledBack(_why_no_endpoint(endpoint)))
    if version.state in IN_ROLLOUT:
        if context.ledger.now() >= rollout.until:
            minutes = rollout.serving.rollout_minutes
            return _back(context, rollout, RolledBack(f"it was not promoted within {minutes:g} minutes"))
        try:
            return _roll(context, rollout, endpoint, version)
        except ProbeFailed as failed:
            return _back(context, rollout, failed)
    if version.state is VersionState.SERVING:
        return _settle(context, rollout, endpoint)
    if version.state is VersionState.RETIRING and version.retire_at is not None:
        if context.ledger.now() >= version.retire_at:
            reason = f"retired: {version.reason or 'another version serves'}"
            return begin_release(context, rollout.id, reason=reason, drain=False, generation=rollout.generation)
        return _due(context, rollout, version.retire_at)
    return begin_release(
        context, rollout.id, reason=version.reason or "rolled back", drain=False,
        error=RolledBack.__name__, generation=rollout.generation,
    )  # fmt: skip


def _why_no_endpoint(endpoint: EndpointRecord | None) -> str:
    if endpoint is None or endpoint.live:
        return "its endpoint does not know it"
    return f"its endpoint is {endpoint.state}: {endpoint.reason}"


def _back(context: Context, rollout: RolloutRecord, why: MlinfraError) -> KeptRecord:
    return begin_release(
        context, rollout.id, reason=why.message, drain=False, error=type(why).__name__, generation=rollout.generation
    )


def _due(context: Context, rollout: RolloutRecord, moment: datetime | None, **changes: object) -> KeptRecord:
    """Have the keeper look again at a moment; None: it stands by itself."""
    if rollout.due == moment and not changes:
        return rollout
    return mark(context, rollout, "waits" if moment else "stands by itself", due=moment, **changes)


# --- before the promotion --------------------------------------------------------------------------------------------


def _roll(context: Context, rollout: RolloutRecord, endpoint: EndpointRecord, version: Version) -> KeptRecord:
    if endpoint.state is not State.READY:  # its first version: the router comes up beside it
        return _wait(context, rollout, context.ledger.now() + timedelta(seconds=0.2))
    passed = [step for step in rollout.steps if step.ok]
    alone = endpoint.current is None
    shares = (0,) if alone else (0, *rollout.shares)
    if len(passed) >= len(shares):
        if not rollout.promote and not alone:
            return _due(context, rollout, rollout.until)  # it waits for whoever promotes it, or takes it back
        promote(context, endpoint.id, rollout.version, reason=passed[-1].reason if passed else "")
        return current(context, rollout)
    share = shares[len(passed)]
    step = rollout.steps[-1] if rollout.steps and rollout.steps[-1].ok is None else None
    if step is None:
        return _begin(context, rollout, endpoint, share)
    if share and (version.share != share or version.state is not VersionState.CANARY):
        endpoint = give_share(context, rollout, share)
    return _watch(context, rollout, endpoint, step)


def _begin(context: Context, rollout: RolloutRecord, endpoint: EndpointRecord, share: int) -> KeptRecord:
    """Give the candidate its next share, see that it is in effect, and note what was counted until then."""
    if share:
        endpoint = give_share(context, rollout, share)
    served = context.platform(endpoint.platform).route(endpoint)
    before = endpoint.current
    numbers = (rollout.version,) if before is None else (rollout.version, before.version)
    step = Step(share=share, began_at=context.ledger.now(), base=base_of(served, numbers))
    asks = Question(id=f"q{len(rollout.steps)}", share=share) if rollout.probe.asks else None
    told = f"canary with {share} %" if share else "probing it before it gets requests"
    return mark(context, rollout, told, steps=(*rollout.steps, step), question=asks, due=None)


def _watch(context: Context, rollout: RolloutRecord, endpoint: EndpointRecord, step: Step) -> KeptRecord:
    """Judge a step that has been watched for long enough, or wait."""
    probe, now = rollout.probe, context.ledger.now()
    question = rollout.question
    if question is not None and question.answer == "fail":
        return _judged(context, rollout, step, ok=False, reason=question.reason or "the client's probe refused it")
    seconds = probe.seconds if step.share else 0.0
    enough = step.began_at + timedelta(seconds=seconds)
    if now < enough:
        return _wait(context, rollout, enough)
    platform = context.platform(endpoint.platform)
    if step.share:
        served = platform.served(endpoint)
        if served is None:
            return _wait(context, rollout, now + timedelta(seconds=LOOK_SECONDS))  # it is being started again
        canary = counted(step, served, rollout.version)
        before = endpoint.current
        ok, reason, figures = judge_traffic(
            probe, canary, None if before is None else counted(step, served, before.version)
        )
        if ok and canary.requests < probe.min_requests:
            return _wait(context, rollout, now + timedelta(seconds=LOOK_SECONDS))
    else:
        ok, reason, figures = True, "its servers are ready", {}
        if probe.samples:
            ok, reason, figures = judge_samples(context, probe, rollout, current_rollout(context, endpoint))
    if ok and question is not None and question.answer is None:
        return _wait(context, rollout, now + timedelta(seconds=LOOK_SECONDS))
    return _judged(context, rollout, step, ok=ok, reason=reason, **figures)


def _judged(
    context: Context, rollout: RolloutRecord, step: Step, *, ok: bool, reason: str, **figures: object
) -> KeptRecord:
    where = f"with {step.share} % of the requests" if step.share else "before it got requests"
    told = as_line(f"{where}: {reason}")
    judged = step.revised(
        ended_at=context.ledger.now(), ok=ok, reason=told, base={}, answered=rollout.question is not None, **figures
    )
    record = mark(
        context, rollout, f"probe {'passed' if ok else 'failed'} {told}",
        steps=(*rollout.steps[:-1], judged), question=None, due=None,
    )  # fmt: skip
    if not ok:
        raise ProbeFailed(f"Version {rollout.version} of {rollout.name!r} did not pass its probe {told}.")
    return record


def _wait(context: Context, rollout: RolloutRecord, until: datetime) -> KeptRecord:
    """Wait for a moment here when it is near, and leave it to the keeper's clock when it is not."""
    until = min(until, rollout.until)
    seconds = (until - context.ledger.now()).total_seconds()
    if seconds > WAIT_SECONDS or time.monotonic() - context.born > OPERATION_SECONDS:
        return _due(context, rollout, until)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        now = current(context, rollout)
        assert isinstance(now, RolloutRecord)
        if now.state is not State.READY or now.question != rollout.question:
            return now
    # Something to look at again: the loop of the operation ends only when nothing has changed.
    return mark(context, rollout, "looks again", due=context.ledger.now())


# --- after it --------------------------------------------------------------------------------------------------------


def _settle(context: Context, rollout: RolloutRecord, endpoint: EndpointRecord) -> KeptRecord:
    """Follow up on a promotion: routes, the expiry that was asked for, and the versions before. Idempotent."""
    platform = context.platform(endpoint.platform)
    version = endpoint.version(rollout.version)
    promoted_at = version.promoted_at if version is not None else None
    if rollout.promoted_at == promoted_at and rollout.due is None:
        return rollout
    if rollout.promoted_at is None and endpoint.expires_at != rollout.expires_at:
        # What was last asked for holds; a version that is promoted again does not bring its old expiry back.
        endpoint = decide(
            context, endpoint.id, lambda now: now.revised(expires_at=rollout.expires_at),
            f"expires {_clock(rollout.expires_at)}, as version {rollout.version} asked",
        )  # fmt: skip
    platform.prolong(endpoint, endpoint.expires_at)
    platform.prolong(rollout, endpoint.expires_at)
    platform.route(endpoint)
    killpoint("before-retire", context.home.root)
    for other in endpoint.versions:
        if other.state is VersionState.RETIRING and other.rollout is not None:
            _wake(context, other.rollout, other)
    context.tell(endpoint)
    return _due(context, rollout, None, promoted_at=promoted_at, question=None)


def _clock(moment: datetime | None) -> str:
    return "never" if moment is None else f"at {moment:%Y-%m-%d %H:%M:%S} UTC"


def _wake(context: Context, rollout_id: str, version: Version) -> None:
    """Have the keeper of another rollout look at it when its version retires."""

    def change(record: KeptRecord) -> KeptRecord | None:
        return record.revised(due=version.retire_at) if record.live else None

    told = f"retires at {version.retire_at:%H:%M:%S} UTC" if version.retire_at else "retires"
    context.tell(revise(context.ledger, rollout_id, change, actor=context.actor, reason=told))
