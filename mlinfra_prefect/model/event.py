"""What events say: one closed, flat record for each, so that automations and flows can rely on every field.

Flat, because an automation reads ``{{ event.payload.NAME }}``. No secrets, no paths of machines, and of the words that
others wrote only one scrubbed line: events leave the machine and are kept by others; the ledger has the rest.
A payload never changes its meaning; a change is a new number in its ``schema``. All of them are in ``docs/events.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.names import Id, Line, as_line
from mlinfra_prefect.model.record import Moment, Record, parsed

PREFIX = "mlinfra-prefect"
MOST_METRICS = 50
LONGEST_REASON = 200
_URL_USER = re.compile(r"(?<=//)[^/\s@]+@")
_URL_QUERY = re.compile(r"(?<=[^\s?])\?[^\s?]*=\S*")
_SECRET = re.compile(
    r"(?i)((?:[\w-]*(?:password|passwd|token|secret|credential|api[_-]?key|access[_-]?key|authorization)[\w-]*)"
    r"[\"']?\s*[=:]\s*)(?:bearer\s+|basic\s+)?[\"']?[^\s\"',;]+"
)
_KEY_ID = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b|\b(?:gh[pousr]|hf|sk|xox[abp])[_-][A-Za-z0-9_-]{16,}")
_PATH = re.compile(r"(?<![\w:/.])/(?:[\w.@+-]+/)+([\w.@+-]+)")


def told(reason: str) -> str:
    """Return a reason as it may leave the machine: one short line, without credentials and places of this machine.

    A net below what is written with care, not a licence: it knows the usual shapes only.
    """
    line = as_line(reason)
    line = _URL_QUERY.sub("?…", _URL_USER.sub("…@", line))
    line = _KEY_ID.sub("…", _SECRET.sub(r"\1…", line))
    line = _PATH.sub(r"…/\1", line)
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"


Seconds = Annotated[float, Field(ge=0)]
Usd = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Percent = Annotated[int, Field(ge=0, le=100)]
Number = Annotated[int, Field(ge=1)]
Metrics = dict[str, float]


class Payload(Record):
    """The payload of one kind of event."""

    EVENT: ClassVar[str]
    """The event's name without the prefix."""
    VERSION: ClassVar[int] = 1

    @classmethod
    def event(cls) -> str:
        """The event's whole name."""
        return f"{PREFIX}.{cls.EVENT}"

    @classmethod
    def schema_id(cls) -> str:
        """What stands under ``schema`` in the payload."""
        return f"urn:{PREFIX}:schema:event-{cls.EVENT.replace('.', '-')}:{cls.VERSION}"

    def as_json(self) -> dict[str, Any]:
        """The payload as it is sent."""
        return {"schema": self.schema_id(), **self.model_dump(mode="json")}


class _OfLease(Payload):
    lease_id: Id
    lease: Id = Field(description="Its name.")
    environment: Id
    platform: Line


class LeaseReady(_OfLease):
    """A node can be used."""

    EVENT = "lease.ready"
    accelerator: Line
    nodes: Number
    instance_type: Line
    region: Line
    market: Line
    usd_per_hour: Usd = Field(description="Of one node.")
    waited_seconds: Seconds = Field(description="From asked for to ready.")
    deadline: Moment = Field(description="Nothing of it lives longer.")


class LeaseReleased(_OfLease):
    """All of it is gone, and the receipt says so."""

    EVENT = "lease.released"
    reason: Line
    clean: bool = Field(description="The last two looks found nothing.")
    attempts: Count
    created: Count = Field(description="How many resources were created.")
    destroyed: Count = Field(description="How many of these were destroyed.")
    up_seconds: Seconds
    trained_seconds: Seconds
    idle_seconds: Seconds
    cost_usd: Usd


class LeaseStuck(_OfLease):
    """It could not be released yet; the keeper goes on trying, for ever."""

    EVENT = "lease.stuck"
    reason: Line
    failures: Count = Field(description="Passes that failed since the release began.")
    retry_at: Moment | None = Field(description="Not before; null: at once.")


class LeaseLost(_OfLease):
    """A flow found that a lease which it used is not its own any more."""

    EVENT = "lease.lost"
    reason: Line
    state: Line = Field(description="The lease's, when that was found.")


