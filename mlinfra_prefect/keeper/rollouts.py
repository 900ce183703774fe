"""Rollouts as a person, a flow or a reconciliation steers them: wait, promote, roll back, retire, repair.

Each verb decides on the endpoint's record (`lifecycle.versions`), has the routes follow at once, and leaves what comes
after it to the keeper. Killed in between, nothing is lost: the keeper follows the record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from mlinfra_prefect.errors import EndpointNotReady, MlinfraError, NotFound, OperationTimedOut
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.starting import have_kept
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle import versions
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.serving import ServingAsked, ask_to_serve
from mlinfra_prefect.model.endpoint import (
    GONE,
    EndpointRecord,
    RolloutRecord,
    Version,
    VersionState,
)
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.probe import Question
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest

REPAIR_SECONDS = 300.0


def begin(
    context: Context,
    ask: Callable[..., ServingAsked],
    *,
    ended: Callable[[], bool] = lambda: False,
    asked: Callable[[str], None] = lambda _: None,
) -> ServingAsked:
    """Ask for a serving change and give its records to the keeper.

    Args:
        context: where.
        ask: `ask_to_serve`, but for what is passed here.
        ended: whether the client has ended though its process lives.
        asked: told the rollout's id as soon as it is in the ledger.
    """
    found = ask(announce=partial(keeper.announce, context), withdraw=partial(keeper.withdraw, context))
    try:
        asked(found.rollout.id)
        if found.endpoint is not None:
            keeper.entrust(context, found.endpoint, ended=ended)
        keeper.entrust(context, found.rollout, ended=ended)
    except BaseException:
        give_up(context, found, "the client stopped waiting for it")
        raise
    return found


def give_up(context: Context, found: ServingAsked, reason: str) -> None:
    """Take back what was asked for and is not promoted. Raises nothing of ours; idempotent."""
    for record in (found.rollout, found.endpoint):
        if record is None:
            continue
        seen = context.ledger.read(record.id)
        if isinstance(record, EndpointRecord) and seen is not None and _has_current(seen.record):
            continue
        try:
            keeper.release(context, record.id, reason=reason, drain=False)
        except MlinfraError:
            keeper.CLIENT.let_go(record.id)  # it serves, or its keeper sees to it


def _has_current(record: KeptRecord) -> bool:
    return isinstance(record, EndpointRecord) and record.current is not None


def wait_rolled(
    context: Context,
    rollout: RolloutRecord,
    *,
    on_step: Callable[[RolloutRecord], None] = lambda _: None,
    answer: Callable[[RolloutRecord, Question], tuple[bool, str]] | None = None,
) -> RolloutRecord:
    """Wait until a rollout is promoted, or has passed its last step and is not to be promoted.

    Args:
        context: where.
        rollout: which.
        on_step: called whenever a step was begun or judged.
        answer: the client's own probe, called in this thread for each step.

    Raises:
        ProbeFailed, RolledBack, EndpointNotReady: it was rolled back; the version before it serves on.
    """
    told = -1
    for record in keeper.looks(context, rollout.id):
        assert isinstance(record, RolloutRecord)
        steps = 2 * len(record.steps) - (bool(record.steps) and record.steps[-1].ok is None)
        if steps != told:
            told = steps
            on_step(record)
        if not record.live:
            raise keeper.why(record)
        if record.promoted_at is not None or _held(context, record):
            if record.promoted_at is not None:
                keeper.CLIENT.let_go(record.id)
                keeper.CLIENT.let_go(record.endpoint)
            return record
        if record.question is not None and record.question.answer is None and answer is not None:
            ok, reason = answer(record, record.question)
            _answer(context, record, record.question, ok=ok, reason=reason)
    raise OperationTimedOut(f"{rollout.id} was waited for in vain.")


def _held(context: Context, record: RolloutRecord) -> bool:
    passed = sum(1 for step in record.steps if step.ok)
    if record.promote or passed <= len(record.shares):
        return False
    endpoint = versions.endpoint_of(context, record)
    return endpoint is not None and endpoint.current is not None


def _answer(context: Context, rollout: RolloutRecord, question: Question, *, ok: bool, reason: str) -> None:
    answered = question.revised(answer="pass" if ok else "fail", reason=as_line(reason))

    def change(now: KeptRecord) -> KeptRecord | None:
        same = isinstance(now, RolloutRecord) and now.live and now.question == question
        return now.revised(question=answered, due=context.ledger.now()) if same else None

    told = f"the client's probe: {'passed' if ok else 'failed'} {reason}".strip()
    have_kept(context, revise(context.ledger, rollout.id, change, actor=context.actor, reason=as_line(told)))


def promote(context: Context, endpoint: EndpointRecord, number: int | None = None, *, reason: str) -> EndpointRecord:
    """Promote a version (None: the candidate) and return when requests go to it. Idempotent.

    Raises:
        NotFound: there is no candidate, or that version is gone.
        EndpointNotReady: its servers are not up, or the routes do not follow.
        RolledBack, EndpointExists: as said by `lifecycle.versions.promote`.
    """
    if number is None:
        candidate = endpoint.candidate
        if candidate is None:
            raise NotFound(
                f"Endpoint {endpoint.name!r} has no rollout in flight, so there is nothing to promote.",
                "Name a version that still lives: `mlinfra-prefect endpoints` lists them.",
            )
        number = candidate.version
    version = versions.the_version(endpoint, number)
    rollout = versions.rollout_of(context, version)
    if version.state not in GONE and (rollout is None or rollout.state is not State.READY):
        raise EndpointNotReady(
            f"Version {number} of endpoint {endpoint.name!r} is {rollout.state if rollout else 'lost'}, not ready.",
            "Promote it when its servers are up: `mlinfra-prefect endpoints` shows that.",
        )
    return follow(context, versions.promote(context, endpoint.id, number, reason=reason))


@dataclass(frozen=True, slots=True)
class Back:
    """What a rollback led to: the endpoint as it stands, and the rollout to wait for where servers had to come back."""

    endpoint: EndpointRecord
    from_version: int
    to_version: int | None
    asked: ServingAsked | None = None


def roll_back(
    context: Context,
    endpoint: EndpointRecord,
    *,
    reason: str,
    owner: Owner,
    client: Client,
    ended: Callable[[], bool] = lambda: False,
) -> Back:
    """Take a rollout in flight back; where there is none, serve the version before the current one again.

    That one is there at once while its retirement lease lasts; later its model is deployed once more.

    Raises:
        NotFound: there is nothing to go back to.
    """
    candidate = endpoint.candidate
    if candidate is not None and candidate.rollout is not None:
        keeper.release(context, candidate.rollout, reason=f"rolled back: {reason}", drain=False)
        after = follow(context, context.endpoint(endpoint.id))
        current = after.current
        return Back(after, candidate.version, None if current is None else current.version)
    current = endpoint.current
    before = _before(endpoint)
    if current is None or before is None:
        raise NotFound(
            f"Endpoint {endpoint.name!r} has no version before the current one to go back to.",
            "Deploy another model instead.",
        )
    rollout = versions.rollout_of(context, before)
    if before.state is not VersionState.RETIRED and rollout is not None and rollout.state is State.READY:
        why = f"rolled back from version {current.version}: {reason}"
        after = promote(context, endpoint, before.version, reason=why)
        return Back(after, current.version, before.version)
    serving = rollout.serving if rollout is not None else ServingRequest(
        name=endpoint.name, environment=endpoint.environment
    )  # fmt: skip
    ask = partial(ask_to_serve, context, before.artifact, serving.revised(port=None), owner=owner, client=client)
    asked = begin(context, ask, ended=ended)
    return Back(endpoint, current.version, asked.rollout.version, asked)


def _before(endpoint: EndpointRecord) -> Version | None:
    """The version that served before the current one."""
    current = endpoint.current
    served = [
        each
        for each in endpoint.versions
        if each.promoted_at is not None and each is not current and each.state is not VersionState.ROLLED_BACK
    ]
    return max(served, key=lambda each: (each.promoted_at or each.version, each.version), default=None)


def retire(context: Context, endpoint: EndpointRecord, number: int, *, reason: str) -> EndpointRecord:
    """End a version that does not serve alone: its share goes to the others, then its servers go.

    Raises:
        NotFound, VersionServes, RolloutHeld: as said by `lifecycle.versions.retire_now`.
    """
    return follow(context, versions.retire_now(context, endpoint.id, number, reason=reason))


def share(context: Context, endpoint: EndpointRecord, shares: dict[int, int], *, reason: str) -> EndpointRecord:
    """Divide the requests among versions that are up. A version with a share serves; one that loses its own retires.

    Args:
        context: where.
        endpoint: of what.
        shares: version to percentage; they sum to 100.
        reason: for the history.

    Raises:
        NotFound, RolloutHeld, EndpointNotReady: a version is gone, a rollout is in flight, servers are not up.
    """
    for number in shares:
        rollout = versions.rollout_of(context, versions.the_version(endpoint, number))
        if rollout is None or rollout.state is not State.READY:
            told = f"shares: version {number} of {endpoint.name!r} is not up."
            raise EndpointNotReady(told, "Deploy its model again.")

    def change(now: EndpointRecord) -> EndpointRecord | None:
        versions.refuse_second(now)
        moment = context.ledger.now()
        serves = {"state": VersionState.SERVING, "promoted_at": moment, "retire_at": None}
        until = moment + timedelta(seconds=now.serving.retire_seconds)
        retires = {"state": VersionState.RETIRING, "retire_at": until, "reason": "it has no share any more"}
        listed = []
        for each in now.versions:
            wanted = shares.get(each.version, 0)
            changes: dict[str, object] = {}
            if bool(wanted) != (each.state is VersionState.SERVING):
                changes = serves if wanted else retires if each.state is VersionState.SERVING else {}
            listed.append(each.revised(**changes, share=wanted))
        return now.rerouted(listed) if tuple(listed) != now.versions else None

    return follow(context, versions.decide(context, endpoint.id, change, f"shares: {shares}: {reason}"))


def follow(context: Context, endpoint: EndpointRecord) -> EndpointRecord:
    """Have requests go where an endpoint's record says, and the keeper look at every rollout that it concerns.

    Raises:
        EndpointNotReady: the router does not follow; the keeper tries again.
    """
    for version in endpoint.versions:
        rollout = versions.rollout_of(context, version)
        if rollout is None or not rollout.live:
            continue
        have_kept(context, revise(context.ledger, rollout.id, _due(context), actor=context.actor, reason="looked at"))
    if endpoint.live and endpoint.state is State.READY and endpoint.current is not None:
        context.platform(endpoint.platform).route(endpoint)
    return endpoint


def _due(context: Context) -> Callable[[KeptRecord], KeptRecord | None]:
    now = context.ledger.now()
    return lambda record: record.revised(due=now) if record.live and record.state is State.READY else None


def repair(context: Context, *, timeout: float = REPAIR_SECONDS) -> dict[str, str]:
    """Bring back what should serve and is down: routers and servers, each as the next attempt, on their ports.

    Returns:
        Id to what was done, or why not.
    """
    found: dict[str, str] = {}
    waiting: dict[str, EndpointRecord] = {}
    for seen in context.ledger.records(states=[State.READY, State.PROVISIONING]):
        endpoint = seen.record
        if not isinstance(endpoint, EndpointRecord) or endpoint.current is None:
            continue
        standing = [
            versions.rollout_of(context, each) for each in endpoint.versions if each.state is VersionState.SERVING
        ]
        for record in (endpoint, *standing):
            if record is not None and _is_down(context, record):
                _bring_back(context, record)
                waiting[record.id] = endpoint
    for record_id, endpoint in waiting.items():
        try:
            after = keeper.wait_ready(context, record_id, timeout=timeout)
            up = after.attempt is not None and context.platform(after.platform).is_up(after, after.attempt)
            found[record_id] = "brought back" if up and not after.reason else f"still down: {after.reason}"
            follow(context, context.endpoint(endpoint.id))
        except MlinfraError as error:
            found[record_id] = f"not brought back: {error.message}"
    return found


def _is_down(context: Context, record: EndpointRecord | RolloutRecord) -> bool:
    attempt = record.attempt
    return attempt is None or not context.platform(record.platform).is_up(record, attempt)


def _bring_back(context: Context, record: KeptRecord) -> None:
    def change(now: KeptRecord) -> KeptRecord | None:
        if now.state is not State.READY:
            return None
        return now.revised(state=State.PROVISIONING, reason="it is being repaired")

    after = revise(context.ledger, record.id, change, actor=context.actor, reason="repair: it was down")
    have_kept(context, after)
