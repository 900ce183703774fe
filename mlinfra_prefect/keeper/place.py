"""Where the keeper lives: `process` on a host, `foreground` inside a container or PID namespace.

A detached child of a container dies with PID 1, also on success (RELIABILITY 21). There, leaving ``lease(...)`` waits
for `released`, and the reaper is the second line.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from mlinfra_prefect.errors import InvalidInput

Place = Literal["process", "foreground"]
PLACE_VARIABLE = "MLINFRA_KEEPER_PLACE"
INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The inode of the kernel's first PID namespace (include/linux/proc_ns.h, PROC_PID_INIT_INO)."""


def detect_place(
    *,
    configured: Place | None = None,
    pid_namespace: Path = Path("/proc/self/ns/pid"),
    init_cgroup: Path = Path("/proc/1/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
) -> Place:
    """Return where the keeper can live.

    Args:
        configured: what the environment's configuration says; ``MLINFRA_KEEPER_PLACE`` goes before it.
        pid_namespace, init_cgroup, own_cgroup: where the kernel tells; injected by tests.

    Raises:
        InvalidInput: the variable holds something else.
    """
    named = os.environ.get(PLACE_VARIABLE)
    if named:
        if named not in {"process", "foreground"}:
            raise InvalidInput(PLACE_VARIABLE, f"is {named!r}", "Set it to 'process' or 'foreground', or leave it out.")
        return "process" if named == "process" else "foreground"
    if configured:
        return configured
    if sys.platform != "linux":
        return "process"  # macOS has neither PID namespaces nor containers of its own
    try:
        if pid_namespace.stat().st_ino != INITIAL_PID_NAMESPACE:
            return "foreground"
    except OSError:
        return "foreground"
    # The host's PID namespace may still be seen from a container (docker --pid=host): then its cgroup ends with it.
    words = ("docker", "containerd", "kubepods", "libpod", "lxc", "crio")
    for path in (own_cgroup, init_cgroup):
        try:
            text = path.read_text()
        except OSError:
            continue
        if any(word in text for word in words) and path == own_cgroup:
            return "foreground"
        if path == init_cgroup and "/.." in text:
            return "foreground"
    return "process"
