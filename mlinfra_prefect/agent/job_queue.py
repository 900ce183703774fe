"""The jobs of one node: in order of arrival, one at a time, each under a launcher of its own.

A job that says ``beside`` runs at once, next to the others: a look at a running training must not wait for its end.

A job *is* its directory. It arrives by an atomic rename, so whoever sees ``job.json`` sees a complete job.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from typing import TYPE_CHECKING

from . import allowlist, groups, identity
from .specs import JobSpec, StopOrder
from .status import JobStatus, read_status
from .wire import FAILED, JOB, JOBS, QUEUED, STATUS, STOP, STOPPED, SpecError, read_json

if TYPE_CHECKING:
    from pathlib import Path

    from .specs import AgentSpec


def read_stop(directory: Path) -> StopOrder | None:
    """The stop order in a directory, or None. One that cannot be read stops too: somebody meant to."""
    try:
        return StopOrder.from_payload(read_json(directory / STOP))
    except FileNotFoundError:
        return None
    except (OSError, SpecError):
        return StopOrder("checkpoint", 30.0)


class JobQueue:
    """All jobs of one agent. `step` is called at every poll and never blocks."""

    def __init__(self, spec: AgentSpec, spec_path: Path, archive: Path) -> None:
        self._spec = spec
        self._spec_path = spec_path
        self._archive = archive
        self._root = spec.node_dir / JOBS
        self._states: dict[str, str] = {}
        self._waiting: list[str] = []
        self._beside: set[str] = set()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._unsaid: dict[str, JobStatus] = {}

    def states(self) -> dict[str, str]:
        """The state of every job."""
        return self._states

    def recover(self) -> None:
        """Close what a former agent of this directory left half-done; its queued jobs are run."""
        for job_id in self._new():
            status = read_status(self._root / job_id)
            if status is None or status.state == QUEUED:
                continue
            self._states[job_id] = status.state
            if not status.final:
                self._close(job_id, FAILED, "the agent that ran this job died")

    def step(self) -> None:
        """Take in new jobs, follow the running ones, start the next."""
        self._say_endings()
        for job_id in self._new():
            self._accept(job_id)
        for job_id, launcher in list(self._running.items()):
            self._follow(job_id, launcher)
        order = read_stop(self._spec.node_dir)
        for job_id in list(self._waiting):
            if order is not None:
                self._waiting.remove(job_id)
                self._close(job_id, STOPPED, "the node was told to stop before this job started")
            elif read_stop(self._root / job_id) is not None:
                self._waiting.remove(job_id)
                self._close(job_id, STOPPED, "the job was told to stop before it started")
        for job_id in list(self._waiting):
            if job_id in self._beside or not self._running.keys() - self._beside:
                self._waiting.remove(job_id)
                self._start(job_id)

    def end(self, reason: str, grace: float) -> None:
        """End every job: SIGTERM to the launcher (which ends its training), ``grace`` seconds, SIGKILL to all."""
        for job_id in self._waiting:
            self._close(job_id, STOPPED, reason)
        self._waiting.clear()
        until = time.monotonic() + grace
        for launcher in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                launcher.terminate()
        for job_id, launcher in list(self._running.items()):
            # The launcher first: it needs most of the grace for its own SIGTERM to the training.
            groups.end(launcher, max(0.0, until - time.monotonic()))
            status = read_status(self._root / job_id)
            if status is not None and status.pid is not None:
                groups.kill(status.pid, status.start_time)
            self._settle(job_id, STOPPED, reason)

    def _new(self) -> list[str]:
        try:
            with os.scandir(self._root) as entries:
                fresh = [entry.name for entry in entries if entry.name not in self._states and entry.name[0] != "."]
        except (FileNotFoundError, NotADirectoryError):
            return []
        arrived: list[tuple[int, str]] = []
        for name in fresh:
            with contextlib.suppress(OSError):
                arrived.append(((self._root / name / JOB).stat().st_mtime_ns, name))
        return [name for _, name in sorted(arrived)]

    def _accept(self, job_id: str) -> None:
        job_dir = self._root / job_id
        try:
            job = self._read(job_id)
        except SpecError as error:
            self._close(job_id, FAILED, str(error))
            return
        if job.beside:
            self._beside.add(job_id)
        self._states[job_id] = QUEUED
        self._waiting.append(job_id)
        JobStatus(queued_at=time.time()).write(job_dir)

    def _read(self, job_id: str) -> JobSpec:
        job = JobSpec.from_payload(read_json(self._root / job_id / JOB))
        if job.job_id != job_id:
            raise SpecError(f"job: 'job_id' is {job.job_id!r}, but the directory is {job_id!r}")
        if (job.lease_id, job.attempt) != (self._spec.lease_id, self._spec.attempt):
            raise SpecError(f"job: it is for lease {job.lease_id!r}, attempt {job.attempt}, not for this node")
        return job

    def _start(self, job_id: str) -> None:
        argv = [
            str(self._spec.python), "-I", "-S", str(self._archive), "job", str(self._root / job_id),
            "--spec", str(self._spec_path), "--agent", str(os.getpid()),
        ]  # fmt: skip
        try:
            launcher = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=2, cwd="/", start_new_session=True,
                env={**allowlist.inherited(pip=True), **allowlist.marks(self._spec)},
            )  # fmt: skip
        except OSError as error:
            self._close(job_id, FAILED, f"the launcher cannot be started: {error}")
            return
        self._running[job_id] = launcher

    def _follow(self, job_id: str, launcher: subprocess.Popen[bytes]) -> None:
        code = launcher.poll()
        with contextlib.suppress(FileNotFoundError):
            found = (self._root / job_id / STATUS).stat()
            seen = (found.st_ino, found.st_mtime_ns)
            if seen != self._seen.get(job_id):
                status = read_status(self._root / job_id)
                self._seen[job_id] = seen
                # "Finished" is said only once the launcher is gone as well: then nothing of the job runs any more.
                if status is not None and (code is not None or not status.final):
                    self._states[job_id] = status.state
        if code is not None:
            status = read_status(self._root / job_id)
            if status is not None and not status.final and status.pid is not None:
                groups.kill(status.pid, status.start_time)
            self._settle(job_id, FAILED, f"the launcher ended with {code} and did not say how the job went")

    def _settle(self, job_id: str, state: str, reason: str) -> None:
        """The launcher is gone: take its word, or say what happened."""
        self._running.pop(job_id, None)
        status = read_status(self._root / job_id)
        if status is not None and status.final:
            self._states[job_id] = status.state
        else:
            self._close(job_id, state, reason)

    def _close(self, job_id: str, state: str, reason: str) -> None:
        self._states[job_id] = state
        job_dir = self._root / job_id
        status = read_status(job_dir) or JobStatus(queued_at=time.time())
        if status.pid is not None and not identity.is_alive(status.pid, status.start_time):
            status = JobStatus(**{**status.__dict__, "pid": None, "start_time": None})
        self._unsaid[job_id] = status.ended(state, reason)
        self._say_endings()

    def _say_endings(self) -> None:
        """Write how jobs ended; on a full disk again at every step: somebody waits for it, a release among them."""
        for job_id, status in list(self._unsaid.items()):
            try:
                status.write(self._root / job_id)
            except (FileNotFoundError, NotADirectoryError):
                pass  # gone with the lease
            except OSError:
                continue
            del self._unsaid[job_id]
