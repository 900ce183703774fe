"""Train: hand a job to the node, follow it, and keep what it made. Runs in the client; the keeper rescues what it left.

A finished training is not reported until its artifact is stored and verified. A job's id says what it is, so a retry of
the same flow run picks the running job up instead of starting it twice.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import codecs
from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import (
    BadMetrics,
    InvalidInput,
    LeaseHeld,
    LeaseLost,
    MlinfraError,
    NodeError,
    NodeLost,
    NoModel,
    ResumeHeld,
    TrainingStopped,
)
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Attempt, AttemptState, JobNote, LeaseRecord
from mlinfra_prefect.model.names import digest
from mlinfra_prefect.model.stack import JobStatus

POLL_SECONDS = 0.05
LEDGER_SECONDS = 1.0
"""How often a follower looks whether its lease still lives."""


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
    resume: str | None = None
    grace_seconds: float | None = None
    progress_timeout_seconds: float | None = None
    expects: str = "result"
    beside: bool = False
    annotation: Any = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """What a follower is told: new log text, progress, or metrics."""

    log: str = ""
    fraction: float | None = None
    message: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None


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
    node = context.platform(record.platform).node(attempt)
    job_id = _choose_id(record, work, used)
    used.add(job_id)
    on_job(job_id)
    known = next((note for note in record.jobs if note.job_id == job_id), None)
    if known is None:
        with _submitted(context, record, attempt, node, job_id, work):
            status = _follow(context, record, node, job_id, on_progress)
    else:
        status = _follow(context, record, node, job_id, on_progress)
    return _outcome(context, record, node, job_id, work, status)


def collect_all(context: Context, record: LeaseRecord) -> None:
    """Keep every finished artifact of a lease that its client did not live to collect. Idempotent; never raises
    for one bad artifact, because release must go on: what is wrong with it stands in the history.
    """
    attempt = record.attempt
    if attempt is None:
        return
    node = context.platform(record.platform).node(attempt)
    for note in record.jobs:
        status = node.status(note.job_id)
        if status is None or not status.ended:
            continue
        artifact_id, reason = None, f"job {note.job_id} {status.state}"
        if status.state == "succeeded":
            try:
                artifact = collect(context, record, note.job_id)
                artifact_id = artifact.id if artifact else None
            except (MlinfraError, OSError) as error:
                reason = f"job {note.job_id}: its artifact could not be kept: {error}"[:500]
        _note_end(context, record, note.job_id, status, artifact_id, reason)


def collect(context: Context, record: LeaseRecord, job_id: str) -> ModelArtifact | None:
    """Store and verify what a finished job uploaded; None when it wrote nothing. Idempotent."""
    incoming = context.artifacts.incoming(record.id, job_id)
    noted = next((n.artifact_id for n in context.lease(record.id).jobs if n.job_id == job_id), None)
    if noted:
        return context.artifacts.verified(noted)
    if not (incoming / "manifest.json").exists() or not any(p.is_file() for p in (incoming / "files").rglob("*")):
        return None
    values = json.loads(_lineage_file(context, record.id, job_id).read_bytes())
    attempt = record.attempt
    if attempt is not None:
        status = context.platform(record.platform).node(attempt).status(job_id)
        values["resumed_from"] = status.resumed_from if status else None
    values["resumed_across_code"] = bool(values["resumed_from"] and values.pop("other_code", False))
    values.pop("other_code", None)
    return context.artifacts.commit(incoming, Lineage(**values))


def _up(record: LeaseRecord) -> Attempt:
    attempt = record.attempt
    if not record.live or attempt is None or attempt.state is not AttemptState.UP:
        raise LeaseLost(
            f"Lease {record.id} is {record.state}, so nothing can run on it. {record.reason}".strip(),
            "Ask for a new lease.",
        )
    return attempt


def _choose_id(record: LeaseRecord, work: Work, used: set[str]) -> str:
    content = json.dumps([work.label, work.command, dict(work.params), work.code_hash, list(work.requirements)], default=str)
    over = {note.job_id for note in record.jobs if note.state in {"failed", "stopped"}}
    number = 0
    while True:
        number += 1
        job_id = f"j{digest('job', record.id, content, str(number))}"
        if job_id not in used and job_id not in over:
            return job_id


def _lineage_file(context: Context, lease_id: str, job_id: str) -> Path:
    # Beside the node's directory and not inside it: what says where an artifact comes from is not the node's to write.
    return context.home.record_dir(lease_id) / "lineage" / f"{job_id}.json"


@contextmanager
def _submitted(
    context: Context, record: LeaseRecord, attempt: Attempt, node: Node, job_id: str, work: Work
) -> Iterator[None]:
    secrets = _resolve_secrets(work.secrets)
    inputs = _resolve_inputs(context, record, work.inputs)
    key, explicit = _resume_key(record, work)
    store = _take_resume_key(context, record, key, explicit=explicit)
    staged = Path(attempt.node_dir).parent / "staging" / job_id
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700, parents=True)
    encoded = {
        "args": [codecs.encode(v, staged / "args", name=f"argument {n + 1}", aliases=work.aliases) for n, v in enumerate(work.args)],
        "kwargs": {n: codecs.encode(v, staged / "args", name=n, aliases=work.aliases) for n, v in work.kwargs.items()},
    }
    if work.code_archive is not None:
        shutil.copyfile(work.code_archive, staged / "code.zip")
    other_code = _remember_code(store, key, work.code_hash)
    lineage = Lineage(
        name=work.label, lease_id=record.id, environment=record.environment, code_hash=work.code_hash,
        request_hash=record.request_hash, environment_hash=digest("environment", json.dumps(dict(work.versions)), *work.requirements),
        params=dict(work.params), versions=dict(work.versions),
    )  # fmt: skip
    path = _lineage_file(context, record.id, job_id)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_text(json.dumps({**asdict(lineage), "other_code": other_code}))
    artifacts = {a.id: str(context.artifacts.verified(a.id).path) for a in _artifacts_in((*work.args, *work.kwargs.values()))}
    incoming = context.artifacts.incoming(record.id, job_id)
    incoming.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    job = {
        "schema": "mlinfra-prefect/job/1",
        "job_id": job_id,
        "lease_id": record.id,
        "attempt": attempt.number,
        "kind": "command" if work.command else "callable",
        "command": list(work.command) if work.command else None,
        "callable": dict(work.callable) if work.callable else None,
        "code": {"archive": "code.zip", "sha256": work.code_sha256} if work.code_archive else None,
        "args": None if work.command else encoded,
        "params": dict(work.params),
        "inputs": inputs,
        "artifacts": artifacts,
        "requirements": list(work.requirements),
        "secrets": sorted(secrets),
        "grace_seconds": work.grace_seconds or record.request.grace_seconds,
        "progress_timeout_seconds": work.progress_timeout_seconds,
        "checkpoint": {"key": key, "store": str(store)},
        "upload_dir": str(incoming),
        "env": {},
        "expects": work.expects,
        "check_metrics": True,
        "beside": work.beside,
    }
    _note_job(context, record, JobNote(job_id=job_id, label=work.label[:500], state="submitted"))
    with node.submitted(job_id, staged, job, secrets):
        yield


def _follow(
    context: Context,
    record: LeaseRecord,
    node: Node,
    job_id: str,
    on_progress: Callable[[Progress], None],
) -> JobStatus:
    """Follow a job until it has ended, telling its news."""
    log, events = _Tail(node.file(job_id, "log.txt")), _Tail(node.file(job_id, "events.jsonl"))
    next_look = time.monotonic() + LEDGER_SECONDS
    while True:
        status = node.status(job_id)  # read before the tails, so that nothing written before the end is missed
        for progress in (*_log_news(log), *_event_news(events)):
            on_progress(progress)
        if status is not None and status.ended:
            return status
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LEDGER_SECONDS
            current = context.lease(record.id)
            if not node.alive():
                status = node.status(job_id)
                if status is not None and status.ended:
                    continue
                if current.live:
                    raise NodeLost(
                        f"The node of lease {record.id} went away during {job_id}. {node.why_gone()}".strip(),
                        "A retry of the flow run resumes from the last checkpoint.",
                    )
                raise TrainingStopped(f"Lease {record.id} is {current.state}: {current.reason}.")
        time.sleep(POLL_SECONDS)


def _outcome(
    context: Context, record: LeaseRecord, node: Node, job_id: str, work: Work, status: JobStatus
) -> Outcome:
    if status.state != "succeeded":
        _note_end(context, record, job_id, status, None, f"job {job_id} {status.state}: {status.reason}"[:500])
        raise _failure(status)
    artifact = collect(context, record, job_id)
    _note_end(context, record, job_id, status, artifact.id if artifact else None, f"job {job_id} succeeded")
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


def _note_job(context: Context, record: LeaseRecord, note: JobNote) -> None:
    def change(current: KeptRecord) -> KeptRecord:
        assert isinstance(current, LeaseRecord)  # noqa: S101 (jobs are noted on leases only)
        if not current.live:
            raise LeaseLost(f"Lease {current.id} is {current.state}: {current.reason}.")
        return current.revised(jobs=(*(j for j in current.jobs if j.job_id != note.job_id), note))

    revise(context.ledger, record.id, change, actor=context.actor, reason=f"job {note.job_id}: {note.label}"[:500])


def _note_end(
    context: Context, record: LeaseRecord, job_id: str, status: JobStatus, artifact_id: str | None, reason: str
) -> None:
    def change(current: KeptRecord) -> KeptRecord | None:
        assert isinstance(current, LeaseRecord)  # noqa: S101 (jobs are noted on leases only)
        if not any(j.job_id == job_id and j.state not in {"succeeded", "failed", "stopped"} for j in current.jobs):
            return None
        ended = {"state": status.state, "started_at": _moment(status.started_at), "finished_at": _moment(status.finished_at),
                 "artifact_id": artifact_id}  # fmt: skip
        return current.revised(jobs=tuple(j.revised(**ended) if j.job_id == job_id else j for j in current.jobs))

    with suppress(MlinfraError):  # the note is for people: a released record keeps the one it has
        revise(context.ledger, record.id, change, actor=context.actor, reason=reason)


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _resolve_secrets(references: Mapping[str, str]) -> dict[str, str]:
    values = {}
    for name, reference in references.items():
        variable = reference.removeprefix("env:")
        if variable not in os.environ:
            raise InvalidInput(f"secrets.{name}", f"the environment variable {variable} is not set", "Set it, then run again.")
        values[name] = os.environ[variable]
    return values


def _resolve_inputs(context: Context, record: LeaseRecord, inputs: Mapping[str, str]) -> dict[str, str]:
    roots = [root.resolve() for root in context.config.environment(record.environment).input_roots]
    found = {}
    for name, uri in inputs.items():
        if "://" in uri and not uri.startswith("file://"):
            raise InvalidInput(f"inputs.{name}", f"{uri!r} is not a path or file:// URI", "The local platform reads files only.")
        path = Path(uri.removeprefix("file://")).expanduser().resolve()
        if not path.exists():
            raise InvalidInput(f"inputs.{name}", f"{path} does not exist")
        if roots and not any(path.is_relative_to(root) for root in roots):
            raise InvalidInput(
                f"inputs.{name}", f"{path} is outside the input_roots of environment {record.environment!r}",
                f"Put it under one of: {', '.join(map(str, roots))}.",
            )  # fmt: skip
        found[name] = str(path)
    return found


def _resume_key(record: LeaseRecord, work: Work) -> tuple[str, bool]:
    if work.resume is not None:
        return work.resume, True
    # Without an explicit key a checkpoint belongs to this lease's base, this code and these parameters only.
    return f"{record.base}:{digest('resume', work.label, work.code_hash, json.dumps(dict(work.params), default=str))}", False


def _take_resume_key(context: Context, record: LeaseRecord, key: str, *, explicit: bool) -> Path:
    if explicit:
        try:
            context.ledger.hold(f"resume:{record.environment}:{key}", record.id)
        except LeaseHeld as error:
            raise ResumeHeld(
                f"resume: the key {key!r} of environment {record.environment!r} is in use: {error.message}",
                "Wait for that lease, release it, or use another key.",
            ) from None
    store = context.home.checkpoints / record.environment / digest("checkpoint", key)
    store.mkdir(mode=0o700, parents=True, exist_ok=True)
    return store


def _remember_code(store: Path, key: str, code_hash: str) -> bool:
    """Write down which code uses a checkpoint, and say whether other code made what is there."""
    path = store / "key.json"
    before = json.loads(path.read_bytes()) if path.exists() else {}
    staged = path.with_suffix(".new")
    staged.write_text(json.dumps({"key": key, "code_hash": code_hash}))
    staged.rename(path)
    return bool(before) and before.get("code_hash") != code_hash


def _artifacts_in(values: tuple[Any, ...]) -> list[ModelArtifact]:
    found: list[ModelArtifact] = []
    for value in values:
        if isinstance(value, ModelArtifact):
            found.append(value)
        elif isinstance(value, list | tuple):
            found.extend(_artifacts_in(tuple(value)))
        elif isinstance(value, dict):
            found.extend(_artifacts_in(tuple(value.values())))
    return found


class _Tail:
    """Reads what a growing file has got since the last look, in whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> list[str]:
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                chunk = stream.read()
        except (FileNotFoundError, NotADirectoryError):
            return []
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode(errors="replace").splitlines()


def _log_news(tail: _Tail) -> Iterator[Progress]:
    for line in tail.lines():
        yield Progress(log=line.rsplit("\r", 1)[-1])


def _event_news(tail: _Tail) -> Iterator[Progress]:
    for line in tail.lines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(event, dict):
            continue
        fraction = event.get("progress")
        metrics = event.get("metrics")
        yield Progress(
            fraction=float(fraction) if isinstance(fraction, int | float) else None,
            message=str(event.get("message") or ""),
            metrics={str(k): v for k, v in metrics.items() if isinstance(v, int | float)} if isinstance(metrics, dict) else {},
            step=event.get("step") if isinstance(event.get("step"), int) else None,
        )
