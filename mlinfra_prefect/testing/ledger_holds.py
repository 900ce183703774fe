"""Rules of holds: a name (an endpoint's, a port, a resume key) belongs to one live record at a time."""

from __future__ import annotations

from contextlib import closing

import pytest

from mlinfra_prefect.errors import LeaseHeld, NotFound
from mlinfra_prefect.ledger import Ledger
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.ledger_fixtures import LedgerFixtures, OpenLedger, walk
from mlinfra_prefect.testing.records import sample_endpoint, sample_lease


class HoldRules(LedgerFixtures):
    """How holds are taken and given back."""

    def test_a_hold_is_exclusive(self, ledger: Ledger, other: Ledger) -> None:
        """A second record does not get it, by creation or later, and is told who has it."""
        mine = ledger.create(sample_lease("mine"), actor="test", reason="", holds=("key", "port")).record
        yours = other.create(sample_lease("yours"), actor="test", reason="").record
        with pytest.raises(LeaseHeld, match=mine.id):
            other.hold("key", yours.id)
        with pytest.raises(LeaseHeld, match=mine.id):
            other.create(sample_endpoint(), actor="test", reason="", holds=("port",))
        assert ledger.holder("key") == ledger.holder("port") == mine.id

    def test_a_refused_creation_leaves_nothing(self, ledger: Ledger) -> None:
        """The record and its holds are written together or not at all."""
        ledger.create(sample_lease("mine"), actor="test", reason="", holds=("key",))
        record = sample_lease("yours")
        with pytest.raises(LeaseHeld):
            ledger.create(record, actor="test", reason="", holds=("free", "key"))
        assert ledger.read(record.id) is None
        assert ledger.history(record.id) == []
        assert ledger.holder("free") is None

    def test_taking_again_what_is_held_changes_nothing(self, ledger: Ledger) -> None:
        """Holding is idempotent for its holder, so that it can be repeated after a crash."""
        mine = ledger.create(sample_lease(), actor="test", reason="").record
        ledger.hold("key", mine.id)
        ledger.hold("key", mine.id)
        assert ledger.holder("key") == mine.id

    @pytest.mark.parametrize("state", list(State))
    def test_holds_are_given_back_with_release_and_not_before(self, ledger: Ledger, state: State) -> None:
        """Only `released` frees them: a record that is going, or stuck, may still use what it holds."""
        seen = ledger.create(sample_lease("mine"), actor="test", reason="", holds=("key",))
        ledger.hold("later", seen.record.id)
        bystander = ledger.create(sample_lease("bystander"), actor="test", reason="", holds=("other",)).record
        walk(ledger, seen, state)
        expected = None if state is State.RELEASED else seen.record.id
        assert ledger.holder("key") == ledger.holder("later") == expected
        assert ledger.holder("other") == bystander.id
        if state is State.RELEASED:
            ledger.hold("key", bystander.id)
            assert ledger.holder("key") == bystander.id

    def test_only_a_live_record_can_hold(self, ledger: Ledger) -> None:
        """A hold of an unknown or released record would never be given back."""
        gone = walk(ledger, ledger.create(sample_lease(), actor="test", reason=""), State.RELEASED).record
        for record_id in ("absent-1", gone.id):
            with pytest.raises(NotFound, match=record_id):
                ledger.hold("key", record_id)
        assert ledger.holder("key") is None

    def test_holds_outlive_the_handle(self, ledger: Ledger, open_ledger: OpenLedger) -> None:
        """A hold is as durable as its record."""
        mine = ledger.create(sample_lease(), actor="test", reason="", holds=("key",)).record
        ledger.hold("later", mine.id)
        ledger.close()
        with closing(open_ledger()) as reopened:
            assert reopened.holder("key") == reopened.holder("later") == mine.id
