"""What the rules of the ledger's conformance suite share: the hooks that a store's author fills, and an open ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from enum import StrEnum
from typing import Protocol

import pytest

from mlinfra_prefect.ledger import Ledger, Versioned
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.records import path_to


class Damage(StrEnum):
    """How a record is spoiled."""

    CORRUPTED = "corrupted"
    """Its JSON is cut in the middle."""

    BROKEN_TEXT = "broken-text"
    """A byte of it is no Unicode (0xFF)."""

    FUTURE = "future"
    """Its schema version is one that no program of today knows (999); its JSON is a newer program's, so any."""


class OpenLedger(Protocol):
    """Opens a store again: each call is a new handle, the same name is the same store."""

    def __call__(self, store: str = "first") -> Ledger:
        """Return a new handle of a store, which is made on first use."""


class Spoil(Protocol):
    """Spoils a record of the store "first" behind the ledger's back."""

    def __call__(self, record_id: str, kind: Damage) -> None:
        """Spoil the record; its state and version stay."""


class Lose(Protocol):
    """Loses the store "first" behind the ledger's back: its bucket is deleted, its file removed, its table dropped."""

    def __call__(self) -> None:
        """Lose the store, with open handles of it around."""


class LedgerFixtures:
    """Fixtures for tests of a ledger, over the fixture `open_ledger` of the store's author."""

    @pytest.fixture
    def ledger(self, open_ledger: OpenLedger) -> Iterator[Ledger]:
        """Give an open handle of the store."""
        with closing(open_ledger()) as opened:
            yield opened

    @pytest.fixture
    def other(self, open_ledger: OpenLedger) -> Iterator[Ledger]:
        """Give another handle of the same store, as another process would have."""
        with closing(open_ledger()) as opened:
            yield opened


def walk(ledger: Ledger, seen: Versioned, state: State) -> Versioned:
    """Bring a new record to a state by legal steps."""
    for step in path_to(state):
        seen = ledger.replace(seen, seen.record.revised(state=step), actor="test", reason=f"to {step}")
    return seen
