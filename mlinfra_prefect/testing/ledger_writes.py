"""Rules of writing: create-if-absent, durable, compare-and-swap, legal transitions only, `revise` and its fencing."""

from __future__ import annotations

import uuid
from contextlib import closing
from datetime import UTC, timedelta

import pytest

from mlinfra_prefect.errors import AlreadyExists, IllegalTransition, LeaseLost, NotFound, StaleWrite
from mlinfra_prefect.ledger import KeptRecord, Ledger, Versioned, revise
from mlinfra_prefect.model.endpoint import VERSION_TRANSITIONS, VersionState
from mlinfra_prefect.model.lease import ATTEMPT_TRANSITIONS, LIVE, TRANSITIONS, AttemptState, State
from mlinfra_prefect.testing.ledger_fixtures import LedgerFixtures, OpenLedger, walk
from mlinfra_prefect.testing.records import sample_attempt, sample_endpoint, sample_lease, sample_rollout

TRIES = 3


class WriteRules(LedgerFixtures):
    """How records come to be and change."""

    def test_the_ledger_has_a_uuid_of_its_own_that_lasts(self, open_ledger: OpenLedger) -> None:
        """The uuid is minted once: every handle of a store tells the same, two stores never do."""
        with closing(open_ledger()) as first, closing(open_ledger()) as again, closing(open_ledger("second")) as second:
            assert str(uuid.UUID(first.ledger_id)) == first.ledger_id == again.ledger_id
            assert second.ledger_id != first.ledger_id
        with closing(open_ledger()) as reopened:
            assert reopened.ledger_id == first.ledger_id

    def test_the_clock_is_in_utc_and_does_not_go_back(self, ledger: Ledger) -> None:
        """Times are told in UTC by one clock."""
        first = ledger.now()
        assert first.tzinfo is UTC
        assert ledger.now() >= first

    @pytest.mark.parametrize(
        "record", [sample_lease(), sample_endpoint(), sample_rollout()], ids=["lease", "endpoint", "rollout"]
    )
    def test_a_created_record_is_read_as_it_was_written(
        self, ledger: Ledger, open_ledger: OpenLedger, record: KeptRecord
    ) -> None:
        """What was written is there, exactly, for every handle and after the store was closed."""
        written = ledger.create(record, actor="test", reason="asked for")
        assert written.record == record
        assert ledger.read(record.id) == written
        ledger.close()
        with closing(open_ledger()) as reopened:
            assert reopened.read(record.id) == written
            assert reopened.records() == [written]

    def test_a_replaced_record_is_read_as_it_was_written(self, ledger: Ledger, open_ledger: OpenLedger) -> None:
        """A change is as durable as a creation."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        written = ledger.replace(seen, seen.record.revised(reason="é ✓ \U0001f680"), actor="test", reason="told")
        assert written.version != seen.version
        ledger.close()
        with closing(open_ledger()) as reopened:
            assert reopened.read(seen.record.id) == written

    def test_closing_twice_is_allowed(self, ledger: Ledger) -> None:
        """Closing is idempotent."""
        ledger.close()
        ledger.close()

    def test_an_absent_record_is_none_and_has_no_history(self, ledger: Ledger) -> None:
        """Absence is an answer, not an error, whatever the text that was asked for."""
        for name in ("absent-1", "", "É", "a\nb", "\udcff", "a" * 200_000, "../../x", "'; DROP TABLE records; --"):
            assert ledger.read(name) is None
            assert ledger.history(name) == []
            assert ledger.rounds(name) == []
            assert ledger.holder(name) is None

    def test_an_id_is_taken_once(self, ledger: Ledger, other: Ledger) -> None:
        """Creating is create-if-absent: what is there is never overwritten, not even when it is released."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        with pytest.raises(AlreadyExists, match=seen.record.id):
            other.create(sample_lease(reason="another"), actor="test", reason="asked for again")
        released = walk(ledger, seen, State.RELEASED)
        with pytest.raises(AlreadyExists, match=seen.record.id):
            other.create(sample_lease(), actor="test", reason="asked for again")
        assert ledger.read(seen.record.id) == released

    def test_a_stale_write_is_refused_and_changes_nothing(self, ledger: Ledger, other: Ledger) -> None:
        """A write over a version that is no longer the last one is refused, from any handle."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        won = other.replace(seen, seen.record.revised(failures=1), actor="other", reason="first")
        history = ledger.history(seen.record.id)
        for handle in (ledger, other):
            with pytest.raises(StaleWrite, match=seen.record.id):
                handle.replace(seen, seen.record.revised(failures=2), actor="test", reason="second")
        assert ledger.read(seen.record.id) == won
        assert ledger.history(seen.record.id) == history

    def test_a_write_over_a_record_that_is_not_there_is_stale(self, ledger: Ledger) -> None:
        """Replacing never creates."""
        with pytest.raises(StaleWrite):
            ledger.replace(Versioned(sample_lease(), 1), sample_lease(failures=1), actor="test", reason="lost")
        assert ledger.records() == []

    @pytest.mark.parametrize("state", [state for state in State if state is not State.REQUESTED])
    def test_a_record_begins_as_requested(self, ledger: Ledger, state: State) -> None:
        """Write-ahead: there is no record that was not written before its work began."""
        with pytest.raises(IllegalTransition, match=f"not as {state}"):
            ledger.create(sample_lease(state=state), actor="test", reason="too late")
        assert ledger.records() == []

    @pytest.mark.parametrize("after", list(State))
    @pytest.mark.parametrize("before", list(State))
    def test_only_legal_transitions_of_a_record_are_written(self, ledger: Ledger, before: State, after: State) -> None:
        """The whole table: what it allows is written, everything else is refused and changes nothing."""
        seen = walk(ledger, ledger.create(sample_lease(), actor="test", reason="asked for"), before)
        changed = seen.record.revised(state=after, failures=1)
        legal = after in TRANSITIONS[before] or (after is before and before is not State.RELEASED)
        history = ledger.history(seen.record.id)
        if legal:
            assert ledger.replace(seen, changed, actor="test", reason="onward").record == changed
            assert ledger.read(seen.record.id) == Versioned(changed, seen.version + 1)
            return
        with pytest.raises(IllegalTransition, match=seen.record.id):
            ledger.replace(seen, changed, actor="test", reason="onward")
        assert ledger.read(seen.record.id) == seen
        assert ledger.history(seen.record.id) == history

    @pytest.mark.parametrize("after", list(AttemptState))
    @pytest.mark.parametrize("before", list(AttemptState))
    def test_only_legal_transitions_of_an_attempt_are_written(
        self, ledger: Ledger, before: AttemptState, after: AttemptState
    ) -> None:
        """The same for attempts: a destroyed attempt never comes up again."""
        seen = walk(ledger, ledger.create(sample_lease(), actor="test", reason="asked for"), State.PROVISIONING)
        order = list(AttemptState)
        for step in order[: order.index(before) + 1]:
            record = seen.record.revised(attempts=(sample_attempt(state=step),))
            seen = ledger.replace(seen, record, actor="test", reason=f"to {step}")
        changed = seen.record.revised(attempts=(sample_attempt(state=after, engine="terraform 1.11.4"),))
        if after is before or after in ATTEMPT_TRANSITIONS[before]:
            assert ledger.replace(seen, changed, actor="test", reason="onward").record == changed
            return
        with pytest.raises(IllegalTransition, match=f"{before} does not lead to {after}"):
            ledger.replace(seen, changed, actor="test", reason="onward")
        assert ledger.read(seen.record.id) == seen

    @pytest.mark.parametrize("after", list(VersionState))
    @pytest.mark.parametrize("before", list(VersionState))
    def test_only_legal_changes_of_a_version_are_written(
        self, ledger: Ledger, before: VersionState, after: VersionState
    ) -> None:
        """The same for the versions of an endpoint: what was rolled back or retired never serves again."""
        (version,) = sample_endpoint().versions
        record = sample_endpoint(versions=(version.revised(state=before),))
        seen = ledger.create(record, actor="test", reason="asked for")
        changed = record.rerouted((version.revised(state=after),))
        if after is before or after in VERSION_TRANSITIONS[before]:
            assert ledger.replace(seen, changed, actor="test", reason="onward").record == changed
            return
        with pytest.raises(IllegalTransition, match=f"version 1: {before} does not lead to {after}"):
            ledger.replace(seen, changed, actor="test", reason="onward")
        assert ledger.read(record.id) == seen

    def test_routes_never_go_back_to_an_older_revision(self, ledger: Ledger) -> None:
        """Whoever writes routes may be late: the router follows the highest revision, so it never falls."""
        seen = ledger.create(sample_endpoint(revision=7), actor="test", reason="asked for")
        with pytest.raises(IllegalTransition, match="from 7 to 6"):
            ledger.replace(seen, seen.record.revised(revision=6), actor="test", reason="late")
        assert ledger.read(seen.record.id) == seen

    def test_an_attempt_is_never_forgotten_nor_outlived(self, ledger: Ledger) -> None:
        """A record that drops an attempt, or is released before its attempts are, would leak what they created."""
        seen = walk(ledger, ledger.create(sample_lease(), actor="test", reason="asked for"), State.PROVISIONING)
        planned = seen.record.revised(attempts=(sample_attempt(),))
        seen = ledger.replace(seen, planned, actor="test", reason="attempt 1")
        with pytest.raises(IllegalTransition, match="never forgotten"):
            ledger.replace(seen, planned.revised(attempts=()), actor="test", reason="forgets it")
        ahead = (*planned.attempts, sample_attempt(2, state=AttemptState.UP))
        with pytest.raises(IllegalTransition, match="begins as planned"):
            ledger.replace(seen, planned.revised(attempts=ahead), actor="test", reason="not written ahead")
        seen = ledger.replace(seen, planned.revised(state=State.RELEASING), actor="test", reason="enough")
        with pytest.raises(IllegalTransition, match="not released yet"):
            ledger.replace(seen, seen.record.revised(state=State.RELEASED), actor="test", reason="too early")
        assert ledger.read(seen.record.id) == seen

    def test_a_record_never_becomes_another(self, ledger: Ledger) -> None:
        """Neither its id, its kind nor its ledger changes, and its generation never falls."""
        seen = ledger.create(sample_lease(generation=2), actor="test", reason="asked for")
        for changed in (
            sample_lease("another", generation=2),
            sample_endpoint(id=seen.record.id, generation=2),
            sample_rollout(id=seen.record.id, generation=2),
            seen.record.revised(ledger_id="another"),
            seen.record.revised(generation=1),
        ):
            with pytest.raises(IllegalTransition):
                ledger.replace(seen, changed, actor="test", reason="swapped")
        assert ledger.records() == [seen]

    def test_revise_reads_changes_and_writes(self, ledger: Ledger) -> None:
        """`revise` returns the record as it stands now; no change is no write."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        for change in (lambda _: None, lambda record: record, lambda record: record.revised()):
            assert revise(ledger, seen.record.id, change, actor="test", reason="nothing") == seen.record
        assert ledger.read(seen.record.id) == seen
        changed = revise(ledger, seen.record.id, lambda r: r.revised(failures=1), actor="test", reason="one")
        assert changed == seen.record.revised(failures=1)
        assert ledger.read(seen.record.id) == Versioned(changed, seen.version + 1)

    def test_revise_of_an_absent_record_is_not_found(self, ledger: Ledger) -> None:
        """An absent record is said to be absent, and nothing is made."""
        with pytest.raises(NotFound, match="absent-1"):
            revise(ledger, "absent-1", lambda record: record, actor="test", reason="none")

    def test_revise_tries_again_after_a_lost_race(self, ledger: Ledger, other: Ledger) -> None:
        """A lost race is run again over what won, so that neither change is lost."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        calls: list[int] = []

        def change(record: KeptRecord) -> KeptRecord:
            calls.append(record.failures)
            if len(calls) == 1:
                now = Versioned(record, seen.version)
                other.replace(now, record.revised(reason="other"), actor="other", reason="between")
            return record.revised(failures=record.failures + 1)

        changed = revise(ledger, seen.record.id, change, actor="test", reason="one more")
        assert calls == [0, 0]
        assert (changed.failures, changed.reason) == (1, "other")

    def test_revise_gives_up_after_its_tries(self, ledger: Ledger, other: Ledger) -> None:
        """Who loses every race is told so, and has written nothing."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")
        others = iter(range(1, 100))

        def change(record: KeptRecord) -> KeptRecord:
            note = f"other {next(others)}"
            revise(other, record.id, lambda now: now.revised(reason=note), actor="other", reason="between")
            return record.revised(failures=1)

        with pytest.raises(StaleWrite, match=f"changed {TRIES} times"):
            revise(ledger, seen.record.id, change, actor="test", reason="never", tries=TRIES)
        assert ledger.read(seen.record.id) == Versioned(
            seen.record.revised(reason=f"other {TRIES}"), seen.version + TRIES
        )

    def test_a_fenced_keeper_touches_nothing(self, ledger: Ledger, other: Ledger) -> None:
        """After a takeover the former keeper gets LeaseLost, also in the middle of a race, and changes nothing."""
        seen = ledger.create(sample_lease(), actor="test", reason="asked for")

        def take_over(record: KeptRecord) -> KeptRecord:
            return record.revised(generation=record.generation + 1)

        def change(record: KeptRecord) -> KeptRecord:
            revise(other, record.id, take_over, actor="other", reason="takeover")
            return record.revised(failures=1)

        with pytest.raises(LeaseLost, match="its generation is 2, ours was 1"):
            revise(ledger, seen.record.id, change, actor="keeper", reason="late", generation=1)
        with pytest.raises(LeaseLost):
            revise(ledger, seen.record.id, lambda r: r.revised(failures=1), actor="keeper", reason="late", generation=1)
        assert ledger.read(seen.record.id) == Versioned(seen.record.revised(generation=2), seen.version + 1)
        renewed = seen.record.renewed_until + timedelta(minutes=1)
        revise(ledger, seen.record.id, lambda r: r.revised(renewed_until=renewed), actor="b", reason="", generation=2)

    def test_live_states_are_those_that_have_not_begun_to_go(self, ledger: Ledger) -> None:
        """Listings by state tell exactly the records in these states, whatever was written before."""
        made = {
            state: walk(ledger, ledger.create(sample_lease(f"in-{state}"), actor="test", reason=""), state)
            for state in State
        }
        live = [made[state] for state in State if state in LIVE]
        assert ledger.records(states=tuple(LIVE)) == live
        assert ledger.records(states=()) == []
        for state in State:
            assert ledger.records(states=(state,)) == [made[state]]
        assert ledger.records() == list(made.values())
