"""Kill points: named places at which a fault test has the process killed, so that every step can be the last one.

``MLINFRA_KILL_AT=<point>[:n][,<point>[:n]...]`` kills at the n-th time (default the first) that any process of the home
comes by. It is honoured only in a home that carries the file that the fault tests write there (`MARK`): a variable that
leaked into somebody's shell does nothing. Standard library only, and one dictionary look-up where nobody tests.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "MLINFRA_KILL_AT"
MARK: Final = ".fault-test"
"""In the home, made by the fault tests alone: a line (point, pid, seconds) each time a watched point is passed."""

POINTS: Final = {
    "after-announce": "client: the keeper expects a lease that is not written yet",
    "after-record": "client: the lease is durable, and nobody was told",
    "after-entrust": "client: the keeper has the lease on its desk",
    "after-release-mark": "client: the release is marked, and the keeper was not woken",
    "after-take": "operation: the record has this keeper",
    "after-attempt": "operation: an attempt is recorded, and nothing is planned",
    "before-apply": "operation: 'applying' is recorded, and Terraform has not begun",
    "after-apply": "operation: Terraform has applied, and nothing was looked at",
    "before-ready": "operation: what was applied is up, and the record does not say so",
    "after-drain-mark": "operation: the drain is recorded, and the node was not told",
    "before-stop-meter": "operation: 'releasing' is recorded, and the node lives",
    "after-stop-meter": "operation: the node is gone, and Terraform has not begun",
    "before-destroy": "operation: right before Terraform destroys",
    "after-destroy": "operation: Terraform has destroyed, and the record does not say so",
    "between-sweeps": "operation: between two looks for what is left",
    "before-receipt": "operation: everything is gone, and the record does not say so",
    "before-card": "operation: all is done, and its card does not say so",
    "after-router-record": "client: the endpoint is recorded, and its rollout is not",
    "after-candidate-record": "client: the rollout is recorded, and its endpoint does not name it",
    "before-share": "operation: right before a canary share is written",
    "after-share": "operation: the share is written, and the router does not follow it yet",
    "before-promote": "operation: right before the compare-and-swap that promotes",
    "after-promote": "operation: promoted, and nothing has followed",
    "before-retire": "operation: the routes follow, and the version before was not told to retire",
    "after-leave": "operation: the endpoint's record has dropped a version, and its servers live",
    "reap-began": "reaper: it has looked at nothing",
    "reap-after-lay": "reaper: a card is laid, and no watcher was started",
    "reap-before-settle": "reaper: a watcher is there, and nothing has settled",
}
"""Every point, and what has happened when it is reached."""


def wanted() -> dict[str, int]:
    """What ``MLINFRA_KILL_AT`` names: point → which time. Words that are no point are ignored."""
    found = {}
    for word in os.environ.get(VARIABLE, "").split(","):
        point, _, nth = word.strip().partition(":")
        if point in POINTS and (not nth or nth.isdecimal()):
            found[point] = int(nth or 1)
    return found


def passed_on(home: Path) -> dict[str, str]:
    """What of this a keeper's processes get: nothing, but in the home of a fault test."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ and (home / MARK).is_file() else {}


def killpoint(point: str, home: Path) -> None:
    """End this process here by SIGKILL if a fault test wants that; else do nothing. Kills once per point and home."""
    if VARIABLE not in os.environ:
        return
    nth = wanted().get(point)
    if nth is None:
        return
    try:
        mark = os.open(home / MARK, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError:
        return  # no fault test's home
    try:
        os.write(mark, f"{point} {os.getpid()} {time.time():.3f}\n".encode())
        os.lseek(mark, 0, os.SEEK_SET)
        lines = os.read(mark, 1 << 20).decode().splitlines()
    finally:
        os.close(mark)
    passed = [line for line in lines if line.partition(" ")[0] == point]
    if len(passed) == nth:
        os.kill(os.getpid(), signal.SIGKILL)
