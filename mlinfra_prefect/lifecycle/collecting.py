"""Keep what a job made: store and verify its upload, and write down how it ended.

A finished training is not reported until its artifact is stored. The client does that; where it did not live to, the
keeper does it when the lease goes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import LeaseLost, MlinfraError, TemporaryError
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.resuming import other_code
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import JobNote, LeaseRecord
from mlinfra_prefect.model.names import as_line
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
    node = context.platform(record.platform).node(attempt)
    for note in record.jobs:
        status = node.status(note.job_id) or JobStatus(state="submitted")
        if not status.ended:
            status = replace(status, state="stopped", reason="its node is gone", finished_at=time.time())
        artifact_id, reason = None, f"job {note.job_id} {status.state}"
        if status.state == "succeeded":
            try:
                artifact = collect(context, record, note.job_id)
                artifact_id = artifact.id if artifact else None
            except (MlinfraError, OSError, ValueError) as error:
                if isinstance(error, TemporaryError | OSError) and record.failures < PATIENT_PASSES:
                    raise
                reason = f"job {note.job_id}: its artifact could not be kept: {error}"
        note_end(context, record, note.job_id, status, artifact_id=artifact_id, reason=reason)


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
    values = json.loads(_lineage_file(context, record.id, job_id).read_bytes())
    makers = values.pop("makers")
    attempt = record.attempt
    if attempt is not None:
        status = context.platform(record.platform).node(attempt).status(job_id)
        values["resumed_from"] = status.resumed_from if status else None
    values["resumed_across_code"] = other_code(values["resumed_from"], makers, values["code_hash"])
    return context.artifacts.commit(incoming, Lineage(**values))


def note_lineage(context: Context, record: LeaseRecord, job_id: str, lineage: Lineage, makers: Sequence[Any]) -> None:
    """Write down where a job's artifact will come from: durable, and where the node cannot reach it (rule R15)."""
    path = _lineage_file(context, record.id, job_id)
    private_folder(path.parent)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
        stream.write(json.dumps({**asdict(lineage), "makers": list(makers)}))
        stream.flush()
        os.fsync(stream.fileno())


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
    context: Context, record: LeaseRecord, job_id: str, status: JobStatus, *, artifact_id: str | None, reason: str
) -> None:
    """Write down how a job ended. Never fails: the note is for people, and a released record keeps the one it has."""

    def change(current: KeptRecord) -> KeptRecord | None:
        assert isinstance(current, LeaseRecord)  # jobs are noted on leases only
        known = next((job for job in current.jobs if job.job_id == job_id), None)
        if known is None or known.state in ENDED:
            return None
        ended = {
            "state": status.state, "started_at": _moment(status.started_at),
            "finished_at": _moment(status.finished_at), "artifact_id": artifact_id,
        }  # fmt: skip
        return current.revised(jobs=tuple(j.revised(**ended) if j.job_id == job_id else j for j in current.jobs))

    with suppress(MlinfraError):
        revise(context.ledger, record.id, change, actor=context.actor, reason=as_line(reason))


def _lineage_file(context: Context, lease_id: str, job_id: str) -> Path:
    # Beside the node's directory and not inside it: what says where an artifact comes from is not the node's to write.
    return context.home.record_dir(lease_id) / "lineage" / f"{job_id}.json"


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
