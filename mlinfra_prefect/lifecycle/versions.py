"""What an endpoint serves is decided here: each decision is one compare-and-swap on the endpoint's record.

Whoever decides (the keeper of a rollout, a person, a flow) may be killed right after it: the record says what was
decided, and the keeper of every rollout that it concerns does what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from mlinfra_prefect.errors import EndpointExists, NotFound, RolledBack, RolloutHeld, VersionServes
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.endpoint import (
    GONE,
    IN_ROLLOUT,
    REPLICAS,
    EndpointRecord,
    RolloutRecord,
    Scale,
    Version,
    VersionState,
    with_share,
)
from mlinfra_prefect.model.names import as_line

Change = Callable[[EndpointRecord], EndpointRecord | None]


def endpoint_of(context: Context, rollout: RolloutRecord) -> EndpointRecord | None:
    """Return the endpoint of a rollout as it stands; None when the ledger has none."""
    found = context.ledger.read(rollout.endpoint)
    return found.record if found is not None and isinstance(found.record, EndpointRecord) else None


def rollout_of(context: Context, version: Version) -> RolloutRecord | None:
    """Return the rollout that holds a version's servers, or None."""
    found = context.ledger.read(version.rollout) if version.rollout is not None else None
    return found.record if found is not None and isinstance(found.record, RolloutRecord) else None


def version_of(context: Context, rollout: RolloutRecord) -> Version | None:
    """Return a rollout's version as its endpoint's record has it; None when the endpoint is going or has none."""
    endpoint = endpoint_of(context, rollout)
    return endpoint.version(rollout.version) if endpoint is not None and endpoint.live else None


def decide(context: Context, endpoint_id: str, change: Change, reason: str) -> EndpointRecord:
    """Change an endpoint's record, or leave it where `change` returns None. Returns it as it stands."""

    def on(record: KeptRecord) -> KeptRecord | None:
        assert isinstance(record, EndpointRecord)  # its id is never another kind's
        return change(record)

    found = revise(context.ledger, endpoint_id, on, actor=context.actor, reason=as_line(reason))
    assert isinstance(found, EndpointRecord)
    return found


def enter(context: Context, rollout: RolloutRecord) -> EndpointRecord:
    """Name a rollout's version in its endpoint's record: from here on it is *the* rollout in flight.

    Raises:
        RolloutHeld: another one is in flight.
        EndpointExists: the endpoint is being given back.
    """

    def change(endpoint: EndpointRecord) -> EndpointRecord | None:
        if endpoint.version(rollout.version) is not None:
            return None
        refuse_second(endpoint)
        version = Version(
            version=rollout.version, share=0, state=VersionState.DEPLOYING, sha256=rollout.artifact.sha256,
            artifact=rollout.artifact, rollout=rollout.id, urls=rollout.urls, scale=_scale(context, rollout),
        )  # fmt: skip
        return endpoint.rerouted((*endpoint.versions, version)).revised(serving=rollout.serving)

    return decide(context, rollout.endpoint, change, f"version {rollout.version}: deploying")


def _scale(context: Context, rollout: RolloutRecord) -> Scale | None:
    serving = rollout.serving
    if serving.most_replicas == serving.replicas:
        return None
    file = context.home.record_dir(rollout.id) / REPLICAS
    return Scale(
        least=serving.replicas, most=serving.most_replicas, target=serving.target_in_flight, file=str(file)
    )  # fmt: skip


def refuse_second(endpoint: EndpointRecord) -> None:
    """Refuse a rollout on an endpoint that has one in flight, or that is going.

    Raises:
        RolloutHeld, EndpointExists: as said.
    """
    if not endpoint.live:
        raise EndpointExists(
            f"serving.name: endpoint {endpoint.name!r} is being given back ({endpoint.id}).",
            "Try again when it is gone.",
        )
    there = endpoint.candidate
    if there is not None:
        raise RolloutHeld(
            f"serving.name: version {there.version} of endpoint {endpoint.name!r} is being rolled out "
            f"({there.rollout}).",
            f"Wait for it, or take it back: mlinfra-prefect rollback {endpoint.name}",
        )


def give_share(context: Context, rollout: RolloutRecord, share: int) -> EndpointRecord:
    """Give a candidate its canary share. Idempotent."""

    def change(endpoint: EndpointRecord) -> EndpointRecord | None:
        version = endpoint.version(rollout.version)
        if version is None or version.state not in IN_ROLLOUT or not endpoint.live:
            return None
        if version.state is VersionState.CANARY and version.share == share:
            return None
        marked = _with(endpoint, rollout.version, state=VersionState.CANARY)
        return endpoint.rerouted(with_share(marked, rollout.version, share))

    killpoint("before-share", context.home.root)
    given = decide(context, rollout.endpoint, change, f"version {rollout.version}: canary, {share} %")
    killpoint("after-share", context.home.root)
    return given


