"""Rule: a backend's lock is broken by its exact id, and only where its holder is certainly dead (R6)."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlinfra_prefect.errors import StateLocked, TerraformFailed
from mlinfra_prefect.terraform import Slots, Stack, command, stale
from mlinfra_prefect.testing.emulator import MotoServer

Write = Callable[..., Path]


class Backend(BaseHTTPRequestHandler):
    """Terraform's `http` backend: a state, and a lock that has no expiry."""

    state = b""
    lock: dict[str, Any] | None = None
    loses_unlock = False

    def answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self) -> None:
        self.answer(200 if Backend.state else 404, Backend.state)

    def do_POST(self) -> None:
        Backend.state = self.body()
        self.answer(200)

    def do_LOCK(self) -> None:
        wanted = json.loads(self.body())
        if Backend.lock is not None:
            self.answer(423, json.dumps(Backend.lock).encode())
            return
        Backend.lock = wanted
        self.answer(200)

    def do_UNLOCK(self) -> None:
        self.body()
        if Backend.loses_unlock:
            self.answer(403)
            return
        Backend.lock = None
        self.answer(200)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def address() -> Iterator[str]:
    """A backend on the loopback interface."""
    Backend.state, Backend.lock, Backend.loses_unlock = b"", None, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Backend)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_lock_of_a_dead_terraform_is_broken_by_its_id_and_one_of_another_host_never(
    stack: Stack, write_module: Write, deadline: float, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real apply whose unlock was lost: its Terraform is gone, and its lock would stay for ever."""
    monkeypatch.setitem(command._COMMON, "lock_timeout", "0s")  # noqa: SLF001 (nobody waits for the dead in a test)
    root = write_module('terraform {\n backend "http" {}\n}\nresource "terraform_data" "one" {}')
    settings = {"address": address, "lock_address": address, "unlock_address": address}
    stack.prepare(root, {}, deadline=deadline, backend=settings)
    stack.plan(deadline=deadline)
    Backend.loses_unlock = True
    with pytest.raises(TerraformFailed, match="Error releasing the state lock"):
        stack.apply(deadline=deadline)
    Backend.loses_unlock = False
    left = Backend.lock
    assert left is not None
    time.sleep(1.0)  # Terraform's own clock: it tells the second in which a lock was made
    Backend.lock = {**left, "Who": "root@another-host"}
    with pytest.raises(StateLocked) as caught:
        stack.destroy(deadline=deadline)
    assert Backend.lock["ID"] == left["ID"]
    Backend.lock = left
    if stack.engine.version.startswith("1.11."):
        # Its `http` backend describes the lock that it wanted: who holds this one is not known, so it stays.
        with pytest.raises(StateLocked):
            stack.destroy(deadline=deadline)
        assert Backend.lock == left
        return
    assert "another-host, which cannot be seen from here" in caught.value.message
    assert f"terraform force-unlock {left['ID']}" in caught.value.remedy
    assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.one",)
    assert Backend.lock is None
    assert len(list((stack.directory / "output").glob("*-force-unlock.out"))) == 1


def test_a_plan_and_a_destroy_break_the_lock_of_a_dead_terraform_in_a_bucket(
    stack: Stack, write_module: Write, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 tells whose lock it is: that of this stack's dead is broken, another host's and another home's stay."""
    monkeypatch.setitem(command._COMMON, "lock_timeout", "0s")  # noqa: SLF001 (nobody waits for the dead in a test)
    long_ago = MADE
    root = write_module('terraform {\n backend "s3" {}\n}\nresource "terraform_data" "one" {}')
    settings = {"bucket": "states", "key": "k", "region": "us-east-1", "use_lockfile": "true", "use_path_style": "true"}
    left = {"ID": "1f-2", "Operation": "OperationTypeApply", "Info": "", "Version": "1.11.4", "Path": "states/k"}
    with MotoServer() as server:
        s3 = boto3.client("s3", endpoint_url=server.url, region_name="us-east-1", aws_access_key_id="k",
                          aws_secret_access_key="s")  # fmt: skip
        s3.create_bucket(Bucket="states")

        def lock(host: str, made: datetime = long_ago) -> None:
            told = {**left, "Who": f"root@{host}", "Created": f"{made:%Y-%m-%dT%H:%M:%S.%f}Z"}
            s3.put_object(Bucket="states", Key="k.tflock", Body=json.dumps(told).encode())

        stack = Stack(stack.directory, engine=stack.engine, slots=Slots(stack.directory / "slots", limit=1),
                      env=server.environment)  # fmt: skip
        stack.prepare(root, {}, deadline=deadline, backend=settings)
        lock("another-host")
        with pytest.raises(StateLocked, match="another-host, which cannot be seen from here"):
            stack.plan(deadline=deadline)
        lock(socket.gethostname())
        with pytest.raises(StateLocked, match=f"{socket.gethostname()}, which may be another home's"):
            stack.plan(deadline=deadline)
        printed(stack.directory / "output", "plan", CUT_OFF, at=long_ago)
        stack.plan(deadline=deadline)
        stack.apply(deadline=deadline)
        stored = s3.get_object(Bucket="states", Key="k")["Body"].read()
        lock(socket.gethostname())
        (stack.directory / "errored.tfstate").write_bytes(stored)
        stack.prepare(root, {}, deadline=deadline, backend=settings)
        assert not (stack.directory / "errored.tfstate").exists(), "what had not been stored is now"
        lock(socket.gethostname())
        assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.one",)
        assert [each["Key"] for each in s3.list_objects_v2(Bucket="states")["Contents"]] == ["k"]
        (stack.directory / "errored.tfstate").write_bytes(s3.get_object(Bucket="states", Key="k")["Body"].read())
        lock(socket.gethostname(), long_ago + timedelta(hours=1))
        with pytest.raises(StateLocked, match="which may be another home's. Where that is certainly gone"):
            stack.prepare(root, {}, deadline=deadline, backend=settings)
        assert (stack.directory / "errored.tfstate").exists(), "and it is kept until it is"


VERSION = '{"@level":"info","type":"version"}'
WAITS = '{"@level":"info","type":"state_lock_acquire"}'
STARTS = '{"@level":"info","type":"refresh_start"}'
CUT_OFF = f'{VERSION}\n{STARTS}\n{{"@level":"in'
MADE = datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)


