"""Breaking a state lock that its holder left behind: only the very lock that was seen, only where its holder is dead.

A Terraform that was killed leaves its lock: as a file beside a local state, for ever in a backend that has no expiry.
That nobody holds it any more is proven by the lock that every Terraform of a stack inherits (see `lock`), and only for
locks that were taken on this host. A lock from elsewhere is somebody's until they say otherwise.
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


@dataclass(frozen=True, slots=True)
class Held:
    """A state lock, as Terraform describes it: its id, and who took it (``user@host``)."""

    id: str
    who: str

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
    created = re.search(r"Created:\s+(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", text)
    if lock_id is None or who is None or created is None or not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z-]*", lock_id[1]):
        return None
    made = datetime.strptime(created[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
    return Held(lock_id[1], who[1]) if made.timestamp() < int(before) else None


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
