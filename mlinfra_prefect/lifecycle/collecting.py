"""Keep what a job made: store and verify its upload, and write down how it ended.

A finished training is not reported until its artifact is stored. The client does that; where it did not live to, the
keeper does it when the lease goes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from mlinfra_prefect.errors import LeaseLost, MlinfraError, TemporaryError
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.adopting import adopt_jobs, is_ours
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.lineages import noted_lineage
from mlinfra_prefect.lifecycle.resuming import other_code
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import JobNote, LeaseRecord
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.record import moment
from mlinfra_prefect.model.stack import JobStatus

ENDED = frozenset({"succeeded", "failed", "stopped"})
PATIENT_PASSES = 3
"""Passes of a release that may fail because an artifact cannot be kept now."""


def collect_all(context: Context, record: LeaseRecord) -> None:
    """Keep every finished artifact of a lease that its client did not live to collect. Idempotent.

    Called when its node's meter is stopped, so a job that has not ended never will. One bad artifact stops nothing:
    what is wrong with it stands in the history.

    Raises:
        TemporaryError, OSError: an artifact could not be kept *now* (a full disk, another process that commits it);
            after a few passes that is written down like any other reason.
    """
    attempt = record.attempt
    if attempt is None:
        return
    patient = record.failures < PATIENT_PASSES
    try:
        adopt_jobs(context, record)
    except (MlinfraError, OSError):
        if patient:
            raise
    node = context.platform(record.platform).node(attempt)
    for note in record.jobs:
        found = node.status(note.job_id)
        status = found or JobStatus(state="submitted")
        if not status.ended:
            status = replace(status, state="stopped", reason="its node is gone", finished_at=time.time())
        artifact_id, reason, left_at = None, f"job {note.job_id} {status.state}", ""
        if attempt.mailbox is not None and found is not None and not is_ours(context, record, note.job_id):
            left_at = attempt.mailbox
            reason = f"job {note.job_id} {status.state}: another home handed it over, and did not tell what for"
        elif status.state == "succeeded":
            try:
                artifact = collect(context, record, note.job_id)
                artifact_id = artifact.id if artifact else None
            except (MlinfraError, OSError, ValueError) as error:
                if isinstance(error, TemporaryError | OSError) and patient:
                    raise
                left_at = attempt.mailbox or ""
                reason = f"job {note.job_id}: its artifact could not be kept: {error}"
        note_end(
            context, record, note.job_id, status, artifact_id=artifact_id, left_at=left_at,
            reason=f"{reason}; it stays in {left_at}" if left_at else reason,
        )  # fmt: skip


def collect(context: Context, record: LeaseRecord, job_id: str) -> ModelArtifact | None:
    """Store and verify what a finished job uploaded; None when it wrote nothing. Idempotent.

    Raises:
        ArtifactCorrupted, BadMetrics: what was uploaded is not what the node said it is, or no model.
    """
    incoming = context.artifacts.incoming(record.id, job_id)
    noted = next((n.artifact_id for n in context.lease(record.id).jobs if n.job_id == job_id), None)
    if noted:
        return context.artifacts.verified(noted)
    files = incoming / "files"
    if not (incoming / "manifest.json").exists() or not any(path.is_file() for path in files.rglob("*")):
        return context.artifacts.kept(incoming)
    lineage, makers = noted_lineage(context, record, job_id)
    resumed_from, attempt = lineage.resumed_from, record.attempt
    if attempt is not None:
        status = context.platform(record.platform).node(attempt).status(job_id)
        resumed_from = status.resumed_from if status else None
    across = other_code(resumed_from, makers, lineage.code_hash)
    return context.artifacts.commit(incoming, replace(lineage, resumed_from=resumed_from, resumed_across_code=across))


def note_job(context: Context, record: LeaseRecord, note: JobNote) -> None:
    """Write a job into its lease's record before it is handed over.

    Raises:
        LeaseLost: the lease has begun to go.
    """

    def change(current: KeptRecord) -> KeptRecord:
        assert isinstance(current, LeaseRecord)  # jobs are noted on leases only
        if not current.live:
            raise LeaseLost(f"Lease {current.id} is {current.state}: {current.reason}.")
        return current.revised(jobs=(*(job for job in current.jobs if job.job_id != note.job_id), note))

    reason = as_line(f"job {note.job_id}: {note.label}")
    revise(context.ledger, record.id, change, actor=context.actor, reason=reason)


def note_end(
    context: Context, record: LeaseRecord, job_id: str, status: JobStatus, *, artifact_id: str | None, reason: str,
    left_at: str = "",
) -> None:  # fmt: skip
    """Write down how a job ended. Never fails: the note is for people, and a released record keeps the one it has."""

    def change(current: KeptRecord) -> KeptRecord | None:
        assert isinstance(current, LeaseRecord)  # jobs are noted on leases only
        known = next((job for job in current.jobs if job.job_id == job_id), None)
        if known is None or known.state in ENDED:
            return None
        ended = {
            "state": status.state, "started_at": moment(status.started_at),
            "finished_at": moment(status.finished_at), "artifact_id": artifact_id, "left_at": left_at,
        }  # fmt: skip
        return current.revised(jobs=tuple(j.revised(**ended) if j.job_id == job_id else j for j in current.jobs))

    with suppress(MlinfraError):
        revise(context.ledger, record.id, change, actor=context.actor, reason=as_line(reason))
