"""Process groups that cannot outlive who started them.

Three independent lines, because SIGKILL leaves nobody a chance to clean up: the starter kills the group; the kernel
kills the group's leader when its parent dies (Linux, ``PR_SET_PDEATHSIG``); and a *guardian*, forked into a session of
its own, kills whole groups, grandchildren included, when the pipe from its starter breaks. The guardian is also the
line that works where the kernel has no such signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from . import identity

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


class Waker:
    """Sleeps that end early when a signal arrives (SIGCHLD: a child ended; SIGTERM: we are told to)."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def wait(self, seconds: float) -> None:
        """Return after ``seconds``, or at once when a signal came since the last wait."""
        ready, _, _ = select.select([self._read], [], [], seconds)
        if ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 4096)


class Guardian:
    """A forked child that kills the groups named to it when this process is gone. Fork it before any thread starts."""

    def __init__(self) -> None:
        read, self._write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _guard(read)
        os.close(read)

    def watch(self, pid: int) -> None:
        """Kill this group if we die."""
        self._say(f"+{pid} {identity.start_time(pid) or ''}\n")

    def forget(self, pid: int) -> None:
        """The group has ended."""
        self._say(f"-{pid} \n")

    def close(self) -> None:
        """End the guardian; the groups it still watches are killed."""
        os.close(self._write)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _say(self, line: str) -> None:
        # A guardian that was killed leaves the two other lines; it must not take the training with it.
        with contextlib.suppress(OSError):
            os.write(self._write, line.encode())


def _guard(read: int) -> NoReturn:
    """Body of the guardian: never returns, never raises into the forked copy of the caller."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        close_descriptors(keep=read)
        groups: dict[int, str] = {}
        with os.fdopen(read, encoding="ascii") as lines:
            for line in lines:
                pid, _, started = line[1:].strip().partition(" ")
                if line.startswith("+"):
                    groups[int(pid)] = started
                else:
                    groups.pop(int(pid), None)
        for group, started in groups.items():
            kill(group, started)
    finally:
        os._exit(0)


def kill(pid: int, started: str | None, number: int = signal.SIGKILL) -> None:
    """Signal a whole group whose leader had this pid and start time; a no-op when it is gone.

    When another process has the leader's pid today, the old group is gone too (a group id is not reused while the
    group lives), so nothing is signalled.
    """
    found = identity.start_time(pid)
    if started and found is not None and found != started:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def end(process: subprocess.Popen[bytes], grace: float, tick: Callable[[float], None] = time.sleep) -> int:
    """SIGTERM to a whole group, ``grace`` seconds, SIGKILL to what is left; returns the leader's exit code."""
    started = identity.start_time(process.pid)
    if process.poll() is None:
        kill(process.pid, started, signal.SIGTERM)
        until = time.monotonic() + grace
        while process.poll() is None and time.monotonic() < until:
            tick(min(0.02, grace))
    kill(process.pid, started)
    return process.wait()


def close_descriptors(keep: int | None = None) -> None:
    """Close every inherited descriptor from 3 up, but ``keep``.

    Terraform lets local-exec inherit the descriptor of its state lock; whoever keeps it open keeps the lock.
    """
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            numbers = [int(name) for name in os.listdir(folder)]  # noqa: PTH208
            break
    else:
        numbers = list(range(3, 65536))
    for number in numbers:
        if number > 2 and number != keep:
            with contextlib.suppress(OSError):
                os.close(number)


def die_with(parent: int) -> None:
    """Let the kernel SIGKILL this process when its parent ends (Linux); exit now if it already has.

    The signal survives ``exec``. Elsewhere only the check is done, and the guardian is the line that holds.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError, ImportError):
            import ctypes

            ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(137)


def exec_with(parent: int, argv: list[str]) -> NoReturn:
    """Become ``argv``, tied to ``parent``; exits 127 or 126 with a sentence when it cannot be started."""
    die_with(parent)
    # Python ignores these two, and an ignored signal stays ignored across exec: `yes | head` would never end.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"cannot start {argv[0]!r}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
