"""Processes of this host: who they are, whether they live, and which carry a lease's id."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mlinfra_prefect.agent import identity
from mlinfra_prefect.model.process import ProcessIdentity
from mlinfra_prefect.model.receipt import Search

LEASE_VARIABLE = "MLINFRA_LEASE_ID"
LEDGER_VARIABLE = "MLINFRA_LEDGER_ID"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def boot_id() -> str:
    """The kernel's boot id; on hosts without one, the boot time."""
    with contextlib.suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return str(int(psutil.boot_time()))


def identify(pid: int | None = None) -> ProcessIdentity:
    """Return the identity of a process of this host (None: this one)."""
    pid = pid or os.getpid()
    return ProcessIdentity(host=socket.gethostname(), boot=boot_id(), pid=pid, start_time=identity.start_time(pid) or "")


def is_here(process: ProcessIdentity) -> bool:
    """Whether the process is or was one of this host, so that its death can be proven here."""
    return process.host == socket.gethostname()


def is_alive(process: ProcessIdentity) -> bool:
    """Whether a process of this host lives; another boot's never does. Only meaningful where `is_here`."""
    return process.boot == boot_id() and identity.is_alive(process.pid, process.start_time)


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


def end(processes: Iterable[psutil.Process], *, grace_seconds: float) -> list[str]:
    """End processes (SIGTERM, grace, SIGKILL) and return what they were. psutil guards against reused pids."""
    listed = list(processes)
    names = []
    for process in listed:
        with contextlib.suppress(psutil.Error):
            names.append(f"pid {process.pid} ({process.name()})")
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(listed, timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return names


def sweep(ledger_id: str, record_id: str, *, grace_seconds: float = 2.0) -> Search:
    """Look for processes that carry a record's id, end what is found, and say both."""
    found = carriers(ledger_id, record_id)
    names = tuple(f"pid {process.pid}" for process in found)
    ended = tuple(end(found, grace_seconds=grace_seconds)) if found else ()
    return Search(
        what=f"processes that carry {LEASE_VARIABLE}={record_id}",
        where=socket.gethostname(),
        at=datetime.now(UTC),
        found=names,
        ended=ended,
    )
