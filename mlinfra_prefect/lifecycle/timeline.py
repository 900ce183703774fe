"""The timeline: when a lease provisioned, trained and was given back, and an endpoint deployed and served."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import Field

from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import Moment, Record


class Span(Record):
    """A stretch of time in which one thing went on."""

    what: Line = Field(title="What", examples=["provision", "train", "release", "deploy", "serve"])
    of: Line = Field(title="Of", description="The lease's or endpoint's id.")
    detail: Line = Field(default="", title="Detail", description="What was trained, or the endpoint's name.")
    began: Moment
    ended: Moment

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.ended - self.began).total_seconds()


def _up_at(record: KeptRecord) -> datetime | None:
    """When it was of use for the first time: a node was ready, an endpoint or a rollout was promoted."""
    if isinstance(record, LeaseRecord):
        return record.ready_at
    promoted = record.promoted_at if isinstance(record, RolloutRecord) else None
    if isinstance(record, EndpointRecord):
        promoted = min((each.promoted_at for each in record.versions if each.promoted_at), default=None)
    return promoted


def timeline(records: Iterable[KeptRecord], *, now: datetime) -> tuple[Span, ...]:
    """Return the spans of some records in the order in which they began; what still goes on ends `now`."""
    spans: list[Span] = []
    for record in records:
        is_lease = isinstance(record, LeaseRecord)
        up = _up_at(record) or record.releasing_at or now
        spans.append(Span(what="provision" if is_lease else "deploy", of=record.id, began=record.created_at, ended=up))
        if isinstance(record, LeaseRecord):
            spans.extend(
                Span(what="train", of=record.id, detail=job.label, began=job.started_at, ended=job.finished_at or now)
                for job in record.jobs
                if job.started_at
            )
        elif _up_at(record) is not None:
            spans.append(Span(what="serve", of=record.id, began=up, ended=record.releasing_at or now))
        if record.releasing_at is not None:
            spans.append(Span(what="release", of=record.id, began=record.releasing_at, ended=record.released_at or now))
    return tuple(sorted(spans, key=lambda span: span.began))
