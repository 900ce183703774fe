"""Leases: the durable record of everything that may exist because of one, and its legal states.

Leases, rollouts and endpoints (`model.endpoint`) are *kept* in the same way: written ahead, owned by a keeper, released
in the same order. So they share one state machine; what differs is what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import Field

from mlinfra_prefect.errors import IllegalTransition
from mlinfra_prefect.model import metering
from mlinfra_prefect.model.names import Id, Line
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import Moment, Record
from mlinfra_prefect.model.request import TrainingRequest


class State(StrEnum):
    """States of a lease, a rollout or an endpoint (DESIGN §4)."""

    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    READY = "ready"
    RELEASING = "releasing"
    STUCK = "stuck"
    RELEASED = "released"


TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.REQUESTED: frozenset({State.PROVISIONING, State.RELEASING}),
    State.PROVISIONING: frozenset({State.READY, State.RELEASING, State.PROVISIONING}),
    State.READY: frozenset({State.PROVISIONING, State.RELEASING}),
    State.RELEASING: frozenset({State.RELEASED, State.STUCK}),
    State.STUCK: frozenset({State.RELEASING, State.RELEASED}),
    State.RELEASED: frozenset(),
}
LIVE = frozenset({State.REQUESTED, State.PROVISIONING, State.READY})
OPEN = tuple(state for state in State if state is not State.RELEASED)
"""In which somebody still has to do something about a record."""


class AttemptState(StrEnum):
    """States of an attempt."""

    PLANNED = "planned"
    APPLYING = "applying"
    UP = "up"
    RELEASING = "releasing"
    RELEASED = "released"


ATTEMPT_TRANSITIONS: Mapping[AttemptState, frozenset[AttemptState]] = {
    AttemptState.PLANNED: frozenset({AttemptState.APPLYING, AttemptState.RELEASING}),
    AttemptState.APPLYING: frozenset({AttemptState.UP, AttemptState.RELEASING}),
    AttemptState.UP: frozenset({AttemptState.RELEASING}),
    AttemptState.RELEASING: frozenset({AttemptState.RELEASED}),
    AttemptState.RELEASED: frozenset(),
}


class Attempt(Record):
    """One offer tried, with a Terraform state of its own."""

    number: int = Field(title="Number", description="Counted from 1 within the lease.", ge=1, examples=[1])
    state: AttemptState = Field(
        default=AttemptState.PLANNED, title="State", description="How far it has come, or gone.", examples=["up"]
    )
    offer: Offer = Field(title="Offer", description="What it tries to rent.")
    stack: Line = Field(title="Stack", description="The root module.", examples=["local-node"])
    directory: str = Field(
        title="Directory",
        description="Of its Terraform working directory, state and bundle.",
        examples=["/home/ada/.mlinfra-prefect/work/l0f3c5d7e9b1a2c4d6e8f-1/1/terraform"],
    )
    node_dir: str = Field(
        title="Node's directory",
        description="Where its agent works.",
        examples=["/home/ada/.mlinfra-prefect/work/l0f3c5d7e9b1a2c4d6e8f-1/1/node"],
    )
    engine: Line = Field(
        default="", title="Engine", description="Name and version of Terraform.", examples=["terraform 1.11.4"]
    )
    candidates: tuple[Offer, ...] = Field(
        default=(), title="Candidates", description="Every offer that it may become, tried at once; empty: its offer."
    )
    nodes: tuple[Line, ...] = Field(
        default=(), title="Nodes", description="The machines that it rented.", examples=[["i-0abcdef1234567890"]]
    )
    fleet: Line | None = Field(
        default=None, title="Fleet", description="What holds its machines; None: nothing does.", examples=["fleet-0ab"]
    )
    mailbox: Line | None = Field(
        default=None,
        title="Mailbox",
        description="Where its node is spoken to; None: in its directory.",
        examples=["s3://mlinfra-prefect-artifacts-dev-123456789012-eu-central-1/nodes/AROAEXAMPLE:i-0abc"],
    )
    outcome: Line = Field(
        default="",
        title="Outcome",
        description="Why it was not taken; empty: it was, or is being tried.",
        examples=["CapacityUnavailable: no zone of eu-central-1 has p5.48xlarge now."],
    )
    resources: tuple[Line, ...] = Field(
        default=(), title="Resources", description="Ever seen in its state.", examples=[["terraform_data.node"]]
    )
    destroyed: tuple[Line, ...] = Field(
        default=(), title="Destroyed", description="Of these, what is gone.", examples=[["terraform_data.node"]]
    )
    operation: Line | None = Field(
        default=None, title="Operation", description="The one last recorded before it began.", examples=["apply"]
    )
    operation_deadline: Moment | None = Field(
        default=None, title="Operation's deadline", description="Until then it is respected, unless its owner is dead."
    )
    applied_at: Moment | None = Field(
        default=None, title="Apply began", description="The meter runs from here; None: nothing was created."
    )
    up_at: Moment | None = Field(default=None, title="Up at", description="When it was found up; None: not yet.")
    launched_at: Moment | None = Field(
        default=None, title="Launched at", description="As its cloud says; None: the beginning of its apply counts."
    )
    stopped_at: Moment | None = Field(
        default=None, title="Meter stopped at", description="When its machines were told to end; None: not yet."
    )
    gone_at: Moment | None = Field(default=None, title="Gone at", description="When it was destroyed; None: not yet.")
    looked_at: Moment | None = Field(
        default=None,
        title="Looked again at",
        description="When it was last looked for machines that appeared after its meter was stopped; None: never.",
    )
    late_usd: float = Field(
        default=0.0,
        title="Late machines (USD)",
        description="What machines cost that appeared after its meter was stopped.",
        ge=0,
        examples=[0.02],
    )

    @property
    def rents_nothing(self) -> bool:
        """Whether it is known to have cost nothing: nothing was applied, or there was nothing to be had."""
        return metering.rents_nothing(self.applied_at, self.outcome, nodes=bool(self.nodes))

    def cost_usd(self, now: datetime) -> float:
        """What it has cost until `now`, by the second, disks included."""
        began, until = self.launched_at or self.applied_at, self.stopped_at or self.gone_at or now
        if self.rents_nothing or began is None:
            return self.late_usd
        return self.late_usd + metering.cost_usd(began, until, self.offer.usd_per_hour)


class Client(Record):
    """Who a lease is for: a process, a run in a process that outlives it, or nobody by design (``up``)."""

    kind: Literal["process", "flow_run", "none"] = Field(
        title="Kind",
        description="A process; a run whose process proves nothing by living, so it must beat; nobody by design.",
        examples=["process"],
    )
    process: ProcessIdentity | None = Field(
        default=None, title="Process", description="The one that runs the flow or task; None: nobody by design."
    )
    heartbeat_at: Moment | None = Field(
        default=None,
        title="Heartbeat at",
        description="When it last said that it lives, on the ledger's clock; None: it is seen by its process alone.",
    )
    ended_at: Moment | None = Field(default=None, title="Ended at", description="The client said that it is done.")
    lost_at: Moment | None = Field(default=None, title="Lost at", description="The keeper found it gone.")


class Keeper(Record):
    """Who owns the record now."""

    place: Literal["process", "foreground", "service"] = Field(
        title="Place", description="Where it lives, and so what it survives."
    )
    process: ProcessIdentity = Field(title="Process", description="The watcher's.")

    def keeps(self, record: Kept) -> bool:
        """Whether this is a record's keeper, whatever its host is called by now. Pure."""
        return record.keeper is not None and record.keeper.process.is_same(self.process)


