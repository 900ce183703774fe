"""The agent itself: holds the lock, starts one launcher at a time, and ends everything when its life ends.

It is deliberately dull. What can fail (disk full, a broken job file, a directory that vanishes) fails one job or one
heartbeat, never the agent: only `life.Life` and SIGTERM end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

from . import groups, identity
from .job_queue import JobQueue
from .servers import Servers
from .wire import AGENT_STATE, AGENT_STATE_SCHEMA, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from .life import Life
    from .specs import AgentSpec

GRACE_SECONDS = 2.0


class Agent:
    """One agent, which lives in this process.

    Args:
        spec: what it is for.
        spec_path: where the spec lies; launchers read it for themselves.
        archive: the archive it runs from; launchers run from it too.
        life: its right to live, already holding the lock.
    """

    def __init__(self, spec: AgentSpec, spec_path: Path, archive: Path, life: Life) -> None:
        self._spec = spec
        self._life = life
        self._told: str | None = None
        self._servers: Servers | None = None
        self._guardian: groups.Guardian | None = None
        self._archive = archive
        self._jobs = JobQueue(spec, spec_path, archive)
        self._written: object = None
        self._beat = 0.0
        self._identity = identity.mine()

    def run(self) -> int:
        """Live until there is a reason to end; returns the exit code (0: ended as it should)."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if self._spec.serve is not None:
            self._guardian = groups.Guardian()
            self._servers = Servers(self._spec, self._spec.serve, self._archive, self._guardian, self._say)
        waker = groups.Waker()
        try:
            if self._servers is not None:
                self._servers.start()
        except OSError as error:
            self._say(f"the server cannot be started: {error}")
            self._report("gone", f"the server cannot be started: {error.strerror}")
            return 1
        self._jobs.recover()
        reason = None
        while reason is None:
            self._step()
            waker.wait(self._spec.poll_seconds)
            reason = self._told or self._life.ended() or (self._servers.step() if self._servers else None)
        self._end(reason)
        return 0

    def _on_sigterm(self, *_: object) -> None:
        self._told = "the agent was told to end (SIGTERM)"

    def _step(self) -> None:
        try:
            self._jobs.step()
        except Exception:  # noqa: BLE001  (a bug or a full disk must not end a training: only Life may)
            self._say(traceback.format_exc())
        self._report("up", None)

    def _report(self, state: str, reason: str | None) -> None:
        jobs = self._jobs.states()
        now = time.monotonic()
        if self._written == (state, reason, jobs) and now - self._beat < self._spec.heartbeat_seconds:
            return
        pid, started = self._identity
        payload = {
            "schema": AGENT_STATE_SCHEMA, "lease_id": self._spec.lease_id, "attempt": self._spec.attempt,
            "pid": pid, "start_time": started, "state": state, "reason": reason,
            "heartbeat": time.time(), "jobs": jobs,
            "servers": [] if self._servers is None else self._servers.told(),
        }  # fmt: skip
        path = self._spec.node_dir / AGENT_STATE
        try:
            write_json(path, payload)
            self._written, self._beat = (state, reason, dict(jobs)), now
        except OSError:  # absent directory: Life says so; full disk: the file's age is a beat, and needs no room
            with contextlib.suppress(OSError):
                os.utime(path)

    def _end(self, reason: str) -> None:
        self._say(f"ending: {reason}")
        try:
            self._jobs.end(reason, GRACE_SECONDS)
        except Exception:  # noqa: BLE001  (the server must be ended too)
            self._say(traceback.format_exc())
        if self._servers is not None:
            self._servers.end(GRACE_SECONDS)
        if self._guardian is not None:
            self._guardian.close()
        self._report("gone", reason)

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
            sys.stderr.flush()
