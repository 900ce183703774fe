"""Endpoints and rollouts: the serving half of the ledger, owned as strictly as leases are.

An **endpoint** is the stable URL: a router, and the list of versions with their shares. A **rollout** is a lease on a
serving change: it holds the server of one version. The endpoint's record alone decides what is served: every step of a
rollout (canary, promotion, rollback, retirement) is one compare-and-swap on it, and each rollout's record then follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from mlinfra_prefect.errors import IllegalTransition
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Kept, LeaseRecord, State, check_transition
from mlinfra_prefect.model.names import Id, Line, Sha256
from mlinfra_prefect.model.probe import ProbeRequest, Question, Step
from mlinfra_prefect.model.record import Moment, Record
from mlinfra_prefect.model.request import ServingRequest

VERSIONS_KEPT = 20
"""How many versions that are gone an endpoint's record still names; the rollouts' own records are kept for ever."""


class VersionState(StrEnum):
    """Where a version is on its way."""

    DEPLOYING = "deploying"
    CANARY = "canary"
    SERVING = "serving"
    RETIRING = "retiring"
    RETIRED = "retired"
    ROLLED_BACK = "rolled-back"


IN_ROLLOUT = frozenset({VersionState.DEPLOYING, VersionState.CANARY})
"""Not promoted yet: it goes when its rollout does."""
PROMOTED = frozenset({VersionState.SERVING, VersionState.RETIRING})
"""The endpoint's own: no client is needed for it any more."""
GONE = frozenset({VersionState.RETIRED, VersionState.ROLLED_BACK})
VERSION_TRANSITIONS: Mapping[VersionState, frozenset[VersionState]] = {
    VersionState.DEPLOYING: frozenset({VersionState.CANARY, VersionState.SERVING, VersionState.ROLLED_BACK}),
    VersionState.CANARY: frozenset({VersionState.SERVING, VersionState.ROLLED_BACK}),
    VersionState.SERVING: frozenset({VersionState.RETIRING, VersionState.RETIRED}),
    VersionState.RETIRING: frozenset({VersionState.SERVING, VersionState.RETIRED}),
    VersionState.RETIRED: frozenset(),
    VersionState.ROLLED_BACK: frozenset(),
}


TOKEN = "token"  # noqa: S105 (a file's name)
"""In an endpoint's directory: what its clients must show, one line, readable by its owner only."""
REPLICAS = "replicas.json"
"""In a rollout's directory: how many of its servers shall run. The router writes it, the agent follows it."""


class Scale(Record):
    """How many of a version's servers run: from `least` to `most`, by the requests in flight."""

    least: int = Field(title="Least", description="How many run without load.", ge=1, examples=[1])
    most: int = Field(title="Most", description="How many run at most.", ge=1, examples=[4])
    target: float = Field(title="Target", description="Requests in flight per server.", gt=0, examples=[4.0])
    file: Line = Field(
        title="File",
        description="Where the router writes how many shall run.",
        examples=["/home/ada/.mlinfra-prefect/work/r0f3c5d7e9b1a2c4d6e8f-1/replicas.json"],
    )


class Version(Record):
    """One version of an endpoint."""

    version: int = Field(title="Version", description="Counted from 1.", ge=1, examples=[1])
    share: int = Field(title="Share (percent)", description="Of the requests.", ge=0, le=100, examples=[100])
    state: VersionState = Field(title="State", description="Where it is on its way.", examples=["serving", "canary"])
    reason: Line = Field(
        default="", title="Reason", description="Why it was rolled back or retired.", examples=["version 2 came"]
    )
    sha256: Sha256 = Field(title="sha256", description="The artifact's, as it was verified.")
    artifact: ModelArtifact = Field(title="Artifact", description="What it serves, with its lineage.")
    rollout: Id | None = Field(
        default=None,
        title="Rollout",
        description="The rollout that holds its servers.",
        examples=["r0f3c5d7e9b1a2c4d6e8f-1"],
    )
    urls: tuple[Line, ...] = Field(
        default=(), title="URLs", description="Of its servers, one a replica.", examples=[["http://127.0.0.1:9001"]]
    )
    scale: Scale | None = Field(
        default=None, title="Scale", description="How many of these run; None: always all of them."
    )
    promoted_at: Moment | None = Field(default=None, title="Promoted at", description="Last; None: never.")
    retire_at: Moment | None = Field(
        default=None, title="Retires at", description="End of its retirement lease: until then a rollback is instant."
    )


class EndpointRecord(Kept):
    """A served model behind a stable URL, with its version history."""

    kind: Literal["endpoint"] = Field(default="endpoint", title="Kind", description="An endpoint.")
    serving: ServingRequest = Field(title="Serving", description="What was last asked for.")
    url: Line = Field(title="URL", description="Where it answers.", examples=["http://127.0.0.1:8123"])
    port: int = Field(title="Port", description="Recorded and reserved.", ge=1, le=65535, examples=[8123])
    expires_at: Moment | None = Field(
        default=None, title="Expires at", description="It ends itself then; None: it serves until released."
    )
    revision: int = Field(
        default=1, title="Revision", description="Of its routes: one higher at each change.", ge=1, examples=[7]
    )
    versions: tuple[Version, ...] = Field(
        title="Versions", description=f"Oldest first; of those that are gone, the last {VERSIONS_KEPT}."
    )

    @property
    def deadline(self) -> datetime | None:
        """The moment at which the router ends itself."""
        return self.expires_at

    def version(self, number: int) -> Version | None:
        """Return one version, or None when the record does not name it."""
        return next((each for each in self.versions if each.version == number), None)

    @property
    def current(self) -> Version | None:
        """The version that serves most of the requests; None before the first promotion."""
        serving = [each for each in self.versions if each.state is VersionState.SERVING]
        return max(serving, key=lambda each: (each.share, each.version), default=None)

    @property
    def candidate(self) -> Version | None:
        """The version whose rollout is in flight; None: there is none."""
        return next((each for each in self.versions if each.state in IN_ROLLOUT), None)

    def rerouted(self, versions: Iterable[Version]) -> EndpointRecord:
        """Return the record with other versions under the next revision; old versions that are gone are let go."""
        kept = list(versions)
        gone = [each for each in kept if each.state in GONE]
        let_go = {each.version for each in gone[: max(0, len(gone) - VERSIONS_KEPT)]}
        return self.revised(
            versions=tuple(each for each in kept if each.version not in let_go), revision=self.revision + 1
        )


