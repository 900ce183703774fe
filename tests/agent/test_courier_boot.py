"""The first minute of a machine: ``boot.sh`` becomes the courier, or powers the machine off."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

BOOT = files("mlinfra_prefect").joinpath("hcl", "modules", "gpu-node", "boot.sh").read_text()


def archive() -> bytes:
    """An archive that says how it was called."""
    script = "import json, sys\nopen(sys.argv[0] + '.called', 'w').write(json.dumps([sys.argv, sys.flags.isolated]))\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("__main__.py", script)
    return buffer.getvalue()


class Machine:
    """A PATH with little on it, and a server that has the archive."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin, self.node = root, root / "bin", root / "node"
        self.bin.mkdir()
        self.served: list[int] = []
        self.fails = 0
        self.data = archive()
        for name in ("mkdir", "chmod", "mv", "curl"):
            found = shutil.which(name)
            if found:
                (self.bin / name).symlink_to(found)
        self.tool("python3", f'exec {sys.executable} "$@"')
        self.tool("shutdown", f'echo "$@" >> {root}/shut-down')
        self.tool("sleep", f'echo "$@" >> {root}/slept')
        machine = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                status = 503 if len(machine.served) < machine.fails else 200
                machine.served.append(status)
                self.send_response(status)
                self.send_header("Content-Length", str(len(machine.data)))
                self.end_headers()
                self.wfile.write(machine.data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/agent.pyz?X-Amz-Signature=a%2Fb&c=d"

    def tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def run(self, **told: str) -> subprocess.CompletedProcess[str]:
        payload = {"agent_url": self.url, "agent_sha256": hashlib.sha256(self.data).hexdigest(), **told}
        encoded = base64.b64encode(json.dumps(payload).encode()).decode()
        script = self.root / "user-data"
        script.write_text(f"#!/bin/bash\nshutdown -P +60\nMLINFRA_BOOT={encoded}\n{BOOT}")
        bash = shutil.which("bash")
        return subprocess.run(
            [bash, str(script)], capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": str(self.bin), "MLINFRA_NODE_ROOT": str(self.node)},
        )  # fmt: skip

    @property
    def powered(self) -> list[str]:
        return (self.root / "shut-down").read_text().splitlines()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("curl", [True, False], ids=["curl", "python"])
def test_a_machine_becomes_its_courier(machine: Machine, curl: bool) -> None:
    """The dead-man is armed first; the archive is fetched, checked, and run with nothing of the machine's Python."""
    if not curl:
        (machine.bin / "curl").unlink(missing_ok=True)
    machine.fails = 2
    done = machine.run()
    assert done.returncode == 0, done.stderr
    assert machine.powered == ["-P +60"]
    argv, isolated = json.loads((machine.node / "agent.pyz.called").read_text())
    assert argv[:2] == [str(machine.node / "agent.pyz"), "courier"]
    assert json.loads(base64.b64decode(argv[2]))["agent_url"] == machine.url
    assert isolated == 1
    assert machine.served == [503, 503, 200]
    assert machine.node.stat().st_mode & 0o777 == 0o700


def test_an_archive_that_is_not_what_its_sha256_says_is_never_run(machine: Machine) -> None:
    """It is fetched a bounded number of times, then the machine goes."""
    done = machine.run(agent_sha256="0" * 64)
    assert done.returncode == 1
    assert machine.powered == ["-P +60", "-P now"]
    assert "not what its sha256 says" in done.stderr
    assert not (machine.node / "agent.pyz.called").exists()
    assert 5 <= len(machine.served) <= 20


def test_a_machine_that_cannot_fetch_its_agent_goes(machine: Machine) -> None:
    """Nobody answers: bounded tries, with pauses that grow."""
    machine.fails = 1000
    done = machine.run()
    assert (done.returncode, machine.powered[-1]) == (1, "-P now")
    assert "could not be fetched" in done.stderr
    pauses = [int(each) for each in (machine.root / "slept").read_text().split()]
    assert pauses == sorted(pauses)
    assert sum(pauses) < 300


def test_a_machine_without_a_python_goes(machine: Machine) -> None:
    """Python 3.10 is not enough; one that is there and does not run is passed over."""
    machine.tool("python3", "exit 1")
    machine.tool("python3.12", "exit 127")
    done = machine.run()
    assert (done.returncode, machine.powered[-1]) == (1, "-P now")
    assert "no Python 3.11 or later" in done.stderr
    assert machine.served == []


def test_the_newest_python_that_runs_is_taken(machine: Machine) -> None:
    """A name that leads nowhere, then one that works."""
    machine.tool("python3.14", "exit 127")
    machine.tool("python3.11", f'echo taken >> {machine.root}/taken; exec {sys.executable} "$@"')
    machine.tool("python3", "exit 1")
    assert machine.run().returncode == 0
    assert (machine.root / "taken").exists()


def test_what_it_was_told_must_be_readable(machine: Machine) -> None:
    """No address: nothing to become."""
    script = machine.root / "user-data"
    script.write_text(f"#!/bin/bash\nshutdown -P +60\nMLINFRA_BOOT=e30=\n{BOOT}")
    done = subprocess.run(
        [shutil.which("bash"), str(script)], capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": str(machine.bin), "MLINFRA_NODE_ROOT": str(machine.node)},
    )  # fmt: skip
    assert (done.returncode, machine.powered) == (1, ["-P +60", "-P now"])


def test_a_root_that_cannot_be_made_ends_it(machine: Machine) -> None:
    """A file has its name."""
    machine.node.write_text("")
    done = machine.run()
    assert (done.returncode, machine.powered[-1]) == (1, "-P now")


def test_user_data_has_room(machine: Machine) -> None:
    """EC2 takes 16 KiB in all, and what a boot is told takes most of it."""
    assert len(BOOT.encode()) < 4096
