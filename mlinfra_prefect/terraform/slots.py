"""A host-wide limit on Terraform processes: forty applies at once would take the machine's memory, not finish sooner.

One AWS apply was measured at 231 MB for Terraform and 424 MB for its provider. A slot is a file lock, so that a
process that dies gives its slot back without anybody's help. The slot belongs to the waiting parent, not to Terraform:
where the parent is killed its Terraform finishes uncounted, which is rarer and milder than a limit that a daemon holds.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from filelock import FileLock, Timeout

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import InvalidInput, OperationTimedOut

if TYPE_CHECKING:
    from collections.abc import Iterator

BYTES_PER_PROCESS = 850 * 1024 * 1024
"""Memory of one AWS apply, Terraform and provider, with what `lifecycle.context` tells their garbage collectors."""
POLL_SECONDS = 0.1


class Slots:
    """The host's Terraform slots.

    Args:
        directory: holds the lock files; created with mode 0700. Everybody who should share the limit names the same.
        limit: how many may run at once; default from cores and the memory available now, at least 1.
    """

    def __init__(self, directory: Path, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise InvalidInput(
                "limit", f"{limit} Terraform processes is not a limit.", "Use 1 or more, or leave it out."
            )
        self.directory = directory
        self.limit = limit or default_limit()

    @contextlib.contextmanager
    def take(self, deadline: float) -> Iterator[None]:
        """Holds one slot inside the ``with`` block; blocks until one is free.

        Args:
            deadline: epoch seconds.

        Raises:
            OperationTimedOut: no slot was free before the deadline.
        """
        lock = self._acquire(deadline)
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, deadline: float) -> FileLock:
        private_folder(self.directory)
        while True:
            for number in range(self.limit):
                # thread_local off: a slot may be given back by another thread than the one that took it.
                lock = FileLock(self.directory / f"slot-{number}.lock", mode=0o600, thread_local=False)
                with contextlib.suppress(Timeout):
                    lock.acquire(blocking=False)
                    return lock
            left = deadline - time.time()
            if left <= 0:
                raise OperationTimedOut(
                    f"All {self.limit} Terraform slots of this host were busy until the operation's deadline.",
                    "Run fewer at once, raise the limit, or allow more minutes.",
                )
            time.sleep(min(POLL_SECONDS, left))


def default_limit(*, cores: int | None = None, available: int | None = None) -> int:
    """Returns how many Terraform processes this host can carry: four per core, and no more than memory allows.

    Args:
        cores: default: the host's.
        available: bytes; default: what the host and this process's cgroup still have.
    """
    cores = cores or os.cpu_count() or 1
    if available is None:
        available = min(psutil.virtual_memory().available, _cgroup_available())
    return max(1, min(4 * cores, available // BYTES_PER_PROCESS))


def _cgroup_available(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes left under a container's memory limit; very many where there is none (or no cgroup v2, as on macOS)."""
    try:
        limit, used = (root / "memory.max").read_text().strip(), (root / "memory.current").read_text().strip()
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return 1 << 62
