"""A real agent per test: spawned as Terraform would, ended by its grant, and counted from outside by ``/proc``."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.agent import codecs, identity, submission, wire
from mlinfra_prefect.agent.specs import AgentSpec, CallableRef, CodeRef, JobSpec, StopOrder
from mlinfra_prefect.agent.status import JobStatus, read_status


def wait_until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Poll until the condition is truthy and return it; fail the test when it never is."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    pytest.fail(f"not within {seconds:g} s: {condition}")


def processes_with(variable: str) -> set[int]:
    """All live processes that carry ``NAME=value``, read from /proc: the judge shares no code with the agent."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


def code_zip(files: dict[str, str]) -> bytes:
    """A code archive of these sources."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def result_of(job_dir: Path) -> Any:
    """What a callable returned, decoded as the client does."""
    envelope = wire.read_json(job_dir / wire.RESULT)["value"]
    return codecs.decode(envelope, job_dir / wire.RESULT_FILES)


class NodeUnderTest:
    """One node directory with its grant, and the agent that lives in it."""

    def __init__(self, root: Path, archive: Path) -> None:
        self.root = root
        self.archive = archive
        self.dir = root / "node"
        self.dir.mkdir(mode=0o700)
        self.grant = root / "grant"
        self.grant.write_text("token-1")
        self.lease_id = f"lease-{uuid.uuid4().hex[:12]}"
        self.spec_path = root / "agent-spec.json"
        self.pids: list[int] = []

    def write_spec(self, **changes: Any) -> AgentSpec:
        fields: dict[str, Any] = {
            "ledger_id": "ledger-1",
            "lease_id": self.lease_id,
            "attempt": 1,
            "role": "node",
            "deadline": None,
            "node_dir": self.dir,
            "grant": self.grant,
            "grant_token": "token-1",
            "heartbeat_seconds": 0.2,
            "poll_seconds": 0.02,
            "python": Path(sys.executable),
            "cache_dir": self.root / "cache",
            "serve": None,
        }
        spec = AgentSpec(**{**fields, **changes})
        self.spec_path.write_text(json.dumps(spec.to_payload()))
        return spec

    def spawn(
        self, *, env: dict[str, str] | None = None, pass_fds: tuple[int, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", str(self.archive), "spawn", str(self.spec_path)],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, **(env or {})},
            pass_fds=pass_fds,
            check=False,
        )
        if done.returncode == 0:
            self.pids.append(self.state()["pid"])
        return done

    def start(self, *, env: dict[str, str] | None = None, **spec: Any) -> NodeUnderTest:
        self.write_spec(**spec)
        done = self.spawn(env=env)
        assert done.returncode == 0, done.stderr
        return self

    @property
    def pid(self) -> int:
        return self.pids[-1]

    def state(self) -> dict[str, Any]:
        return wire.read_json(self.dir / wire.AGENT_STATE)

    def gone(self) -> bool:
        return not identity.is_alive(self.pid, None)

    def processes(self) -> set[int]:
        return processes_with(f"MLINFRA_LEASE_ID={self.lease_id}")

    def submit(
        self,
        job_id: str = "job-1",
        *,
        files: dict[str, str] | None = None,
        code: bytes | None = None,
        function: str = "",
        **job: Any,
    ) -> Path:
        """Hand in a job: ``files`` become its code; ``function`` is ``file:qualname`` for a callable."""
        staging = submission.stage(self.dir, job_id)
        data = code if code is not None else (code_zip(files) if files else None)
        if data is not None:
            (staging / "code.zip").write_bytes(data)
            job.setdefault("code", CodeRef("code.zip", hashlib.sha256(data).hexdigest()))
        if function:
            file, _, qualname = function.partition(":")
            job["callable"] = CallableRef(None, file, qualname)
        fields = {
            "job_id": job_id,
            "lease_id": self.lease_id,
            "attempt": 1,
            "kind": "callable" if function else "command",
            "upload_dir": self.root / "uploads" / job_id,
            "grace_seconds": 5.0,
        }
        return submission.hand_in(self.dir, staging, JobSpec(**{**fields, **job}))

    def shell(self, script: str, job_id: str = "job-1", **job: Any) -> Path:
        return self.submit(job_id, command=("sh", "-c", script), **{"expects": "none", **job})

    def stop(self, directory: Path, action: str = "checkpoint", grace: float = 5.0) -> None:
        submission.stop(directory, StopOrder(action, grace))  # type: ignore[arg-type]

    def running(self, job_dir: Path) -> JobStatus:
        return wait_until(lambda: (s := read_status(job_dir)) is not None and s.state == "running" and s)

    def family(self, count: int) -> set[int]:
        """Wait until the lease has this many processes (a training needs a moment to fork its own) and return them."""
        return wait_until(lambda: len(found := self.processes()) >= count and found)

    def wait(self, job_dir: Path, seconds: float = 15.0) -> JobStatus:
        """The final status, once the agent says so as well (then nothing of the job runs any more)."""
        wait_until(lambda: self.state()["jobs"].get(job_dir.name) in wire.FINAL_STATES, seconds)
        status = read_status(job_dir)
        assert status is not None
        assert status.final
        return status

    def close(self) -> None:
        self.grant.unlink(missing_ok=True)
        for pid in self.pids:
            until = time.monotonic() + 5
            while identity.is_alive(pid, None) and time.monotonic() < until:
                time.sleep(0.01)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