def printed(output: Path, name: str, text: str, *, at: datetime, until: float = 2.0) -> None:
    """What a command left that began a second before a moment, and printed its last some seconds after it."""
    output.mkdir(exist_ok=True)
    path = output / f"{int((at.timestamp() - 1) * 1e9)}-{name}.out"
    path.write_text(text)
    os.utime(path, (at.timestamp() + until,) * 2)


@pytest.mark.parametrize(
    ("text", "until", "ours"),
    [
        (CUT_OFF, 2.0, True),
        (f"{VERSION}\n{WAITS}\n{STARTS}", 2.0, True),
        (CUT_OFF, -0.2, False),  # it was gone before
        (f"{VERSION}\n{WAITS}", 2.0, False),  # killed while it waited for somebody else's
        (VERSION, 2.0, False),
        ("", 2.0, False),
        (f'{CUT_OFF}\n{{"@level":"info","type":"change_summary"}}', 2.0, False),  # it ended, and gave its lock back
        (f'{STARTS}\n{{"@level":"error","type":"diagnostic"}}', 2.0, False),
        ('{"@level":"error","type":"diagnostic","@message":"Error releasing the state lock"}', 2.0, True),
    ],
)
def test_a_lock_is_a_stack_s_own_where_one_of_its_commands_had_it_and_was_cut_off(
    tmp_path: Path, text: str, until: float, *, ours: bool
) -> None:
    """Homes of one host share an environment's state: that the host is this one proves nothing."""
    printed(tmp_path / "output", "apply", text, at=MADE, until=until)
    assert stale.left_by(tmp_path / "output", stale.Held("1f-2", "root@h", MADE.timestamp())) is ours
    assert not stale.left_by(tmp_path / "output", stale.Held("1f-2", "root@h", MADE.timestamp() - 2))
    assert not stale.left_by(tmp_path / "none", stale.Held("1f-2", "root@h", MADE.timestamp()))


WHOLE = "Lock Info: ID: 1f-2 Path: s3://b/k Operation: OperationTypeApply Who: ada@laptop Version: 1 "


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{WHOLE} Created: 1970-01-01 00:00:09.5 +0000 UTC Info:", "1f-2"),
        (f"PutObject, RequestID: Gv4, HostID: 9+: {WHOLE} Created: 1970-01-01 00:00:09.5 +0000 UTC Info:", "1f-2"),
        (f"{WHOLE} Created: 1970-01-01 00:00:10.5 +0000 UTC Info:", None),
        (WHOLE, None),
        ("the state is locked", None),
        ("Lock Info: ID: -lock=false;x Who: ada@laptop Created: 1970-01-01 00:00:09.5 +0000 UTC", None),
        ("Lock Info: ID: 1f-2 Created: 1970-01-01 00:00:09.5 +0000 UTC", None),
    ],
)
def test_only_a_lock_that_is_told_whole_and_was_there_before_is_a_lock(text: str, found: str | None) -> None:
    """An id is never made of an option or of half a sentence, and the lock that we wanted ourselves is nobody's."""
    held = stale.described(text, before=10.2)
    assert (held.id if held else None) == found
