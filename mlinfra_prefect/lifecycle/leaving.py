"""How servers leave an endpoint: no request goes to them any more before they are stopped, and an endpoint goes whole.

Part of the release of rollouts and endpoints (`lifecycle.releasing`): bounded, idempotent, and never a reason to keep
what has to go.
"""

from __future__ import annotations

import time

from mlinfra_prefect.errors import EndpointNotReady, LeaseLost, MlinfraError
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.versions import endpoint_of
from mlinfra_prefect.model.endpoint import IN_ROLLOUT, EndpointRecord, RolloutRecord, VersionState
from mlinfra_prefect.model.lease import OPEN, State

DRAINED_SECONDS = 10.0
"""How long requests in flight to a version that goes are waited for."""
VERSIONS_SECONDS = 60.0
"""How long one pass waits for the rollouts of an endpoint to be released by operations of their own."""
POLL_SECONDS = 0.02


def withdraw(context: Context, rollout: RolloutRecord) -> None:
    """See that no request goes to a rollout's servers any more: first step of its release. Bounded; idempotent.

    What cannot be seen to be so (the router is gone, or hangs) does not stop the release: nothing routes then.
    """
    endpoint = endpoint_of(context, rollout)
    if endpoint is None or not endpoint.live:
        return
    platform = context.platform(endpoint.platform)
    if endpoint.state is State.READY:
        try:
            served = platform.route(endpoint)
        except EndpointNotReady:
            return
        until = time.monotonic() + DRAINED_SECONDS
        while served.version(rollout.version).in_flight and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            served = platform.served(endpoint) or served


def close_empty(context: Context, rollout: RolloutRecord) -> None:
    """Give an endpoint back of which no version is left: its first one was rolled back. Idempotent."""
    endpoint = endpoint_of(context, rollout)
    if endpoint is None or not endpoint.live:
        return
    if any(each.state in IN_ROLLOUT or each.state is VersionState.SERVING for each in endpoint.versions):
        return
    reason = f"its only version was rolled back: {rollout.reason}"
    try:
        context.tell(begin_release(context, endpoint.id, reason=reason, drain=False, error=rollout.error))
    except LeaseLost:
        return


def leave_whole(context: Context, record: RolloutRecord | EndpointRecord) -> list[str]:
    """See that an endpoint goes with its versions, and with its last one. Returns what is left, in words."""
    if isinstance(record, EndpointRecord):
        return release_versions(context, record)
    close_empty(context, record)
    return []


def release_versions(context: Context, endpoint: EndpointRecord) -> list[str]:
    """Begin the release of every rollout of an endpoint and wait for it. Bounded; returns what is left, in words."""
    waiting: list[str] = []
    for seen in context.ledger.records(states=OPEN):
        record = seen.record
        if not isinstance(record, RolloutRecord) or record.endpoint != endpoint.id:
            continue
        waiting.append(record.id)
        try:
            context.tell(
                begin_release(
                    context, record.id, reason=f"endpoint: {endpoint.reason}", drain=False, error=endpoint.error
                )
            )
        except MlinfraError:
            continue  # its own keeper tries again, and we look at it below
    until = time.monotonic() + VERSIONS_SECONDS
    while waiting and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        waiting = [each for each in waiting if not _released(context, each)]
    return [f"its rollout {each} is not released yet" for each in waiting]


def _released(context: Context, rollout_id: str) -> bool:
    found = context.ledger.read(rollout_id)
    return found is None or found.record.state is State.RELEASED
