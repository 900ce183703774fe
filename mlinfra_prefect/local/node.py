"""The client's side of the agent's mailbox: a node of the local platform is a directory.

Everything a job needs is put into a staging directory and appears to the agent by one rename, so that it never sees
half a job. What the agent writes is read, never trusted: hashes are recomputed when an artifact is committed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent import identity
from mlinfra_prefect.agent.secrets import make_fifo, serve_secrets
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.model.stack import JobStatus

SILENT_SECONDS = 30.0
"""An agent whose process lives but whose heartbeat is older than this is taken for hung."""


class LocalNode:
    """One node of the local platform."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _job(self, job_id: str) -> Path:
        return self.directory / "jobs" / job_id

    def alive(self) -> bool:
        """Whether the agent's process lives and beats."""
        state = _read(self.directory / "agent.json")
        if state is None or state.get("state") != "up":
            return False
        if not identity.is_alive(int(state["pid"]), str(state["start_time"])):
            return False
        return time.time() - float(state["heartbeat"]) < SILENT_SECONDS

    def why_gone(self) -> str:
        """What the agent last said; empty when it said nothing."""
        state = _read(self.directory / "agent.json") or {}
        return str(state.get("reason") or "")

    @contextmanager
    def submitted(self, job_id: str, staged: Path, job: Mapping[str, Any], secrets: Mapping[str, str]) -> Iterator[None]:
        """Hand a staged job to the agent, and answer its question for secrets while the block runs."""
        write_json(staged / "job.json", dict(job))
        target = self._job(job_id)
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if secrets:
            make_fifo(staged)
        serving = serve_secrets(target, secrets) if secrets else None
        try:
            staged.rename(target)
            yield
        finally:
            if serving is not None:
                serving.close()

    def status(self, job_id: str) -> JobStatus | None:
        """Return what the agent says of a job; None before it has said anything."""
        found = _read(self._job(job_id) / "status.json")
        if found is None:
            return None
        return JobStatus(**{name: found.get(name) for name in JobStatus.__slots__ if found.get(name) is not None})

    def jobs(self) -> list[str]:
        """Return the ids of all jobs ever handed to it."""
        place = self.directory / "jobs"
        return sorted(path.name for path in place.iterdir()) if place.is_dir() else []

    def file(self, job_id: str, name: str) -> Path:
        """The path of a file of a job: ``log.txt``, ``events.jsonl``, ``result.json``."""
        return self._job(job_id) / name

    def stop(self, job_id: str | None, *, grace_seconds: float, kill: bool = False) -> None:
        """Ask for *checkpoint now* (or a kill) of one job, or of all and no new one. Returns at once; idempotent."""
        place = self.directory if job_id is None else self._job(job_id)
        if place.is_dir():
            write_json(place / "stop.json", {"action": "kill" if kill else "checkpoint", "grace_seconds": grace_seconds})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def revoke(grant: Path) -> None:
    """Take a grant away: the agent that lives by it ends. Idempotent, durable."""
    grant.unlink(missing_ok=True)
    if grant.parent.is_dir():
        descriptor = os.open(grant.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
