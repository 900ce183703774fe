"""Rules of a store that is gone, and of its clock: fail closed, and one time for all."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from mlinfra_prefect.errors import LedgerUnavailable, LedgerUnreadable
from mlinfra_prefect.ledger import Ledger
from mlinfra_prefect.testing.ledger_fixtures import LedgerFixtures, Lose, OpenLedger
from mlinfra_prefect.testing.records import sample_lease

APART = timedelta(seconds=2)
"""How far the clocks of two handles may be apart: a store may tell its time in whole seconds."""
READINGS = 20


class LossRules(LedgerFixtures):
    """What holds when the store is lost, and what its clock promises."""

    def test_a_lost_store_fails_closed(self, ledger: Ledger, lose: Lose) -> None:
        """A deleted bucket, a removed file: no answer of an open handle looks like *there is nothing*, or like success.

        A reaper that reads an empty list would call everything gone, and a client that may write would provision what
        nobody can find.
        """
        seen = ledger.create(sample_lease(), actor="test", reason="made", holds=("mine",))
        lose()
        for act in (
            lambda: ledger.read(seen.record.id),
            ledger.records,
            ledger.unreadable,
            lambda: ledger.history(seen.record.id),
            lambda: ledger.rounds(sample_lease().base),
            lambda: ledger.holder("mine"),
            lambda: ledger.hold("another", seen.record.id),
            lambda: ledger.replace(seen, seen.record.revised(failures=1), actor="test", reason="too late"),
            lambda: ledger.create(sample_lease("another"), actor="test", reason="too late"),
        ):
            with pytest.raises(LedgerUnavailable) as told:
                act()
            assert told.value.remedy

    def test_a_store_that_was_lost_is_never_taken_for_the_one_that_comes_after(
        self, ledger: Ledger, lose: Lose, open_ledger: OpenLedger
    ) -> None:
        """Who opens the place again finds another ledger, or none; never the old id without its records."""
        ledger.create(sample_lease(), actor="test", reason="made")
        former = ledger.ledger_id
        lose()
        try:
            after = open_ledger()
        except (LedgerUnavailable, LedgerUnreadable):
            return
        try:
            assert after.ledger_id != former
        except (LedgerUnavailable, LedgerUnreadable):
            pass
        else:
            # The open handle of the former one does not write into it.
            with pytest.raises(LedgerUnavailable):
                ledger.create(sample_lease("another"), actor="test", reason="too late")
        finally:
            after.close()

    def test_the_clock_is_one_for_every_handle(self, ledger: Ledger, other: Ledger) -> None:
        """No two handles are far apart, whichever is asked first: they tell the store's time and not each its own."""
        for _ in range(READINGS):
            first, second, third = ledger.now(), other.now(), ledger.now()
            assert first - APART <= second <= third + APART

    def test_the_clock_of_a_handle_never_goes_back(self, ledger: Ledger) -> None:
        """Also not between threads, and not over a write: lines of a history are in the order in which they came."""
        told: list[list[object]] = []

        def read() -> None:
            times = [ledger.now() for _ in range(READINGS)]
            told.append([times, sorted(times)])

        threads = [threading.Thread(target=read) for _ in range(4)]
        began = ledger.now()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = ledger.create(sample_lease(), actor="test", reason="made")
        assert began <= ledger.history(seen.record.id)[0].time <= ledger.now()
        assert len(told) == len(threads)
        for times, in_order in told:
            assert times == in_order
