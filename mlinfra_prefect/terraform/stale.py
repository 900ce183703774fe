"""Breaking a state lock that its holder left behind: only the very lock that was seen, only where its holder is dead.

A Terraform that was killed leaves its lock: as a file beside a local state, for ever in a backend that has no expiry.
That nobody holds it any more is proven by the lock that every Terraform of a stack inherits (see `lock`), and only for
locks that were taken on this host. A lock from elsewhere is somebody's until they say otherwise.

A state in a backend may have several stacks of one host, one in each home, and all of them give the same name of the
host. So there it must be proven too that a Terraform of *this* stack took it: by what that one printed (see `left_by`).
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

_FIELD = r"{}:\s+(\S+)"
_BEGINS = "Lock Info:"


_CREATED = r"Created:\s+(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)?"
_NOT_RELEASED = "Error releasing the state lock"
_BEFORE_THE_LOCK = frozenset({"version", "log", "state_lock_acquire", "diagnostic"})
"""What Terraform says before it has the lock; whatever else it says, it says while it has it."""
_AT_THE_END = frozenset({"change_summary", "outputs"})


@dataclass(frozen=True, slots=True)
class Held:
    """A state lock, as Terraform describes it: its id, who took it (``user@host``), when (epoch seconds; 0: unsaid)."""

    id: str
    who: str
    made: float = 0.0

    @property
    def here(self) -> bool:
        """Whether it was taken on this host."""
        return self.who.rpartition("@")[2] == socket.gethostname()


def described(text: str, *, before: float) -> Held | None:
    """Read the lock out of what Terraform says when a state is locked; None where it does not tell. Pure.

    Args:
        text: what it says.
        before: when the command began (epoch seconds), on this host's clock. Some backends of some versions describe
            the lock that they *wanted*, which was made after that, and not the one that is held.
    """
    text = text.partition(_BEGINS)[2]  # before it a store says ids of its own: S3 those of the request
    lock_id, who = (re.search(_FIELD.format(name), text) for name in ("ID", "Who"))
    created = re.search(_CREATED, text)
    if lock_id is None or who is None or created is None or not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]*", lock_id[1]):
        return None
    second = datetime.strptime(created[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    return Held(lock_id[1], who[1], second + float(created[2] or 0)) if second < int(before) else None


def left_by(output: Path, held: Held) -> bool:
    """Whether a Terraform took a lock that wrote into this directory, and has certainly not given it back.

    It had begun when the lock was made, and still printed after that; it has said what only the holder says; and it was
    cut off, or it said that it could not give the lock back. Nobody else can have taken one in that time. Whether it is
    alive is not asked here.

    Args:
        output: where a stack keeps what its commands print (see `layout`).
        held: the lock.
    """
    for path in output.glob("*.out"):
        began = path.name.partition("-")[0]
        with contextlib.suppress(OSError):
            if began.isdigit() and int(began) / 1e9 <= held.made <= path.stat().st_mtime:
                text = path.read_text(encoding="utf-8", errors="replace")
                if _NOT_RELEASED in text or _cut_off(text):
                    return True
    return False


def _cut_off(text: str) -> bool:
    """Whether what a command printed shows that it had the lock, and does not show its end. Pure."""
    told: list[dict[str, Any]] = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                told.append(event)
    if all(each.get("type") in _BEFORE_THE_LOCK for each in told):
        return False
    last = told[-1]
    return last.get("type") not in _AT_THE_END and last.get("@level") != "error"


def beside(state: Path) -> Path:
    """Where Terraform describes the lock of a local state."""
    return state.with_name(f".{state.name}.lock.info")


def read(path: Path) -> Held | None:
    """Read the description of a local lock; None where there is none, or one that is not Terraform's."""
    with contextlib.suppress(OSError, ValueError):
        told: Any = json.loads(path.read_bytes())
        if isinstance(told, dict) and told.get("ID") and told.get("Who"):
            return Held(str(told["ID"]), str(told["Who"]))
    return None
