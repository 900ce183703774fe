"""The status of one job, as written to ``status.json``: one writer at a time, whole records, never a partial update.

The agent writes it while the job is queued and when the launcher died; in between only the launcher does.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from .wire import FINAL_STATES, QUEUED, STATUS, STATUS_SCHEMA, read_json_if_there, write_json

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class JobFailure:
    """What went wrong in the training: ``builtin`` errors can be raised again from their ``args`` (JSON scalars)."""

    type: str
    message: str
    traceback: str = ""
    builtin: bool = False
    args: tuple[Any, ...] = ()


@dataclass(frozen=True)
class JobStatus:
    """One job's status. Times are epoch seconds; ``pid`` is the training process, ``launcher_pid`` who watches it."""

    state: str = QUEUED
    queued_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    pid: int | None = None
    start_time: str | None = None
    launcher_pid: int | None = None
    launcher_start_time: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    error: JobFailure | None = None
    resumed_from: str | None = None
    malformed_events: int = 0

    @property
    def final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL_STATES

    def ended(self, state: str, reason: str | None, error: JobFailure | None = None) -> JobStatus:
        """The final record: finished now."""
        return replace(self, state=state, reason=reason, error=error, finished_at=time.time())

    def write(self, job_dir: Path) -> None:
        """Replace ``status.json``; final states durably. Raises OSError."""
        write_json(job_dir / STATUS, {"schema": STATUS_SCHEMA, **asdict(self)}, durable=self.final)


def read_status(job_dir: Path) -> JobStatus | None:
    """The job's status, or None while there is none."""
    payload = read_json_if_there(job_dir / STATUS)
    if payload is None:
        return None
    payload.pop("schema", None)
    error = payload.pop("error", None)
    failure = None
    if error is not None:
        failure = JobFailure(**{**error, "args": tuple(error.get("args") or ())})
    return JobStatus(**payload, error=failure)
