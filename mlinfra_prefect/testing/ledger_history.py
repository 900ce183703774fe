"""Rules of reading: the whole history, the order of rounds, and what happens to records that nobody can read."""

from __future__ import annotations

from datetime import timedelta

import pytest

from mlinfra_prefect.errors import AlreadyExists, LedgerUnreadable
from mlinfra_prefect.ledger import Ledger, revise
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.ledger_fixtures import Damage, LedgerFixtures, OpenLedger, Spoil, walk
from mlinfra_prefect.testing.records import sample_endpoint, sample_lease, sample_rollout

ROUNDS = 11
"""Enough for round 10 to come before round 9 in a store that sorts ids as text."""


class HistoryRules(LedgerFixtures):
    """What a ledger tells of what was."""

    def test_every_transition_is_kept_with_time_generation_actor_and_reason(self, ledger: Ledger) -> None:
        """The history tells who brought the record from which state to which, when and why, oldest first."""
        began = ledger.now()
        seen = ledger.create(sample_lease(), actor="flow", reason="asked for")
        seen = ledger.replace(seen, seen.record.revised(state=State.PROVISIONING), actor="keeper 1", reason="begins")
        taken = seen.record.revised(generation=2)
        seen = ledger.replace(seen, taken, actor="keeper 2", reason="takeover")
        ledger.replace(seen, taken.revised(state=State.RELEASING), actor="keeper 2", reason="no client")
        ended = ledger.now()
        history = ledger.history(seen.record.id)
        assert [(line.before, line.state, line.generation, line.actor, line.reason) for line in history] == [
            (None, "requested", 1, "flow", "asked for"),
            ("requested", "provisioning", 1, "keeper 1", "begins"),
            ("provisioning", "provisioning", 2, "keeper 2", "takeover"),
            ("provisioning", "releasing", 2, "keeper 2", "no client"),
        ]
        times = [line.time for line in history]
        assert [began, *times, ended] == sorted([began, *times, ended])

    def test_history_outlives_release_and_the_handle(self, ledger: Ledger, open_ledger: OpenLedger) -> None:
        """Nothing is deleted by success."""
        seen = walk(ledger, ledger.create(sample_lease(), actor="test", reason="asked for"), State.RELEASED)
        history = ledger.history(seen.record.id)
        assert [line.state for line in history] == ["requested", "releasing", "released"]
        ledger.close()
        reopened = open_ledger()
        assert reopened.history(seen.record.id) == history
        assert reopened.records() == [seen]
        reopened.close()

    def test_a_renewal_leaves_no_line(self, ledger: Ledger) -> None:
        """Renewals every half minute would bury the transitions that people look for."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        later = seen.record.renewed_until + timedelta(minutes=2)
        seen = ledger.replace(seen, seen.record.revised(renewed_until=later), actor="keeper", reason="renewed")
        assert [line.reason for line in ledger.history(seen.record.id)] == ["asked for"]
        ledger.replace(seen, seen.record.revised(failures=1, renewed_until=later), actor="keeper", reason="failed")
        assert [line.reason for line in ledger.history(seen.record.id)] == ["asked for", "failed"]

    def test_a_look_at_a_canary_leaves_no_line(self, ledger: Ledger) -> None:
        """A rollout that is watched says every second when it is looked at next; what was found has its line."""
        seen = ledger.create(sample_rollout(), actor="test", reason="asked for")
        due = seen.record.renewed_until
        seen = ledger.replace(seen, seen.record.revised(due=due), actor="keeper", reason="looks again")
        assert [line.reason for line in ledger.history(seen.record.id)] == ["asked for"]
        ledger.replace(seen, seen.record.revised(due=None, promoted_at=due), actor="keeper", reason="promoted")
        assert [line.reason for line in ledger.history(seen.record.id)] == ["asked for", "promoted"]

    @pytest.mark.parametrize("reason", ["two\nlines\0", "half a pair \ud800", "long " * 1000, ""])
    def test_any_reason_can_be_written(self, ledger: Ledger, reason: str) -> None:
        """A bad message from elsewhere must never stop a release; it is kept as one line."""
        seen = ledger.create(sample_lease(), actor=reason, reason=reason)
        line = ledger.history(seen.record.id)[0]
        assert len(line.reason.splitlines()) <= 1
        assert line.reason.partition(" ")[0] == (reason.split() or [""])[0]

    def test_histories_are_apart(self, ledger: Ledger) -> None:
        """The history of a record holds nothing of another one."""
        ledger.create(sample_lease("one"), actor="test", reason="one")
        two = ledger.create(sample_lease("two"), actor="test", reason="two")
        assert [line.reason for line in ledger.history(two.record.id)] == ["two"]

    def test_records_come_oldest_first(self, ledger: Ledger) -> None:
        """Listings have the order of creation, whatever the ids and later changes."""
        made = [ledger.create(sample_lease(name), actor="test", reason="") for name in ("c", "a", "b")]
        made.append(ledger.create(sample_endpoint(), actor="test", reason=""))
        made.append(ledger.create(sample_rollout(), actor="test", reason=""))
        made[0] = ledger.replace(made[0], made[0].record.revised(failures=1), actor="test", reason="changed")
        assert ledger.records() == made

    @pytest.mark.parametrize(
        "sample", [sample_lease, sample_endpoint, sample_rollout], ids=["lease", "endpoint", "rollout"]
    )
    def test_rounds_come_in_order(self, ledger: Ledger, sample: type) -> None:
        """Every round of a base (each version of an endpoint), released ones too, in order and nothing of another."""
        made = []
        for number in range(1, ROUNDS + 1):
            seen = ledger.create(sample("mine", number), actor="test", reason="")
            made.append(walk(ledger, seen, State.RELEASED) if number < ROUNDS else seen)
            ledger.create(sample("another", number), actor="test", reason="")
        base = made[0].record.id.rpartition("-")[0]
        assert ledger.rounds(base) == made

    @pytest.mark.parametrize("kind", list(Damage))
    def test_an_unreadable_record_never_hides_the_others(self, ledger: Ledger, damage: Spoil, kind: Damage) -> None:
        """It is left out of listings and told by `unreadable`; the others are read and written as ever."""
        first, bad, last = (
            ledger.create(sample_lease(name), actor="test", reason="made", holds=(f"hold-{name}",))
            for name in ("first", "bad", "last")
        )
        assert ledger.unreadable() == []
        damage(bad.record.id, kind)
        assert ledger.records() == [first, last]
        assert ledger.records(states=(State.REQUESTED,)) == [first, last]
        [(record_id, why)] = ledger.unreadable()
        assert record_id == bad.record.id
        assert bad.record.id in why
        assert [line.reason for line in ledger.history(bad.record.id)] == ["made"]
        walk(ledger, last, State.RELEASED)

    @pytest.mark.parametrize("kind", list(Damage))
    def test_an_unreadable_record_is_never_touched(self, ledger: Ledger, damage: Spoil, kind: Damage) -> None:
        """Fail closed: it cannot be read, changed, created anew or counted as a round, and it keeps its holds."""
        bad = ledger.create(sample_lease(), actor="test", reason="made", holds=("mine",)).record
        damage(bad.id, kind)
        assert isinstance(bad, type(sample_lease()))
        for read in (
            lambda: ledger.read(bad.id),
            lambda: ledger.rounds(bad.base),
            lambda: revise(ledger, bad.id, lambda record: record, actor="test", reason="no"),
        ):
            with pytest.raises(LedgerUnreadable, match=bad.id):
                read()
        with pytest.raises(AlreadyExists):
            ledger.create(sample_lease(), actor="test", reason="anew")
        assert ledger.holder("mine") == bad.id
        assert len(ledger.unreadable()) == 1

    def test_a_record_of_a_newer_program_says_to_upgrade(self, ledger: Ledger, damage: Spoil) -> None:
        """A schema from the future is not a corruption: the sentence says what to do."""
        bad = ledger.create(sample_lease(), actor="test", reason="made").record
        damage(bad.id, Damage.FUTURE)
        with pytest.raises(LedgerUnreadable, match=r"schema 999.*Upgrade"):
            ledger.read(bad.id)