class JobNote(Record):
    """What the record remembers of one job: enough for the receipt, the timeline and adoption."""

    job_id: Id = Field(title="Job", description="Its id within the lease.", examples=["j1"])
    label: Line = Field(title="Label", description="What runs, for people.", examples=["acme.churn:train"])
    state: Line = Field(title="State", description="As the agent says.", examples=["succeeded"])
    started_at: Moment | None = Field(default=None, title="Started at", description="None: not yet.")
    finished_at: Moment | None = Field(default=None, title="Finished at", description="None: not yet.")
    artifact_id: Id | None = Field(
        default=None,
        title="Artifact",
        description="What it left; None: nothing yet.",
        examples=["a0f3c5d7e9b1a2c4d6e8f"],
    )
    left_at: Line = Field(
        default="",
        title="Left at",
        description="Where what it made still lies, because it could not be kept; empty: nowhere.",
        examples=["s3://mlinfra-prefect-artifacts-dev-123456789012-eu-central-1/nodes/AROAEXAMPLE:i-0abc"],
    )


class Kept(Record):
    """What leases, rollouts and endpoints have in common."""

    id: Id = Field(title="Id", description="The base and the round.", examples=["l0f3c5d7e9b1a2c4d6e8f-1"])
    ledger_id: Line = Field(
        title="Ledger",
        description="The ledger's uuid; sweeps act on their own ledger only.",
        examples=["7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11"],
    )
    name: Id = Field(title="Name", description="As its owner called it.", examples=["training"])
    environment: Id = Field(title="Environment", description="Whose caps it counts against.", examples=["dev"])
    platform: Line = Field(title="Platform", description="Where it lies.", examples=["local"])
    owner: Owner = Field(title="Owner", description="Who asked for it.")
    state: State = Field(default=State.REQUESTED, title="State", description="Of the whole.", examples=["ready"])
    reason: Line = Field(
        default="", title="Reason", description="Why it is in this state.", examples=["the client was lost"]
    )
    generation: int = Field(
        default=1, title="Generation", description="One higher at each takeover.", ge=1, examples=[1]
    )
    keeper: Keeper | None = Field(default=None, title="Keeper", description="Who owns it; None: nobody yet.")
    client: Client = Field(title="Client", description="Who it is for.")
    keeper_place: Literal["service"] | None = Field(
        default=None,
        title="Asked keeper's place",
        description="'service': only a keeper service begins it; None: the keeper that its asker has started.",
        examples=["service"],
    )
    attempts: tuple[Attempt, ...] = Field(
        default=(), title="Attempts", description="Every offer tried, oldest first; none is ever forgotten."
    )
    created_at: Moment = Field(title="Created at", description="When it was written, on the ledger's clock, in UTC.")
    renewed_until: Moment = Field(
        title="Renewed until", description="The lease TTL: after it anyone may take the record over."
    )
    ready_at: Moment | None = Field(default=None, title="Ready at", description="Last became ready; None: never.")
    releasing_at: Moment | None = Field(default=None, title="Releasing at", description="Release began; None: not yet.")
    released_at: Moment | None = Field(default=None, title="Released at", description="All is gone; None: not yet.")
    failures: int = Field(
        default=0, title="Failed release passes", description="Since its release began.", ge=0, examples=[0]
    )
    retry_at: Moment | None = Field(
        default=None,
        title="Not before",
        description="When the next release pass, or the next look for a machine, may begin; None: at once, or never.",
    )
    drain: bool = Field(default=True, title="Drain", description="Whether release starts with *checkpoint now*.")
    error: Line = Field(
        default="",
        title="Error type",
        description="Of a failed provision, for the client.",
        examples=["CapacityUnavailable"],
    )
    receipt: Receipt | None = Field(default=None, title="Receipt", description="With `released`, and never before.")

    @property
    def live(self) -> bool:
        """Whether it has not begun to go."""
        return self.state in LIVE

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt."""
        return self.attempts[-1] if self.attempts else None


class LeaseRecord(Kept):
    """A time-bounded right to ephemeral infrastructure."""

    kind: Literal["lease"] = Field(default="lease", title="Kind", description="A lease.")
    base: Id = Field(title="Base", description="The id without its round.", examples=["l0f3c5d7e9b1a2c4d6e8f"])
    round: int = Field(title="Round", description="Which lease of this base it is, from 1.", ge=1, examples=[1])
    request: TrainingRequest = Field(title="Request", description="What was asked for, filled from the caps.")
    python: str = Field(
        default="",
        title="Interpreter",
        description="The client's Python: what a preinstalled environment on this host means. Empty: the keeper's own.",
        examples=["/home/ada/project/.venv/bin/python"],
    )
    request_hash: str = Field(
        title="Request hash", description="Of the whole request.", examples=["60303ae22b998861bce3"]
    )
    deadline: Moment = Field(title="Hard deadline", description="Nothing extends past it.")
    account: Line = Field(
        default="",
        title="Account",
        description="Of its cloud, which alone can tell what is left of it; empty: it is on no cloud.",
        examples=["123456789012"],
    )
    reserved_usd: float = Field(
        default=0.0,
        title="Reserved (USD)",
        description="The most that it can come to cost; it counts against its environment's cap until it is released.",
        ge=0,
        examples=[24.4],
    )
    waited_after: int = Field(
        default=0,
        title="Waited after attempt",
        description="Attempts up to this number were made before it last waited for a machine; 0: it never waited.",
        ge=0,
        examples=[3],
    )
    keep_until: Moment | None = Field(default=None, title="Kept until", description="With on_client_lost='keep'.")
    resume_holds: tuple[Line, ...] = Field(
        default=(),
        title="Resume keys held",
        description="No other live lease may have them.",
        examples=[["dev/lora-r16"]],
    )
    jobs: tuple[JobNote, ...] = Field(default=(), title="Jobs", description="What ran on it, oldest first.")


def check_transition(before: Kept | None, after: Kept) -> None:
    """Refuse what the state machine does not allow.

    Raises:
        IllegalTransition: naming both states.
    """
    if before is None:
        if after.state is not State.REQUESTED:
            raise IllegalTransition(f"{after.id}: a record begins as requested, not as {after.state}.")
        return
    if type(after) is not type(before) or (after.id, after.ledger_id) != (before.id, before.ledger_id):
        raise IllegalTransition(f"{before.id}: a record never becomes another one ({after.id}).")
    if after.generation < before.generation:
        raise IllegalTransition(
            f"{after.id}: the generation may not fall from {before.generation} to {after.generation}."
        )
    if after.state is not before.state and after.state not in TRANSITIONS[before.state]:
        raise IllegalTransition(f"{after.id}: {before.state} does not lead to {after.state}.")
    if before.state is State.RELEASED and after != before:
        raise IllegalTransition(f"{after.id}: a released record is never changed.")
    _check_attempts(before, after)
    if after.state is State.RELEASED and any(a.state is not AttemptState.RELEASED for a in after.attempts):
        raise IllegalTransition(f"{after.id}: an attempt is not released yet.")


def _check_attempts(before: Kept, after: Kept) -> None:
    known = len(before.attempts)
    if [attempt.number for attempt in after.attempts[:known]] != [attempt.number for attempt in before.attempts]:
        raise IllegalTransition(f"{after.id}: attempts are never forgotten.")
    for new in after.attempts[known:]:
        if new.state is not AttemptState.PLANNED:
            raise IllegalTransition(f"{after.id}/{new.number}: an attempt begins as planned, not as {new.state}.")
    for old, new in zip(before.attempts, after.attempts, strict=False):
        if new.state is not old.state and new.state not in ATTEMPT_TRANSITIONS[old.state]:
            raise IllegalTransition(f"{after.id}/{new.number}: {old.state} does not lead to {new.state}.")
