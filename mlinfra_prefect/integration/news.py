"""From records to events: what is true of a lease, a training, a rollout or an endpoint, as news with ids that stay.

Apart from telling (`integration.events`), because this half is pure: the same record always makes the same news, in any
process and at any retry, and so can be tested without a server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from mlinfra_prefect.model import event as payloads
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord, VersionState
from mlinfra_prefect.model.event import PREFIX, Payload, told
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.verdict import Verdict

_NAMESPACE = UUID("5d0c2b0e-6d0f-5c8e-9a53-6d6c696e6672")
Related = tuple[tuple[str, str], ...]
"""Pairs of role and resource id."""


@dataclass(frozen=True, slots=True)
class News:
    """One event before it is sent.

    Attributes:
        payload: what it says.
        about: the id of its resource, without the prefix.
        name: of the resource, for people.
        key: what makes it this event and no other.
        occurred: when; None: now.
        related: other resources.
    """

    payload: Payload
    about: str
    name: str
    key: tuple[str, ...]
    occurred: datetime | None = None
    related: Related = ()

    @property
    def id(self) -> UUID:
        """The same for the same key."""
        return uuid5(_NAMESPACE, json.dumps([self.payload.event(), *self.key]))


def of_lease(record: LeaseRecord) -> Iterator[News]:
    """That it is ready, stuck or released."""
    receipt, attempt = record.receipt, record.attempt
    if record.state is State.READY and record.ready_at is not None and attempt is not None:
        ready = payloads.LeaseReady(
            **_lease(record), accelerator=str(record.request.accelerator), nodes=record.request.nodes,
            instance_type=attempt.offer.type, region=attempt.offer.region, market=attempt.offer.market,
            usd_per_hour=attempt.offer.usd_per_hour, deadline=record.deadline,
            waited_seconds=max(0.0, (record.ready_at - record.created_at).total_seconds()),
        )  # fmt: skip
        yield _lease_news(ready, record, f"ready/{attempt.number}", record.ready_at)
    if record.state is State.STUCK:
        stuck = payloads.LeaseStuck(
            **_lease(record), reason=told(record.reason), failures=record.failures, retry_at=record.retry_at
        )
        yield _lease_news(stuck, record, f"stuck/{record.failures}")
    if record.state is State.RELEASED and receipt is not None:
        released = payloads.LeaseReleased(
            **_lease(record), reason=told(receipt.reason), clean=receipt.clean, attempts=receipt.attempts,
            created=len(receipt.created), destroyed=len(receipt.destroyed), up_seconds=receipt.up_seconds,
            trained_seconds=receipt.trained_seconds, idle_seconds=receipt.idle_seconds, cost_usd=receipt.cost_usd,
        )  # fmt: skip
        yield _lease_news(released, record, "released", record.released_at)


def of_loss(record: LeaseRecord, reason: str) -> Iterator[News]:
    """That it is not the flow's any more."""
    lost = payloads.LeaseLost(**_lease(record), reason=told(reason), state=record.state)
    yield _lease_news(lost, record, f"lost/{record.generation}")


def of_job(record: LeaseRecord, job_id: str, artifact: ModelArtifact | None) -> Iterator[News]:
    """That a job has ended; of one that has not, nothing."""
    job = next((each for each in record.jobs if each.job_id == job_id), None)
    if job is None or job.finished_at is None:
        return
    artifact_id = artifact.id if artifact else job.artifact_id
    metrics = dict(sorted(artifact.metrics.items())[: payloads.MOST_METRICS]) if artifact else {}
    finished = payloads.TrainingFinished(
        **_lease(record), job_id=job.job_id, training=told(job.label), outcome=job.state, metrics=metrics,
        seconds=max(0.0, (job.finished_at - (job.started_at or job.finished_at)).total_seconds()),
        artifact_id=artifact_id,
    )  # fmt: skip
    yield _lease_news(finished, record, f"finished/{job_id}", job.finished_at, _artifact(artifact_id))


def of_gate(verdict: Verdict, run: str, endpoint: str | None, artifact: ModelArtifact | None) -> Iterator[News]:
    """That a candidate was refused in a run; of one that passed, nothing."""
    if verdict:
        return
    environment = artifact.environment if artifact else "dev"
    refused = payloads.GateRefused(
        environment=environment, endpoint=endpoint, artifact_id=artifact.id if artifact else None,
        reason=told(verdict.reason), failed=tuple(told(check.name) for check in verdict.checks if not check.ok),
    )  # fmt: skip
    about = f"endpoint.{environment}.{endpoint}" if endpoint else f"gate.{run}"
    key = (run, endpoint or "", artifact.id if artifact else "", verdict.reason)
    yield News(refused, about, endpoint or "gate", key, related=_artifact(refused.artifact_id))


