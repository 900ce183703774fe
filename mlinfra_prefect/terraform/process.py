"""Runs one Terraform command alone, so that neither its parent's death nor its parent's panic can break the state.

Terraform loses resources in two ways: a pipe whose reader died, and a signal. So it writes to files, reads nothing,
lives in a session of its own, and is not signalled before the operation's deadline, whatever happens here. Whoever asks
for a stop gets it by leaving: an exception in the waiting thread (``KeyboardInterrupt``, ``SystemExit``, Prefect's
``TerminationSignal``) passes through and Terraform goes on.

Trap: Terraform inherits one descriptor, the stack's lock (see `lock`), and so do the ``local-exec`` children that it
starts. A daemon started that way must close its descriptors; our agent does.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlinfra_prefect.errors import EngineMissing, OperationTimedOut
from mlinfra_prefect.terraform import lock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

FOLLOW_SECONDS = 0.1
"""How often the output is looked at while somebody listens."""
GRACE_SECONDS = 10.0
"""Between SIGINT and SIGKILL past the deadline: time for Terraform to write its state."""
GROUP_SECONDS = 1.0
"""How long to see the rest of a killed group gone; where nobody reaps orphans it never is."""
ORPHAN_SECONDS = 3.0
"""How long the providers of a Terraform that was killed may go on: the time for the answer to a call."""

ENDED_BY_ITSELF = (0, 1, 2)
"""Exit statuses after which Terraform has ended its providers; after a signal or a crash they are ended here."""

_left_running: list[subprocess.Popen[bytes]] = []
"""Processes that an exception made us leave: kept so that no finaliser complains about, or waits for, one of them."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ended: its exit status (negative: the signal that ended it), its output files, its seconds."""

    returncode: int
    stdout: Path
    stderr: Path
    seconds: float


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    lock_file: Path,
    output: Path,
    deadline: float,
    follow: Callable[[], None] | None = None,
    suspect: Callable[[str], None],
    grace: float = GRACE_SECONDS,
    check: Callable[[], None] | None = None,
) -> Finished:
    """Starts ``argv``, blocks until it has ended, and returns its exit status whatever that is.

    Args:
        argv: the command; its first item is an absolute path.
        cwd: working directory.
        env: the whole environment.
        lock_file: taken exclusively and inherited by the process.
        output: stem of the two output files ``<output>.out`` and ``<output>.err``, created with mode 0600.
        deadline: epoch seconds; before it the process is never signalled.
        follow: called about every `FOLLOW_SECONDS` and once after the end. What it raises passes through.
        suspect: called with the reason, before any signal, where the state can no longer be trusted.
        grace: seconds between SIGINT and SIGKILL.
        check: called once with the lock, before anything is started. What it raises passes through.

    Raises:
        OperationTimedOut: the deadline is past; the process group is gone and ``suspect`` was called, or nothing was
            started because it was past already.
        StateLocked: another process of this stack is running.
        EngineMissing: the program does not start.
    """
    if time.time() >= deadline:
        raise OperationTimedOut(f"The deadline of '{_name(argv)}' was past before it started; nothing was started.")
    started = time.monotonic()
    descriptor = lock.acquire(lock_file)
    try:
        if check:
            check()
        stdout, stderr = output.with_name(output.name + ".out"), output.with_name(output.name + ".err")
        process = _start(argv, cwd=cwd, env=env, lock_descriptor=descriptor, stdout=stdout, stderr=stderr)
        with _leave_running(process):
            ended = _wait(process, deadline, follow)
        if not ended:
            suspect(f"{_name(argv)} went past its deadline and was stopped")
            with _leave_running(process):
                _stop(process, grace)
            if follow:
                follow()
            raise OperationTimedOut(
                f"'{_name(argv)}' in {cwd} went past its deadline and was stopped.",
                "Its state may miss resources: look for them by tag.",
            )
        if process.returncode < 0:
            suspect(f"{_name(argv)} was ended by signal {-process.returncode}")
        if process.returncode in ENDED_BY_ITSELF:
            lock.release(descriptor)
        elif not _group_gone(process, ORPHAN_SECONDS):
            # Idle, they would keep the lock for ever; busy, they make what nobody would write down.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            _group_gone(process, GROUP_SECONDS)
        if follow:
            follow()
        return Finished(process.returncode, stdout, stderr, time.monotonic() - started)
    finally:
        os.close(descriptor)


def _name(argv: Sequence[str]) -> str:
    return f"terraform {argv[1]}" if len(argv) > 1 else "terraform"


def _start(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], lock_descriptor: int, stdout: Path, stderr: Path
) -> subprocess.Popen[bytes]:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    out = os.open(stdout, flags, 0o600)
    try:
        err = os.open(stderr, flags, 0o600)
        try:
            return subprocess.Popen(
                list(argv),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                pass_fds=(lock_descriptor,),
                start_new_session=True,
                umask=0o077,
            )
        except OSError as error:
            raise EngineMissing(f"{argv[0]} does not start in {cwd}: {error.strerror}.") from error
        finally:
            os.close(err)
    finally:
        os.close(out)


@contextlib.contextmanager
def _leave_running(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if process.poll() is None:
            _left_running.append(process)
        raise


def _wait(process: subprocess.Popen[bytes], deadline: float, follow: Callable[[], None] | None) -> bool:
    """Blocks until the process ended (True) or the deadline is past (False)."""
    with _end_of(process) as ended_within:
        while (left := deadline - time.time()) > 0:
            if ended_within(min(left, FOLLOW_SECONDS) if follow else left):
                process.wait()
                return True
            if follow:
                follow()
    return process.poll() is not None


@contextlib.contextmanager
def _end_of(process: subprocess.Popen[bytes]) -> Iterator[Callable[[float], bool]]:
    """Yields a function that waits some seconds for the end of the process, without polling where a pidfd exists."""
    opener = getattr(os, "pidfd_open", None)  # Linux 5.3; Popen.wait polls with a growing delay of up to 50 ms
    try:
        descriptor = opener(process.pid) if opener else None
    except OSError:
        descriptor = None
    if descriptor is None:

        def ended_within(seconds: float) -> bool:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            return process.returncode is not None

        yield ended_within
        return
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        # A day at most: poll takes milliseconds as a C int.
        yield lambda seconds: bool(poller.poll(min(seconds, 86_400) * 1000))
    finally:
        os.close(descriptor)


def _stop(process: subprocess.Popen[bytes], grace: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(grace)
    # Providers share Terraform's process group: one that outlives it may still be creating something.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _group_gone(process, GROUP_SECONDS)
    process.wait()


def _group_gone(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for the end of a group whose first process has ended; True as soon as nobody is left."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        time.sleep(0.01)
    return False