class TrainingFinished(_OfLease):
    """A job on a node has ended, well or not."""

    EVENT = "training.finished"
    job_id: Id
    training: Line = Field(description="What ran: a function's address, or a command.")
    outcome: Line = Field(description="succeeded, failed or stopped.")
    seconds: Seconds
    artifact_id: Id | None = Field(description="The model that it left; null: none.")
    metrics: Metrics = Field(description=f"The model's, at most {MOST_METRICS}.")


class GateRefused(Payload):
    """A candidate was not good enough to be served."""

    EVENT = "gate.refused"
    environment: Id
    endpoint: Id | None = Field(description="Whose candidate it was; null: not said.")
    artifact_id: Id | None
    reason: Line
    failed: tuple[Line, ...] = Field(description="The names of the checks that did not hold.")


class _OfEndpoint(Payload):
    endpoint_id: Id
    endpoint: Id = Field(description="Its name.")
    environment: Id


class OfVersion(_OfEndpoint):
    """What is told of one version of an endpoint."""

    version: Number
    artifact_id: Id


class _OfRollout(OfVersion):
    rollout_id: Id


class RolloutStarted(_OfRollout):
    """A candidate is being deployed beside what is served."""

    EVENT = "rollout.started"
    current_version: Number | None = Field(description="What serves meanwhile; null: nothing yet.")
    shares: tuple[Percent, ...] = Field(description="Canary steps before the promotion; empty: none.")


class RolloutCanary(_OfRollout):
    """The candidate gets a share of the requests."""

    EVENT = "rollout.canary"
    share: Percent


class RolloutPromoted(_OfRollout):
    """A version is the one that serves now."""

    EVENT = "rollout.promoted"
    replaced_version: Number | None = Field(description="What it replaced; null: it is the first.")


class RolloutRolledBack(_OfRollout):
    """A version is taken back, mostly a candidate; another one serves on, or again."""

    EVENT = "rollout.rolled-back"
    reason: Line
    current_version: Number | None = Field(description="What serves; null: nothing did.")


class EndpointReady(_OfEndpoint):
    """An endpoint answers, with its first version."""

    EVENT = "endpoint.ready"
    platform: Line
    url: Line
    version: Number
    artifact_id: Id
    expires_at: Moment | None = Field(description="null: it serves until it is released.")


class EndpointReleased(_OfEndpoint):
    """An endpoint and all its versions are gone, and the receipt says so."""

    EVENT = "endpoint.released"
    reason: Line
    clean: bool
    up_seconds: Seconds
    cost_usd: Usd


class VersionRetired(OfVersion):
    """A version that had served is gone."""

    EVENT = "version.retired"
    reason: Line


class DatasetUpdated(Payload):
    """Data to train on has changed: yours to emit, with `dataset_updated`."""

    EVENT = "dataset.updated"
    dataset: Id
    uri: Line
    version: Line | None = Field(description="Of the data, as its owner counts; null: not said.")
    rows: Count | None


class DriftDetected(Payload):
    """A served model sees other data than it was trained on: yours to emit, with `drift_detected`."""

    EVENT = "drift.detected"
    endpoint: Id
    environment: Id
    metric: Line = Field(description="What was measured.")
    value: float
    threshold: float | None = Field(description="Above which it is drift; null: not said.")


EVENTS: Mapping[str, type[Payload]] = {
    kind.event(): kind
    for kind in (
        LeaseReady, LeaseReleased, LeaseStuck, LeaseLost, TrainingFinished, GateRefused, RolloutStarted, RolloutCanary,
        RolloutPromoted, RolloutRolledBack, EndpointReady, EndpointReleased, VersionRetired, DatasetUpdated,
        DriftDetected,
    )
}  # fmt: skip
"""Every event, by its whole name."""


def read_payload(event: str, payload: Mapping[str, Any]) -> Payload:
    """Return what was sent with an event as its record.

    Raises:
        InvalidInput: an event that is not ours, another schema, or a field that is wrong.
    """
    kind = EVENTS.get(event)
    if kind is None:
        raise InvalidInput(
            "event", f"{as_line(event)!r} is no event of this package", f"There are: {', '.join(EVENTS)}."
        )
    schema, values = payload.get("schema"), {name: value for name, value in payload.items() if name != "schema"}
    if schema != kind.schema_id():
        raise InvalidInput("schema", f"is {schema!r}", f"This version knows {kind.schema_id()}.")
    return parsed(kind, values, prefix="payload")
