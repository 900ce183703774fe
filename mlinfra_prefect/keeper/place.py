"""Where the keeper lives: `process` on a host, `foreground` inside a container or PID namespace, `service` by choice.

A detached child of a container dies with PID 1, also on success (RELIABILITY 21). There, leaving ``lease(...)`` waits
for `released`, and the reaper is the second line. A `service` is never detected: somebody must have set one up.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from mlinfra_prefect.agent.identity import INITIAL_PID_NAMESPACE
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.config import PLACE_VARIABLE

if TYPE_CHECKING:
    from mlinfra_prefect.lifecycle.context import Context

Place = Literal["process", "foreground", "service"]
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
"""Files that Docker and Podman put into a container."""
CONTAINER_WORDS = ("docker", "containerd", "kubepods", "libpod", "lxc", "crio")
"""In the cgroup of a container's processes."""


def place_of(context: Context, environment: str = "dev") -> Place:
    """Where the keeper lives for an environment of this project.

    Raises:
        InvalidInput: ``MLINFRA_KEEPER_PLACE`` holds something else.
    """
    configured = context.config.environments.get(environment)
    return detect_place(configured=configured.keeper_place if configured else None)


def detect_place(
    *,
    configured: Place | None = None,
    pid_namespace: Path = Path("/proc/self/ns/pid"),
    init_cgroup: Path = Path("/proc/1/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
    marks: Sequence[Path] = CONTAINER_MARKS,
) -> Place:
    """Return where the keeper can live.

    Args:
        configured: what the environment's configuration says; ``MLINFRA_KEEPER_PLACE`` goes before it.
        pid_namespace: a file whose inode is the PID namespace's.
        init_cgroup: of process 1.
        own_cgroup: of this process.
        marks: files that stand in containers only.

    Raises:
        InvalidInput: the variable holds something else.
    """
    named = os.environ.get(PLACE_VARIABLE)
    if named:
        if named not in get_args(Place):
            raise InvalidInput(
                PLACE_VARIABLE, f"is {named!r}", "Set it to 'process', 'foreground' or 'service', or leave it out."
            )
        return cast("Place", named)
    if configured:
        return configured
    return own_place(pid_namespace=pid_namespace, init_cgroup=init_cgroup, own_cgroup=own_cgroup, marks=marks)


def own_place(
    *,
    pid_namespace: Path = Path("/proc/self/ns/pid"),
    init_cgroup: Path = Path("/proc/1/cgroup"),
    own_cgroup: Path = Path("/proc/self/cgroup"),
    marks: Sequence[Path] = CONTAINER_MARKS,
) -> Literal["process", "foreground"]:
    """Return where a keeper lives that this process starts itself, whatever is configured (`detect_place`)."""
    if sys.platform != "linux":
        return "process"  # macOS has neither PID namespaces nor containers of its own
    try:
        if pid_namespace.stat().st_ino != INITIAL_PID_NAMESPACE:
            return "foreground"
    except OSError:
        return "foreground"
    # The host's PID namespace may still be seen from a container (docker --pid=host): then its cgroup ends with it.
    if any(mark.exists() for mark in marks):
        return "foreground"
    own, first = _text(own_cgroup), _text(init_cgroup)
    # From inside a cgroup namespace the host's process 1 stands above the root.
    return "foreground" if any(word in own for word in CONTAINER_WORDS) or "/.." in first else "process"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
