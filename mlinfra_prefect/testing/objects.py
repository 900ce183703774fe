"""A store of objects in memory: what `ObjectLedger` asks of a store, and not one thing more.

It is the smallest thing that passes the ledger's conformance suite, and so the proof that a ledger needs no transaction
over two objects and no order between them. For tests only: it lasts as long as its dictionary.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mlinfra_prefect.errors import LedgerUnavailable
from mlinfra_prefect.ledger.objects import Found


@dataclass
class MemoryObjects:
    """Objects in a dictionary that all handles of one name share; `kept.clear()` and changing it are the accidents.

    Args:
        name: what it is called in messages.
        kept: the objects; None in place of the dictionary: the store is gone.
        clock: the store's clock.
    """

    name: str = "memory"
    kept: dict[str, Found] | None = field(default_factory=dict)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._tags = itertools.count(1)

    def opened(self) -> MemoryHandle:
        """Return a new handle."""
        return MemoryHandle(self)

    def _all(self) -> dict[str, Found]:
        if self.kept is None:
            raise LedgerUnavailable(f"The store {self.name} is gone.", "Nothing was provisioned.")
        return self.kept

    def write(self, key: str, body: bytes, over: str | None) -> str | None:
        """Write in one step: where it is absent, or over one tag."""
        with self._lock:
            found = self._all().get(key)
            if (found.tag if found else None) != over:
                return None
            tag = str(next(self._tags))
            self._all()[key] = Found(body, tag)
            return tag


class MemoryHandle:
    """See `ledger.objects.ObjectStore`. After `close` it answers nothing."""

    def __init__(self, objects: MemoryObjects) -> None:
        self._objects, self._closed = objects, False

    @property
    def name(self) -> str:
        """See `ObjectStore.name`."""
        return self._objects.name

    def _all(self) -> dict[str, Found]:
        if self._closed:
            raise LedgerUnavailable(f"The ledger {self.name} is closed.")
        return self._objects._all()  # noqa: SLF001 (its own handle)

    def now(self) -> datetime:
        """See `ObjectStore.now`."""
        return self._objects.clock()

    def get(self, key: str) -> Found | None:
        """See `ObjectStore.get`."""
        return self._all().get(key)

    def write(self, key: str, body: bytes, *, over: str | None, ours: Callable[[bytes], bool]) -> str | None:
        """See `ObjectStore.write`; no answer of a dictionary gets lost."""
        del ours
        self._all()
        return self._objects.write(key, body, over)

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        self._all().pop(key, None)

    def list(self, prefix: str, *, limit: int | None = None, since: datetime | None = None) -> list[str]:
        """See `ObjectStore.list`; a dictionary leaves nothing out."""
        del since
        return [key for key in list(self._all()) if key.startswith(prefix)][:limit]

    def close(self) -> None:
        """See `ObjectStore.close`."""
        self._closed = True