def of_rollout(rollout: RolloutRecord, endpoint: EndpointRecord) -> Iterator[News]:
    """How far it has come: started, each share, promoted, and rolled back or retired."""
    mine = endpoint.version(rollout.version)
    promoted_at = mine.promoted_at if mine else rollout.promoted_at
    before = _promoted_before(endpoint, rollout.version, promoted_at)
    common = _version(endpoint, rollout.id, rollout.version, rollout.artifact)

    def news(payload: payloads.OfVersion, transition: str, occurred: datetime | None) -> News:
        return _rollout_news(payload, endpoint, rollout.id, transition, occurred=occurred, owner=rollout.owner)

    yield news(
        payloads.RolloutStarted(**common, current_version=before, shares=rollout.shares), "started", rollout.created_at
    )
    for step in rollout.steps:
        if step.share:
            yield news(payloads.RolloutCanary(**common, share=step.share), f"canary/{step.share}", step.began_at)
    if promoted_at is not None:
        yield news(
            payloads.RolloutPromoted(**common, replaced_version=before),
            f"promoted/{promoted_at.isoformat()}", promoted_at,
        )  # fmt: skip
    if mine is not None and mine.state is VersionState.ROLLED_BACK:
        yield from of_back(endpoint, rollout.version, mine.reason or rollout.reason, occurred=rollout.releasing_at)
    if promoted_at is not None and rollout.state is State.RELEASED:
        reason = told(mine.reason if mine else rollout.reason)
        retired = payloads.VersionRetired(
            **_endpoint(endpoint), version=rollout.version, artifact_id=rollout.artifact.id, reason=reason
        )
        yield news(retired, "retired", rollout.released_at)


def of_back(endpoint: EndpointRecord, number: int, reason: str, *, occurred: datetime | None = None) -> Iterator[News]:
    """That a version was rolled back: a candidate, or one that had been promoted."""
    version = endpoint.version(number)
    if version is None or version.rollout is None:
        return
    current = endpoint.current.version if endpoint.current else None
    back = payloads.RolloutRolledBack(
        **_version(endpoint, version.rollout, number, version.artifact), reason=told(reason), current_version=current
    )
    # A candidate goes back once; what had been promoted may come and go again.
    again = "" if version.state is VersionState.ROLLED_BACK else f"/{endpoint.revision}"
    transition = f"rolled-back{again}"
    yield _rollout_news(back, endpoint, version.rollout, transition, occurred=occurred, owner=endpoint.owner)


def of_endpoint(record: EndpointRecord) -> Iterator[News]:
    """That it is ready or released."""
    serves, receipt = record.current, record.receipt
    if record.state is State.READY and record.ready_at is not None and serves is not None:
        ready = payloads.EndpointReady(
            **_endpoint(record), platform=record.platform, url=record.url, version=serves.version,
            artifact_id=serves.artifact.id, expires_at=record.expires_at,
        )  # fmt: skip
        related = _artifact(serves.artifact.id)
        yield _endpoint_news(ready, record, "ready", record.ready_at, owner=record.owner, related=related)
    if record.state is State.RELEASED and receipt is not None:
        released = payloads.EndpointReleased(
            **_endpoint(record), reason=told(receipt.reason), clean=receipt.clean, up_seconds=receipt.up_seconds,
            cost_usd=receipt.cost_usd,
        )  # fmt: skip
        yield _endpoint_news(released, record, "released", record.released_at, owner=record.owner)


def _promoted_before(endpoint: EndpointRecord, number: int, moment: datetime | None) -> int | None:
    """The version that served before a moment: what a candidate stands beside, or what it replaced."""
    found = [
        (each.promoted_at, each.version)
        for each in endpoint.versions
        if each.version != number and each.promoted_at and (moment is None or each.promoted_at <= moment)
    ]
    return max(found)[1] if found else None


def _version(endpoint: EndpointRecord, rollout_id: str, number: int, artifact: ModelArtifact) -> dict[str, Any]:
    return {**_endpoint(endpoint), "rollout_id": rollout_id, "version": number, "artifact_id": artifact.id}


def _lease(record: LeaseRecord) -> dict[str, str]:
    return {
        "lease_id": record.id, "lease": record.name, "environment": record.environment, "platform": record.platform,
    }  # fmt: skip


def _endpoint(record: EndpointRecord) -> dict[str, str]:
    return {"endpoint_id": record.id, "endpoint": record.name, "environment": record.environment}


def _artifact(artifact_id: str | None) -> Related:
    return (("artifact", f"{PREFIX}.artifact.{artifact_id}"),) if artifact_id else ()


def _lease_news(
    payload: Payload, record: LeaseRecord, transition: str, occurred: datetime | None = None, related: Related = ()
) -> News:
    key = (record.ledger_id, record.id, transition)
    return News(payload, f"lease.{record.id}", record.name, key, occurred, (*_run_of(record.owner), *related))


def _endpoint_news(
    payload: Payload,
    record: EndpointRecord,
    transition: str,
    occurred: datetime | None,
    *,
    owner: Owner,
    related: Related = (),
) -> News:
    about = f"endpoint.{record.environment}.{record.name}"
    key = (record.ledger_id, record.id, transition)
    return News(payload, about, record.name, key, occurred, (*_run_of(owner), *related))


def _rollout_news(
    payload: payloads.OfVersion,
    endpoint: EndpointRecord,
    rollout_id: str,
    transition: str,
    *,
    occurred: datetime | None,
    owner: Owner,
) -> News:
    related = (("rollout", f"{PREFIX}.rollout.{rollout_id}"), *_artifact(payload.artifact_id))
    return _endpoint_news(payload, endpoint, f"{rollout_id}/{transition}", occurred, owner=owner, related=related)


def _run_of(owner: Owner) -> Related:
    # The run that asked for it, which need not be the one that tells of it; Prefect itself adds the latter.
    run = (("flow-run", f"prefect.flow-run.{owner.flow_run_id}"),) if owner.flow_run_id else ()
    deployment = (("deployment", f"prefect.deployment.{owner.deployment}"),) if owner.deployment else ()
    return (*run, *deployment)