def promote(context: Context, endpoint_id: str, number: int, *, reason: str = "") -> EndpointRecord:
    """Make a version the endpoint's: one compare-and-swap. The versions before it get their retirement lease.

    Idempotent: a version that serves alone is left as it is.

    Raises:
        NotFound: the endpoint has no such version any more, or its servers never came up.
        RolledBack: it was rolled back before.
        RolloutHeld: another version is being rolled out.
        EndpointExists: the endpoint is being given back.
    """

    def change(endpoint: EndpointRecord) -> EndpointRecord | None:
        version = the_version(endpoint, number)
        if not endpoint.live or endpoint.candidate not in (None, version):
            refuse_second(endpoint)  # a canary that is being watched would take its share back
        if version.state is VersionState.ROLLED_BACK:
            raise RolledBack(
                f"Version {number} of {endpoint.name!r} was rolled back: {version.reason}", "Deploy the model again."
            )
        if version.state is VersionState.RETIRED:
            raise NotFound(
                f"Version {number} of endpoint {endpoint.name!r} is gone.",
                f"Deploy its model again: artifact {version.artifact.id}.",
            )
        if version.state is VersionState.SERVING and version.share == 100:
            return None
        now = context.ledger.now()
        until = now + timedelta(seconds=endpoint.serving.retire_seconds)
        promoted = {"state": VersionState.SERVING, "share": 100, "promoted_at": now, "retire_at": None, "reason": ""}
        retiring = {"state": VersionState.RETIRING, "share": 0, "retire_at": until, "reason": f"version {number} came"}
        versions = tuple(
            each.revised(**promoted)
            if each.version == number
            else each.revised(**retiring)
            if each.state is VersionState.SERVING
            else each.revised(share=0)
            for each in endpoint.versions
        )
        return endpoint.rerouted(versions)

    killpoint("before-promote", context.home.root)
    after = decide(context, endpoint_id, change, f"version {number}: promoted{f': {reason}' if reason else ''}")
    killpoint("after-promote", context.home.root)
    return after


def leave(context: Context, rollout: RolloutRecord, reason: str) -> None:
    """Decide that a rollout's version is not served (any more), so that its servers may go. Idempotent.

    Raises:
        VersionServes: the endpoint's requests go to it, so it stays.
    """

    def change(endpoint: EndpointRecord) -> EndpointRecord | None:
        version = endpoint.version(rollout.version)
        if version is None or version.state in GONE:
            return None
        if version.state in IN_ROLLOUT:
            marked = _with(endpoint, rollout.version, state=VersionState.ROLLED_BACK, reason=as_line(reason))
            return endpoint.rerouted(with_share(marked, rollout.version, 0))
        if version.state is VersionState.RETIRING:
            # From here on it is too late to go back to it.
            return endpoint.rerouted(
                _with(endpoint, rollout.version, state=VersionState.RETIRED, share=0, retire_at=None)
            )
        if endpoint.live:
            raise VersionServes(
                f"Version {version.version} of endpoint {endpoint.name!r} serves its requests.",
                f"Release the endpoint ({endpoint.id}), or put another version in its place first.",
            )
        return None

    if endpoint_of(context, rollout) is not None:
        decide(context, rollout.endpoint, change, f"version {rollout.version} goes: {reason}")


def retire_now(context: Context, endpoint_id: str, number: int, *, reason: str) -> EndpointRecord:
    """End the retirement lease of a version, or take its share away; the other serving versions get it. Idempotent.

    Raises:
        NotFound: no such version.
        VersionServes: it is the only one that serves.
        RolloutHeld: it is a candidate; that is a rollback.
    """

    def change(endpoint: EndpointRecord) -> EndpointRecord | None:
        version = the_version(endpoint, number)
        if version.state in GONE:
            return None
        if version.state in IN_ROLLOUT:
            raise RolloutHeld(
                f"Version {number} of endpoint {endpoint.name!r} is being rolled out.",
                f"Take it back: mlinfra-prefect rollback {endpoint.name}",
            )
        others = [e for e in endpoint.versions if e.state is VersionState.SERVING and e.version != number]
        if version.state is VersionState.SERVING and not others:
            raise VersionServes(
                f"Version {number} is all that endpoint {endpoint.name!r} serves.",
                f"Release the endpoint: mlinfra-prefect release {endpoint.name}",
            )
        now = context.ledger.now()
        if version.state is VersionState.RETIRING and version.retire_at is not None and version.retire_at <= now:
            return None
        marked = _with(
            endpoint, number, state=VersionState.RETIRING, retire_at=now, reason=version.reason or as_line(reason)
        )
        return endpoint.rerouted(with_share(marked, number, 0))

    return decide(context, endpoint_id, change, f"version {number}: retired: {reason}")


def the_version(endpoint: EndpointRecord, number: int) -> Version:
    """Return a version.

    Raises:
        NotFound: the endpoint's record does not name it.
    """
    found = endpoint.version(number)
    if found is None:
        there = ", ".join(str(each.version) for each in endpoint.versions) or "none"
        raise NotFound(f"Endpoint {endpoint.name!r} has no version {number}.", f"It has: {there}.")
    return found


def _with(endpoint: EndpointRecord, number: int, **changes: object) -> tuple[Version, ...]:
    return tuple(each.revised(**changes) if each.version == number else each for each in endpoint.versions)
