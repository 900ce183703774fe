"""Secrets reach a training without ever lying anywhere: through a pipe with a name, read once.

The job names them only. Whoever hands it over (the client, or on a cloud's node the courier) makes the pipe (mode 0600)
in the job directory before the job appears and answers when the launcher opens it; the launcher puts the values into
the environment of the training process and nowhere else. What a training itself prints or saves is the training's
doing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import stat
import threading
import time
from typing import TYPE_CHECKING

from .wire import SECRETS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

_POLL_SECONDS = 0.05
_LONGEST = 4 << 20


class SecretsUnavailable(RuntimeError):
    """Nobody answered for the secrets of a job; the message names them, never their values."""


def make_fifo(directory: Path) -> None:
    """Make the pipe in a job directory that is still being written (before its rename)."""
    os.mkfifo(directory / SECRETS, 0o600)


class SecretServer:
    """Answers the launcher of one job, from a thread; see `serve_secrets`.

    Args:
        job_dir: the job's final directory (it may not exist yet).
        answer: called when the launcher asks: the values by name, or a sentence that says why there are none.
        over: whether nobody will ask any more.
    """

    def __init__(
        self, job_dir: Path, answer: Callable[[], Mapping[str, str] | str], over: Callable[[], bool] = lambda: False
    ) -> None:
        self._path = job_dir / SECRETS
        self._answer: Callable[[], Mapping[str, str] | str] | None = answer
        self._over = over
        self._closed = threading.Event()
        self._served = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="mlinfra-secrets", daemon=True)
        self._thread.start()

    @property
    def served(self) -> bool:
        """Whether the launcher has read the values."""
        return self._served.is_set()

    def close(self) -> None:
        """Stop answering; idempotent. Call it when the job has started to run, or will not."""
        self._closed.set()
        self._thread.join(timeout=5.0)
        self._answer = None

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                # ENXIO: the launcher has not opened it yet. ENOENT: the job is not there yet, or has taken its values.
                if error.errno not in {errno.ENXIO, errno.ENOENT} or self._over():
                    return
                self._closed.wait(_POLL_SECONDS)
                continue
            try:
                if stat.S_ISFIFO(os.fstat(descriptor).st_mode) and self._write(descriptor):
                    self._served.set()
                    return
            finally:
                os.close(descriptor)

    def _write(self, descriptor: int) -> bool:
        answer = self._answer
        if answer is None:
            return False
        told = answer()
        left = memoryview((json.dumps(told if isinstance(told, str) else dict(told)) + "\n").encode("ascii"))
        while left and not self._closed.is_set():
            _, ready, _ = select.select([], [descriptor], [], _POLL_SECONDS)
            if not ready:
                continue
            try:
                left = left[os.write(descriptor, left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return False
        return not left


def serve_secrets(job_dir: Path, values: Mapping[str, str]) -> SecretServer:
    """Answer for the secrets of a job until they were read or `SecretServer.close` is called. Returns at once.

    Args:
        job_dir: the job's final directory (it may not exist yet).
        values: name to value; they are held in memory and written into the pipe, nowhere else.
    """
    return SecretServer(job_dir, lambda: values)


def read_secrets(
    job_dir: Path,
    names: Sequence[str],
    *,
    timeout: float = 30.0,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Ask whoever handed the job over for the values; used by the launcher. Blocks for ``timeout`` seconds at most.

    Raises:
        SecretsUnavailable: nobody answered, the answer says why there are none, or it lacks a name.
    """
    if not names:
        return {}
    listed = ", ".join(sorted(names))
    try:
        descriptor = os.open(job_dir / SECRETS, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise SecretsUnavailable(f"the secrets {listed} cannot be read: the job has no pipe for them") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISFIFO(status.st_mode) or status.st_uid != os.getuid():
            raise SecretsUnavailable(f"the secrets {listed} are not read: {SECRETS} is not a pipe of this user")
        line = _read_line(descriptor, time.monotonic() + timeout, tick)
    finally:
        os.close(descriptor)
    if line is None:
        raise SecretsUnavailable(
            f"the secrets {listed} did not arrive within {timeout:g} s: whoever started the job is gone"
        )
    with contextlib.suppress(OSError):
        (job_dir / SECRETS).unlink()
    return _parse(line, names)


def _read_line(descriptor: int, until: float, tick: Callable[[], None]) -> bytes | None:
    data = b""
    while time.monotonic() < until and len(data) < _LONGEST:
        tick()
        # A pipe that nobody writes to is readable and empty: sleep, or this would be a busy loop.
        try:
            chunk = os.read(descriptor, 65536)
        except BlockingIOError:
            chunk = b""
        data += chunk
        if data.endswith(b"\n"):
            return data
        if not chunk:
            time.sleep(_POLL_SECONDS)
    return None


def _parse(line: bytes, names: Sequence[str]) -> dict[str, str]:
    # No error here may quote the answer: it is made of secrets.
    try:
        values = json.loads(line)
    except ValueError:
        values = None
    if isinstance(values, str):
        raise SecretsUnavailable(values)
    if not isinstance(values, dict):
        raise SecretsUnavailable(f"the answer for the secrets {', '.join(sorted(names))} cannot be read")
    missing = sorted(name for name in names if not isinstance(values.get(name), str) or "\0" in values[name])
    if missing:
        raise SecretsUnavailable(f"no usable value was given for the secrets {', '.join(missing)}")
    return {name: values[name] for name in names}
