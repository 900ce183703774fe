"""A ledger over objects keeps every rule with one-object compare-and-swap, create-if-absent and a list, no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from memory_stores import Stores

from mlinfra_prefect.errors import StaleWrite
from mlinfra_prefect.ledger import ObjectLedger
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.ledger import LedgerConformance
from mlinfra_prefect.testing.objects import MemoryHandle, MemoryObjects
from mlinfra_prefect.testing.records import sample_lease

LEASE = sample_lease(state=State.REQUESTED, attempts=(), generation=1)


class TestObjectLedger(LedgerConformance):
    """A dictionary with one compare-and-swap passes the conformance suite."""

    @pytest.fixture
    def stores(self) -> Stores:
        return Stores()

    @pytest.fixture
    def open_ledger(self, stores: Stores):
        return lambda store="first": stores.open(store)  # no other process has this dictionary: it cannot be pickled

    @pytest.fixture
    def damage(self, stores: Stores):
        return stores.spoil

    @pytest.fixture
    def lose(self, stores: Stores):
        return stores.lose


class LosesAnAnswer(MemoryHandle):
    """Its next write is done and its answer lost; before it is asked again, somebody else writes over it."""

    def __init__(self, objects: MemoryObjects, meanwhile: Callable[[], None]) -> None:
        super().__init__(objects)
        self._meanwhile: Callable[[], None] | None = meanwhile

    def write(self, key: str, body: bytes, *, over: str | None, ours: Callable[[bytes], bool]) -> str | None:
        written = super().write(key, body, over=over, ours=ours)
        if self._meanwhile is None or over is None:
            return written
        meanwhile, self._meanwhile = self._meanwhile, None
        meanwhile()
        found = self.get(key)
        assert found is not None
        return found.tag if ours(found.body) else None


def test_a_write_whose_answer_was_lost_never_covers_a_later_one() -> None:
    """It was done, so that is said; the tag that is there by now is somebody else's, and is not used for our next."""
    objects = MemoryObjects()
    other = ObjectLedger(objects.opened())

    def takes_over() -> None:
        seen = other.read(LEASE.id)
        assert seen is not None
        other.replace(seen, seen.record.revised(generation=2), actor="b", reason="taken over")

    ledger = ObjectLedger(LosesAnAnswer(objects, takes_over))
    seen = ledger.create(LEASE, actor="a", reason="asked for")
    seen = ledger.replace(seen, seen.record.revised(state=State.PROVISIONING), actor="a", reason="begins")
    with pytest.raises(StaleWrite):
        ledger.replace(seen, seen.record.revised(reason="goes on"), actor="a", reason="goes on")
    kept = other.read(LEASE.id)
    assert kept is not None
    assert (kept.record.generation, kept.record.state) == (2, State.PROVISIONING)
