"""Which process a pid means: a pid alone is reused, a pid with its start time is not.

Everything that is ever signalled or counted as alive is named by both, so that a sweep hours later cannot hit a
stranger that got the same number.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the kernel's first PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO)."""

_STATE, _START_TIME = 0, 19  # fields 3 and 22 of /proc/PID/stat, counted after the command name (proc(5))


def start_time(pid: int) -> str | None:
    """When the process started, as an opaque text; None when there is no such process or it is a zombie.

    On Linux: clock ticks since boot (field 22 of ``/proc/PID/stat``); elsewhere what ``ps -o lstart=`` prints.
    """
    if Path("/proc/self/stat").exists():
        return _from_proc(pid)
    return _from_ps(pid)


def is_alive(pid: int, started: str | None) -> bool:
    """Whether the very process that had this pid and start time still runs; a zombie does not."""
    found = start_time(pid)
    return found is not None and (started is None or found == str(started))


def mine() -> tuple[int, str]:
    """Pid and start time of this process."""
    pid = os.getpid()
    return pid, start_time(pid) or ""


@functools.cache
def boot() -> str:
    """Within what a pid means a process: this boot of the kernel, and the PID namespace unless it is the first one.

    Opaque but for its form ``<boot>`` or ``<boot>/<namespace>``; empty where the host does not tell.
    """
    if sys.platform == "linux":
        try:
            kernel = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            namespace = Path("/proc/self/ns/pid").stat().st_ino
        except OSError:
            return ""
        return kernel if namespace == INITIAL_PID_NAMESPACE else f"{kernel}/{namespace}"
    # macOS: the boot *time* moves when the clock is set, this does not.
    found = subprocess.run(
        ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    return found.stdout.strip() if found.returncode == 0 else ""


def _from_proc(pid: int) -> str | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name may hold spaces and parentheses: the fields start after the last one.
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START_TIME or fields[_STATE] in "ZXx":
        return None
    return fields[_START_TIME]


def _from_ps(pid: int) -> str | None:
    environment = {"LC_ALL": "C", "TZ": "UTC", "PATH": os.environ.get("PATH", "/bin:/usr/bin")}
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    state, _, started = found.stdout.strip().partition(" ")
    return started.strip() if started and not state.startswith("Z") else None
