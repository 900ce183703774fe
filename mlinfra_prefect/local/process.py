"""Processes of this host: who they are, whether they are provably dead, and which carry a lease's id.

A pid means something on one boot and in one PID namespace only. Seen from elsewhere a process that lives looks dead, so
*dead* is said only where it can be proven, and everything else is left to expiry (rules R5 and R6).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mlinfra_prefect.agent import identity
from mlinfra_prefect.model.marks import LEASE_VARIABLE, LEDGER_VARIABLE
from mlinfra_prefect.model.process import ProcessIdentity
from mlinfra_prefect.model.receipt import Search

boot_id = identity.boot


def identify(pid: int | None = None) -> ProcessIdentity:
    """Return the identity of a process of this host (None: this one)."""
    pid = pid or os.getpid()
    return ProcessIdentity(
        host=socket.gethostname(), boot=identity.boot(), pid=pid, start_time=identity.start_time(pid) or ""
    )


def is_here(process: ProcessIdentity) -> bool:
    """Whether a pid means that process here: the same boot of the same kernel, the same PID namespace."""
    return process.boot == identity.boot() and (bool(process.boot) or process.host == socket.gethostname())


def is_alive(process: ProcessIdentity) -> bool:
    """Whether a process is here and lives; False for one that is elsewhere, which proves nothing."""
    return is_here(process) and identity.is_alive(process.pid, process.start_time)


def is_provably_dead(process: ProcessIdentity) -> bool:
    """Whether it is certain that a process is gone. False for what lives, and for what cannot be seen from here."""
    if is_here(process):
        return not identity.is_alive(process.pid, process.start_time)
    kernel, _, namespace = process.boot.partition("/")
    our_kernel, _, our_namespace = identity.boot().partition("/")
    if kernel != our_kernel:
        # The same host, booted again since. Another host's processes are nobody's business here.
        return bool(kernel and our_kernel) and process.host == socket.gethostname()
    # Another PID namespace of this kernel: only the first one sees into all others.
    return bool(namespace) and not our_namespace and not _lives_in_a_namespace(process)


def _lives_in_a_namespace(process: ProcessIdentity) -> bool:
    """Whether any process of this kernel has that pid in its own PID namespace, and that start time."""
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
                own = line.split()[-1] if line.startswith("NSpid:") else ""
                if own == str(process.pid) and identity.is_alive(pid, process.start_time):
                    return True
    return False


def carriers(ledger_id: str, record_id: str) -> list[psutil.Process]:
    """Return the processes of this host that carry a record's id in their environment, this one and its parents apart.

    A process that cannot be read belongs to another user, so it cannot be one of ours.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in mine:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            if (
                environ.get(LEASE_VARIABLE) == record_id
                and environ.get(LEDGER_VARIABLE) == ledger_id
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
    return found


def holders(processes: Iterable[psutil.Process], path: Path) -> list[psutil.Process]:
    """Return those of some processes that have a file open."""
    wanted, found = str(path.resolve()), []
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            if any(opened.path == wanted for opened in process.open_files()):
                found.append(process)
    return found


def end(
    processes: Iterable[psutil.Process], *, grace_seconds: float, first: signal.Signals = signal.SIGTERM
) -> list[str]:
    """End processes (`first`, grace, SIGKILL) and return what they were. psutil guards against reused pids."""
    listed = list(processes)
    names = described(listed)
    for process in listed:
        with contextlib.suppress(psutil.Error):
            process.send_signal(first)
    _, alive = psutil.wait_procs(listed, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return names


def described(processes: Sequence[psutil.Process]) -> list[str]:
    """Say which processes these are, for people; one that ended meanwhile has its pid only."""
    names = []
    for process in processes:
        name = ""
        with contextlib.suppress(psutil.Error):
            name = f" ({process.name()})"
        names.append(f"process {process.pid}{name}")
    return names


def sweep(ledger_id: str, record_id: str, *, grace_seconds: float = 2.0) -> Search:
    """Look for processes that carry a record's id, end what is found, and say both."""
    found = carriers(ledger_id, record_id)
    names = tuple(described(found))
    ended = tuple(end(found, grace_seconds=grace_seconds)) if found else ()
    return Search(
        what=f"processes that carry {LEASE_VARIABLE}={record_id}",
        where=socket.gethostname(),
        at=datetime.now(UTC),
        found=names,
        ended=ended,
    )