class RolloutRecord(Kept):
    """A lease on a serving change: the servers of one version of an endpoint."""

    kind: Literal["rollout"] = Field(default="rollout", title="Kind", description="A rollout.")
    endpoint: Id = Field(title="Endpoint", description="Its id.", examples=["e0f3c5d7e9b1a2c4d6e8f-1"])
    version: int = Field(title="Version", description="Of that endpoint.", ge=1, examples=[2])
    serving: ServingRequest = Field(title="Serving", description="What was asked for.")
    artifact: ModelArtifact = Field(title="Artifact", description="What it serves, as it was verified.")
    ports: tuple[int, ...] = Field(
        title="Ports", description="On loopback, recorded and reserved: one a replica.", examples=[[9001]]
    )
    shares: tuple[int, ...] = Field(
        default=(), title="Canary shares", description="Steps before the promotion, rising.", examples=[[10, 50]]
    )
    probe: ProbeRequest = Field(default_factory=ProbeRequest, title="Probe", description="What each step must pass.")
    promote: bool = Field(
        default=True, title="Promote", description="Whether it is promoted at the end, or waits at its last share."
    )
    until: Moment = Field(title="Until", description="A rollout that is not promoted by then is rolled back.")
    expires_at: Moment | None = Field(
        default=None, title="Expires at", description="Its servers end themselves then, unless that is put off."
    )
    steps: tuple[Step, ...] = Field(default=(), title="Steps", description="What was probed, and what was found.")
    question: Question | None = Field(
        default=None, title="Question", description="What the client's own probe is asked now; None: nothing."
    )
    promoted_at: Moment | None = Field(default=None, title="Promoted at", description="None: not yet.")
    due: Moment | None = Field(
        default=None, title="Due", description="When it must be looked at next; None: at once, or it stands by itself."
    )

    @property
    def deadline(self) -> datetime | None:
        """The moment at which its servers end themselves."""
        return self.expires_at

    @property
    def urls(self) -> tuple[str, ...]:
        """Where its servers answer, one a replica."""
        return tuple(f"http://127.0.0.1:{port}" for port in self.ports)


KeptRecord = LeaseRecord | EndpointRecord | RolloutRecord
"""What a ledger keeps."""


def account_of(record: KeptRecord) -> str:
    """The account of its cloud that a record's machines are in; empty: none is known, or it is on no cloud. Pure."""
    return record.account if isinstance(record, LeaseRecord) else ""


def check_change(before: KeptRecord | None, after: KeptRecord) -> None:
    """Refuse what the state machines of records and of an endpoint's versions do not allow.

    Raises:
        IllegalTransition: naming both states.
    """
    check_transition(before, after)
    if not isinstance(before, EndpointRecord) or not isinstance(after, EndpointRecord):
        return
    for new in after.versions:
        old = before.version(new.version)
        if old is None or old.state is new.state or after.state is State.RELEASED:
            continue
        if new.state not in VERSION_TRANSITIONS[old.state]:
            raise IllegalTransition(f"{after.id}, version {new.version}: {old.state} does not lead to {new.state}.")
    missing = [
        each.version for each in before.versions if each.state not in GONE and after.version(each.version) is None
    ]
    if missing:
        raise IllegalTransition(f"{after.id}: a version that lives is never forgotten ({missing}).")
    if after.revision < before.revision:
        raise IllegalTransition(f"{after.id}: the revision may not fall from {before.revision} to {after.revision}.")


def with_share(versions: Iterable[Version], number: int, share: int) -> tuple[Version, ...]:
    """Give one version a share; the serving ones divide the rest as they did before. Pure; shares sum to 100.

    Args:
        versions: of an endpoint.
        number: the version that gets `share` percent.
        share: 0 to 100.
    """
    listed = tuple(versions)
    others = [each for each in listed if each.state is VersionState.SERVING and each.version != number]
    total, rest = sum(each.share for each in others), 100 - share
    weights = {each.version: each.share if total else 1 for each in others}
    divided = _divided(rest, weights)
    return tuple(
        each.revised(share=share if each.version == number else divided.get(each.version, 0)) for each in listed
    )


def _divided(amount: int, weights: Mapping[int, int]) -> dict[int, int]:
    """Divide an amount into whole numbers by weight, by the largest remainder."""
    total = sum(weights.values())
    if not total:
        return {}
    exact = {key: amount * weight / total for key, weight in weights.items()}
    parts = {key: int(value) for key, value in exact.items()}
    left = amount - sum(parts.values())
    for key in sorted(exact, key=lambda each: (parts[each] - exact[each], each))[:left]:
        parts[key] += 1
    return parts
