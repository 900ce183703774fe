"""What a store of objects must give so that `ObjectLedger` can keep a ledger in it: five calls and a clock.

The whole list is here on purpose, because it is what decides where a ledger can live. S3 gives it with conditional
writes; a Kubernetes API server with ``resourceVersion`` (one ConfigMap or custom resource for each object, its key as
name and label); PostgreSQL with one table and ``UPDATE … WHERE tag = …``. No transaction over two objects, no order
between them, no lock, no watch, and no compare-and-delete is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it was read, and the tag that the next write over it must present."""

    body: bytes
    tag: str


class ObjectStore(Protocol):
    """Small objects under keys. What was answered is durable and is read by everybody from then on.

    Every method may raise `LedgerUnavailable`: the store cannot be reached, refuses us, or is gone.
    """

    @property
    def name(self) -> str:
        """What the store is called in messages."""

    def now(self) -> datetime:
        """Return the time on the store's clock, in UTC; never that of this host alone (rule R5)."""

    def get(self, key: str) -> Found | None:
        """Return an object, or None when it is absent."""

    def write(self, key: str, body: bytes, *, over: str | None, ours: Callable[[bytes], bool]) -> str | None:
        """Write an object where it is absent, or over exactly the tag that was seen: one compare-and-swap.

        Args:
            key: which object.
            body: what to write; no two writes ever have the same one.
            over: the tag that was seen; None: only where the object is absent.
            ours: says of a body whether this very write made it, or came before what made it. Asked when the answer
                got lost: a write that was carried out is never told as lost, and never carried out twice.

        Returns:
            The new tag; None when the race was lost, and nothing was written.

        Raises:
            LedgerUnavailable: nobody can say whether it was written. It may still appear.
        """

    def delete(self, key: str) -> None:
        """Delete an object; an absent one is a success."""

    def list(self, prefix: str, *, limit: int | None = None, since: datetime | None = None) -> list[str]:
        """Return the keys that begin with `prefix`, in any order; of more than `limit`, any that many.

        What was last written before `since`, on the store's clock, may be left out; nothing else is.
        """

    def close(self) -> None:
        """Let go of the store; idempotent."""
