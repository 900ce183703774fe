"""One emulated machine: the processes of an EC2 instance, with a home, a PATH and an environment of their own.

It inherits nothing of whoever tests: no credentials, no ``AWS_*``, no configuration of their home. What is let
through is how to reach a package index, and only where that names no password. It is no sandbox: the processes run as
this user.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from mlinfra_prefect.testing.aws.kinds import Gpu
from mlinfra_prefect.testing.aws.stand_ins import PowerRequest, power_request, stand_ins
from mlinfra_prefect.testing.aws.user_data import interpreter

MARK = "MLINFRA_EMULATED_INSTANCE"
"""Every process of a machine has it in its environment, with the instance's id: the second way to find them all."""
GRACE_SECONDS = 0.5
"""Between SIGTERM and SIGKILL when a machine ends. A real one has longer; a test waits for it."""
HARD_SECONDS = 5.0
"""After this the emulator kills what the machine's first process has not."""
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LET_THROUGH = (
    "LANG", "LC_ALL", "TZ", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "PIP_INDEX_URL", "PIP_CERT",
    "PIP_TRUSTED_HOST", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
)  # fmt: skip

MachineState = Literal["running", "ending", "ended"]


@dataclass(frozen=True, slots=True)
class Boot:
    """What a machine starts with.

    Args:
        instance_id: its id.
        root: a directory that is its own.
        user_data: decoded; run where `run`.
        run: whether the user data is run; it is written down in any case.
        gpus: what its ``nvidia-smi`` finds.
        broken: its GPU driver does not answer.
        metadata: where its metadata service answers.
        grace_seconds: between SIGTERM and SIGKILL at its end.
    """

    instance_id: str
    root: Path
    user_data: bytes
    run: bool
    gpus: tuple[Gpu, ...]
    broken: bool
    metadata: str
    grace_seconds: float = GRACE_SECONDS


def machine_environment(boot: Boot, inherited: dict[str, str]) -> dict[str, str]:
    """Return the whole environment of a machine's processes. Pure.

    Args:
        boot: what it starts with.
        inherited: the emulator's own environment, of which little is let through.
    """
    let = {name: inherited[name] for name in _LET_THROUGH if "@" not in inherited.get(name, "@")}
    direct = ",".join(filter(None, (inherited.get("NO_PROXY", ""), "127.0.0.1,localhost")))
    return {
        **let,
        "NO_PROXY": direct, "no_proxy": direct, "PATH": f"{boot.root / 'bin'}:{SYSTEM_PATH}",
        "HOME": str(boot.root / "home"), "TMPDIR": str(boot.root / "tmp"), "USER": "root", "LOGNAME": "root",
        "SHELL": "/bin/bash", "MLINFRA_NODE_ROOT": str(boot.root / "node"), MARK: boot.instance_id,
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": boot.metadata,
    }  # fmt: skip


class Machine:
    """The processes of one instance. Not safe for threads.

    Args:
        boot: what it starts with.
    """

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        self.state: MachineState = "running"
        self.console = boot.root / "console.log"
        self.power_off_at: float | None = None
        """Epoch seconds at which it asked to be powered off."""
        self._power = boot.root / "power"
        self._power_read = 0
        self._first: subprocess.Popen[bytes] | None = None
        self._ending_since = 0.0

    def start(self) -> None:
        """Make its directories, and run its user data where it is to be run."""
        root = self.boot.root
        for name in ("", "home", "node", "bin", "tmp"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        script = root / "user-data"
        script.write_bytes(self.boot.user_data)
        self.console.touch(mode=0o600)
        self._power.touch(mode=0o600)
        for name, text in stand_ins(self._power, self.boot.gpus, broken=self.boot.broken).items():
            (root / "bin" / name).write_text(text, encoding="utf-8")
            (root / "bin" / name).chmod(0o700)
        command = (*interpreter(self.boot.user_data), str(script))
        if not self.boot.run or len(command) == 1:
            return
        first = Path(__file__).with_name("first_process.py")
        with self.console.open("ab") as console:
            self._first = subprocess.Popen(
                (
                    sys.executable, "-I", "-S", str(first), str(self.boot.grace_seconds), str(root / "booted"),
                    *command,
                ),
                stdin=subprocess.PIPE, stdout=console, stderr=console, cwd=root / "home", start_new_session=True,
                env=machine_environment(self.boot, dict(os.environ)),
            )  # fmt: skip

    def power_requests(self) -> list[PowerRequest]:
        """Return what was asked about its power since the last call, oldest first."""
        with suppress(FileNotFoundError), self._power.open("rb") as file:
            file.seek(self._power_read)
            whole = file.read().rpartition(b"\n")[0]
            self._power_read += len(whole) + 1 if whole else 0
            asked = (power_request(line.decode(errors="replace")) for line in whole.splitlines())
            return [each for each in asked if each is not None]
        return []

    def booted(self) -> bool:
        """Whether its user data has begun, where it is to run."""
        return self._first is None or (self.boot.root / "booted").exists()

    def pids(self) -> list[int]:
        """Return its processes, without the one that stands for its kernel; empty when all have ended."""
        if self._first is None or self._first.poll() is not None:
            return []
        with suppress(psutil.NoSuchProcess):
            return [each.pid for each in psutil.Process(self._first.pid).children(recursive=True)]
        return []

    def end(self) -> None:
        """Begin to end every process; returns at once. Idempotent."""
        if self.state != "running":
            return
        self.state, self._ending_since = "ending", time.monotonic()
        self.power_off_at = None
        if self._first is not None and self._first.stdin is not None:
            with suppress(OSError):
                self._first.stdin.write(b"off\n")
                self._first.stdin.close()

    def ended(self) -> bool:
        """Whether every process has ended, after `end`; kills what is late. Its disk is gone then, its console not."""
        if self.state == "ended":
            return True
        if self.state == "running":
            return False
        if self._first is not None:
            late = time.monotonic() - self._ending_since > HARD_SECONDS
            if self._first.poll() is None and late:
                self._first.kill()
            if self._first.poll() is None:
                return False
            # Nothing is left unless something in it killed its first process.
            left = marked(self.boot.instance_id)
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            if left:
                return False
        for name in ("home", "node", "tmp", "bin"):
            shutil.rmtree(self.boot.root / name, ignore_errors=True)
        self.state = "ended"
        return True


def marked(instance_id: str) -> list[psutil.Process]:
    """Return the processes that carry an instance's mark."""
    found = list[psutil.Process]()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == instance_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
