"""A node without a machine: the real courier as a process, S3 and instance metadata on loopback, its client here."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.aws.node import BucketNode
from mlinfra_prefect.aws.platform import MAILBOX_TRIES
from mlinfra_prefect.aws.sdk import client

ROLE = "AROAEXAMPLE"


def wait_until(condition: Callable[[], Any], seconds: float = 20.0, why: Callable[[], Any] = lambda: "") -> Any:
    """Poll until the condition is truthy and return it; fail the test when it never is."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.03)
    pytest.fail(f"not within {seconds:g} s: {condition} {why()}")


class Metadata:
    """IMDSv2 of one instance on a loopback port."""

    def __init__(self, instance_id: str) -> None:
        self.lifetime = 3600.0
        self.served: list[str] = []
        self.broken = False
        metadata = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def _answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def do_PUT(self) -> None:
                metadata.served.append(f"PUT {self.path}")
                good = self.path == "/latest/api/token" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
                self._answer(200 if good and not metadata.broken else 403, "a-token")

            def do_GET(self) -> None:
                metadata.served.append(f"GET {self.path}")
                if self.headers.get("X-aws-ec2-metadata-token") != "a-token" or metadata.broken:
                    self._answer(401)
                    return
                role = "/latest/meta-data/iam/security-credentials/"
                texts = {
                    "/latest/meta-data/instance-id": instance_id,
                    role: "node-role",
                    f"{role}node-role": json.dumps({
                        "Code": "Success", "AccessKeyId": "AKIANODE", "SecretAccessKey": "node-secret",
                        "Token": f"session-{len(metadata.served)}",
                        "Expiration": f"{datetime.now(UTC) + timedelta(seconds=metadata.lifetime):%Y-%m-%dT%H:%M:%SZ}",
                    }),
                }  # fmt: skip
                found = texts.get(self.path)
                self._answer(404 if found is None else 200, found or "")

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


def processes_with(variable: str) -> set[int]:
    """All live processes that carry ``NAME=value``, read from /proc."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and variable.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.add(int(entry.name))
    return found


class Machine:
    """One machine that runs the courier, and the client's home beside it."""

    def __init__(self, root: Path, archive: Path, bucket: str, endpoint: str) -> None:
        self.root, self.archive, self.bucket, self.endpoint = root, archive, bucket, endpoint
        self.instance_id = f"i-{uuid.uuid4().hex[:17]}"
        self.lease_id = f"lease-{uuid.uuid4().hex[:12]}"
        self.prefix = f"nodes/{ROLE}:{self.instance_id}"
        self.metadata = Metadata(self.instance_id)
        self.place = root / "machine"
        self.node_root = self.place / "var"
        self.bin = self.place / "bin"
        self.bin.mkdir(parents=True)
        self.shut_down = self.place / "shut-down"
        self.tool("shutdown", f'echo "$@" >> {self.shut_down}')
        self.home = root / "client"
        self.home.mkdir()
        self.courier: subprocess.Popen[bytes] | None = None

    def tool(self, name: str, script: str) -> None:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def boot(self, *, seconds: float = 120.0, gpus: int = 0, gib: float = 0.0, **env: str) -> Machine:
        payload = {
            "schema": "mlinfra-prefect/boot/1", "region": "us-east-1", "endpoint": self.endpoint, "bucket": self.bucket,
            "agent_url": "http://127.0.0.1/none", "agent_sha256": "0" * 64, "role_id": ROLE, "ledger_id": "ledger-1",
            "lease_id": self.lease_id, "attempt": 1, "deadline": time.time() + seconds,
            "acceptance": {"gpus": gpus, "gpu_memory_gib": gib},
        }  # fmt: skip
        encoded = base64.b64encode(json.dumps(payload).encode()).decode()
        environment = {
            "PATH": f"{self.bin}:{os.environ['PATH']}", "HOME": str(self.place),
            "MLINFRA_NODE_ROOT": str(self.node_root), "AWS_EC2_METADATA_SERVICE_ENDPOINT": self.metadata.url, **env,
        }  # fmt: skip
        with (self.place / "console").open("ab") as console:
            self.courier = subprocess.Popen(
                [sys.executable, "-I", "-S", str(self.archive), "courier", encoded],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, start_new_session=True,
            )  # fmt: skip
        return self

    def client(self, name: str = "node", poll: float = 0.05) -> BucketNode:
        """The node as a client sees it; another name is another mirror, as of a client on another host."""
        directory = self.home / name
        directory.mkdir(exist_ok=True)
        return BucketNode(directory, client(tries=MAILBOX_TRIES), self.bucket, self.prefix, poll_seconds=poll)

    def up(self, **spec: Any) -> BucketNode:
        node = self.client()
        node.begin({"sync_seconds": 0.1, "look_seconds": 0.05, "poll_seconds": 0.02, "heartbeat_seconds": 0.5, **spec})
        wait_until(node.ready, why=self.console)
        return node

    def job(self, job_id: str, **job: Any) -> tuple[str, Path, dict[str, Any]]:
        """What `submitted` takes, but the secrets; as `lifecycle.submitting` makes it."""
        staged = self.home / "staging" / job_id
        staged.mkdir(parents=True)
        store = self.home / "checkpoints" / job.pop("key", job_id)
        store.mkdir(parents=True, exist_ok=True)
        told = {
            "schema": "mlinfra-prefect/job/1", "job_id": job_id, "lease_id": self.lease_id, "attempt": 1,
            "kind": "command", "command": None, "callable": None, "code": None, "args": None, "params": {},
            "inputs": {}, "artifacts": {}, "requirements": [], "secrets": [], "grace_seconds": 5.0,
            "progress_timeout_seconds": None, "checkpoint": {"key": "key", "store": str(store)},
            "upload_dir": str(self.home / "uploads" / job_id), "env": {}, "expects": "none", "beside": False,
            "check_metrics": True, **job,
        }  # fmt: skip
        return job_id, staged, told

    def shell(self, node: BucketNode, job_id: str, script: str, **job: Any) -> None:
        with node.submitted(*self.job(job_id, command=["sh", "-c", script], **job), {}):
            pass

    def ended(self, node: BucketNode, job_id: str, seconds: float = 20.0) -> Any:
        return wait_until(lambda: (s := node.status(job_id)) and s.ended and s, seconds, why=self.console)

    def console(self) -> str:
        log = self.node_root / "courier.log"
        console = (self.place / "console").read_text() if (self.place / "console").exists() else ""
        return f"{console}\n{log.read_text() if log.exists() else ''}"

    def processes(self) -> set[int]:
        return processes_with(f"MLINFRA_LEASE_ID={self.lease_id}")

    def over(self, seconds: float = 20.0) -> str:
        """Wait until the courier has ended; returns what it asked of ``shutdown``."""
        assert self.courier is not None
        wait_until(lambda: self.courier.poll() is not None, seconds, why=self.console)
        return self.shut_down.read_text().strip() if self.shut_down.exists() else ""

    def close(self) -> None:
        if self.courier is not None and self.courier.poll() is None:
            self.courier.kill()
            self.courier.wait()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.metadata.close()
