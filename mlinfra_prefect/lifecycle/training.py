"""Train: hand a job to the node, follow it, and keep what it made. Runs in the client; the keeper rescues what it left.

A finished training is not reported until its artifact is stored and verified. A job's id says what it is, so a retry of
the same flow run picks the running job up instead of starting it twice.
"""

from __future__ import annotations

import builtins
import json
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import codecs
from mlinfra_prefect.errors import (
    BadMetrics,
    InvalidInput,
    LeaseLost,
    NodeError,
    NoModel,
    TrainingStopped,
)
from mlinfra_prefect.lifecycle.collecting import collect, note_end
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.following import Progress, follow
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.lifecycle.submitting import submitted
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Attempt, AttemptState, LeaseRecord
from mlinfra_prefect.model.names import digest
from mlinfra_prefect.model.stack import JobStatus

__all__ = ["Outcome", "Progress", "Work", "run_job"]

_choosing = threading.Lock()


@dataclass(frozen=True, slots=True)
class Work:
    """One job, ready to travel: checked, its code packed, its arguments not encoded yet."""

    label: str
    callable: Mapping[str, Any] | None = None
    command: tuple[str, ...] | None = None
    code_archive: Path | None = None
    code_sha256: str = ""
    code_hash: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    requirements: tuple[str, ...] = ()
    project: Path | None = None
    requirements_file: str = ""
    """Of the project: what a node needs that has no packages of the flow's. Read only where it does."""
    python: str | None = None
    """The minor version that the node must have, where the function travels by value."""
    resume: str | None = None
    grace_seconds: float | None = None
    progress_timeout_seconds: float | None = None
    expects: str = "result"
    beside: bool = False
    annotation: Any = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended well."""

    job_id: str
    value: Any
    artifact: ModelArtifact | None


def run_job(
    context: Context,
    lease_id: str,
    work: Work,
    *,
    used: set[str],
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_job: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run one job on a ready lease and return its result. Blocking.

    Args:
        context: where.
        lease_id: a lease in `ready`.
        work: what.
        used: job ids that this client has run already; a job outside it that the lease knows is adopted.
        on_progress: called with every piece of news.
        on_job: called once with the job's id.

    Raises:
        LeaseLost: the lease is not ready any more.
        NodeLost: the node went away.
        ResumeHeld: another live lease holds the resume key.
        TrainingStopped: it was told to stop.
        NodeError: the training raised; a builtin exception comes back as itself.
        NoModel, BadMetrics, ArtifactCorrupted: what it left is not a model.
        InvalidInput: a secret's or an input's reference leads nowhere.
    """
    record = context.lease(lease_id)
    attempt = _up(record)
    platform = context.platform(record.platform)
    node = platform.node(attempt)
    with _choosing:  # two threads that start the same work at once start it twice
        job_id = _choose_id(record, work, used)
        used.add(job_id)
    on_job(job_id)
    handed: AbstractContextManager[None] = nullcontext()
    if job_id not in node.jobs():  # a job that was noted and never reached the node is handed over again
        handed = submitted(context, record, attempt, node, job_id=job_id, work=work)
    elif not ((status := node.status(job_id)) and status.ended):
        handed = node.answering(job_id, platform.take_secrets(record.environment, work.secrets))
    with handed:
        status = follow(context, record, node, job_id, on_progress)
    return _outcome(context, record, node, work, (job_id, status))


def _up(record: LeaseRecord) -> Attempt:
    attempt = record.attempt
    if not record.live or attempt is None or attempt.state is not AttemptState.UP:
        raise LeaseLost(
            f"Lease {record.id} is {record.state}, so nothing can run on it. {record.reason}".strip(),
            "Ask for a new lease.",
        )
    return attempt


def _choose_id(record: LeaseRecord, work: Work, used: set[str]) -> str:
    parts = [work.label, work.command, dict(work.params), work.code_hash, list(work.requirements)]
    content = json.dumps(parts, default=str, sort_keys=True)
    over = {note.job_id for note in record.jobs if note.state in {"failed", "stopped"}}
    number = 0
    while True:
        number += 1
        job_id = f"j{digest('job', record.id, content, str(number))}"
        if job_id not in used and job_id not in over:
            return job_id


def _outcome(context: Context, record: LeaseRecord, node: Node, work: Work, job: tuple[str, JobStatus]) -> Outcome:
    job_id, status = job
    if status.state != "succeeded":
        reason = f"job {job_id} {status.state}: {status.reason}"
        note_end(context, record, job_id, status, artifact_id=None, reason=reason)
        raise _failure(status)
    artifact = collect(context, record, job_id)
    kept = artifact.id if artifact else None
    note_end(context, record, job_id, status, artifact_id=kept, reason=f"job {job_id} succeeded")
    if work.expects == "model":
        if artifact is None:
            raise NoModel(
                f"{work.label} finished but wrote no file to its output directory.",
                "Write the model's files to node().output_dir (MLINFRA_OUTPUT_DIR).",
            )
        return Outcome(job_id, artifact, artifact)
    if work.command is not None:
        return Outcome(job_id, status.exit_code, artifact)
    result = node.file(job_id, "result.json")
    envelope = json.loads(result.read_bytes())["value"]
    try:
        value = codecs.decode(envelope, result.parent / "result", annotation=work.annotation, aliases=work.aliases)
    except codecs.CodecError as error:
        raise InvalidInput("result", f"of {work.label} cannot be decoded: {error}") from error
    return Outcome(job_id, value, artifact)


def _failure(status: JobStatus) -> BaseException:
    """Turn what the node reports into what the client raises."""
    error = status.error
    if status.state == "stopped":
        return TrainingStopped(f"The training was stopped: {status.reason or 'it was told to'}.")
    if not error:
        return NodeError("TrainingFailed", status.reason or f"exit code {status.exit_code}")
    kind, message = str(error.get("type", "Exception")), str(error.get("message", ""))
    if kind in {"BadMetrics", "NoModel"}:
        return {"BadMetrics": BadMetrics, "NoModel": NoModel}[kind](message)
    if kind in {"InvalidInput", "NotImportable", "EnvironmentFailed", "CodecError"}:
        return NodeError(kind, message, str(error.get("traceback") or ""))
    found = getattr(builtins, kind, None) if error.get("builtin") else None
    if isinstance(found, type) and issubclass(found, Exception):
        with suppress(TypeError):
            back = found(*error.get("args", ()))
            back.add_note(f"--- traceback on the node ---\n{error.get('traceback') or ''}")
            return back
    return NodeError(kind, message, str(error.get("traceback") or ""))
