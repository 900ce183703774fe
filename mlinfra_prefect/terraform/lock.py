"""The proof that no Terraform of a stack is running: an ``flock`` on a descriptor that Terraform itself inherits.

A pid can be reused and a parent can be killed; an open file description cannot outlive its last holder. The lock is
taken before Terraform starts, handed down, and therefore held by Terraform and its provider processes for as long as
any of them lives, whoever started them. ``flock`` belongs to the open file description (not to the process, as POSIX
record locks do), which is what makes handing it down possible; it exists on Linux and macOS.

A descriptor that Terraform inherits is inherited by its ``local-exec`` children too: a daemon started there must close
its descriptors, or the stack looks busy for as long as the daemon lives. Our agent does. `release` limits the damage of
programs that do not: after a Terraform that ended by itself the starter unlocks the description for all holders.
"""

from __future__ import annotations

import fcntl
import os
import time
from typing import TYPE_CHECKING

from mlinfra_prefect.errors import StateLocked

if TYPE_CHECKING:
    from pathlib import Path

ACQUIRE_SECONDS = 0.25
"""How long `acquire` tries: `in_flight` holds a shared lock for microseconds, and must not make a start fail."""


def acquire(lock_file: Path) -> int:
    """Takes the exclusive lock and returns its descriptor, which the caller passes on and closes.

    Raises:
        StateLocked: a Terraform process of this stack is running.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + ACQUIRE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.01)
                continue
            os.close(descriptor)
            raise StateLocked(
                f"A Terraform process of the stack in {lock_file.parent} is still running.",
                "Wait until it has ended; it is never stopped before its deadline.",
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor


def release(descriptor: int) -> None:
    """Unlocks for every holder of the description. Only after Terraform ended by itself, its providers with it."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def in_flight(lock_file: Path) -> bool:
    """Says whether a Terraform process that inherited the lock is alive; False where there is no lock file.

    Does not block, and works from any process of this host.
    """
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # none, or it lies in a home that another user or another host has
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
