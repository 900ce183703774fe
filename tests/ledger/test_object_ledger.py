"""A ledger over objects keeps every rule with one-object compare-and-swap, create-if-absent and a list, no more."""

from __future__ import annotations

import pytest
from memory_stores import Stores

from mlinfra_prefect.testing.ledger import LedgerConformance


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
