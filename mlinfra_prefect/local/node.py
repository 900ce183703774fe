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
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.secrets import make_fifo, serve_secrets
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.model.stack import JobStatus

SILENT_SECONDS = 30.0
"""An agent whose process lives but whose heartbeat is older than this may hang."""
SECOND_LOOK_SECONDS = 6.0
"""Three heartbeats: a host that slept, or whose clock was set, shows old ones for a moment; a hung agent for ever."""
LOOK_SECONDS = 0.1


class LocalNode:
    """One node of the local platform."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def _job(self, job_id: str) -> Path:
        return self.directory / "jobs" / job_id

    def lives(self) -> bool:
        """Whether the agent's process is there, though it may hang or be ending."""
        state = self._state()
        return "pid" in state and identity.is_alive(int(state["pid"]), str(state.get("start_time")))

    def alive(self) -> bool:
        """Whether the agent's process lives and beats. Blocks for `SECOND_LOOK_SECONDS` at most, where it is silent."""
        until = time.monotonic() + SECOND_LOOK_SECONDS
        first = self._beat()
        while self.lives():
            if self._state().get("state") != "up":
                return False
            beat = self._beat()
            if beat is not None and (beat != first or abs(time.time() - beat) < SILENT_SECONDS):
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(LOOK_SECONDS)
        return False

    def _beat(self) -> float | None:
        """When the agent last showed life (epoch seconds): on a full disk it only touches what it wrote last."""
        told = self._state().get("heartbeat")
        try:
            return None if told is None else max(float(told), (self.directory / "agent.json").stat().st_mtime)
        except OSError:
            return None

    def _state(self) -> dict[str, Any]:
        """What the agent says of itself; empty before it has said anything."""
        return _read(self.directory / "agent.json") or {}

    def why_gone(self) -> str:
        """What the agent last said; empty when it said nothing."""
        return str(self._state().get("reason") or "")

    @contextmanager
    def submitted(
        self, job_id: str, staged: Path, job: Mapping[str, Any], secrets: Mapping[str, str], *,
        origin: Mapping[str, Any] | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Hand a staged job to the agent, and answer its question for secrets while the block runs."""
        del origin  # what is on this host is kept by this home
        write_json(staged / "job.json", dict(job))
        target = self._job(job_id)
        private_folder(target.parent)
        if secrets:
            make_fifo(staged)
        with self.answering(job_id, secrets):
            staged.rename(target)
            yield

    def origin(self, job_id: str) -> Mapping[str, Any] | None:
        """Nothing: no other home keeps what is on this host."""
        del job_id
        return None

    def expect(self, job_id: str, upload_dir: Path, store: Path) -> None:
        """Nothing has to be brought."""

    @contextmanager
    def answering(self, job_id: str, secrets: Mapping[str, str]) -> Iterator[None]:
        """Answer the question for secrets of a job that was handed over before, while the block runs."""
        serving = serve_secrets(self._job(job_id), secrets) if secrets else None
        try:
            yield
        finally:
            if serving is not None:
                serving.close()

    def status(self, job_id: str) -> JobStatus | None:
        """Return what the agent says of a job; None before it has said anything."""
        found = _read(self._job(job_id) / "status.json")
        if found is None or "state" not in found:
            return None
        return JobStatus(**{name: found[name] for name in JobStatus.__slots__ if found.get(name) is not None})

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
            order = {"action": "kill" if kill else "checkpoint", "grace_seconds": grace_seconds}
            write_json(place / "stop.json", order)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None  # absent, or not what it should be: both say nothing
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
