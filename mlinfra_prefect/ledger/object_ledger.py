"""A ledger in a store of objects: whatever gives create-if-absent, compare-and-swap on one object, a list and a clock.

Three things lie in it. ``records/ID.json`` is the truth: the record with its history and version, so that a transition
and its line are one compare-and-swap. ``open/ID`` is an index: it is there before a record is and goes after it is
released, so what is open among ten thousand released ones is found by one list. ``holds/…`` are the exclusive names.
Dying between any two writes leaves at worst an index entry or a hold too many, and neither says anything by itself.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta

from mlinfra_prefect.errors import (
    AlreadyExists,
    LeaseHeld,
    LedgerUnavailable,
    LedgerUnreadable,
    NotFound,
    StaleWrite,
)
from mlinfra_prefect.ledger.object_holds import GRACE_SECONDS, Holds, Taken, key_of
from mlinfra_prefect.ledger.object_record import StoredRecord, first, parse
from mlinfra_prefect.ledger.objects import ObjectStore
from mlinfra_prefect.ledger.protocol import KeptRecord, Transition, Versioned, worth_a_line
from mlinfra_prefect.ledger.stored import SCHEMA_VERSION, refuse_future_schema
from mlinfra_prefect.model.endpoint import check_change
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.names import as_line, is_id, minted, token

IDENTITY = "ledger.json"
READERS = 16
"""Objects that are read at once in a listing."""
REMEMBERED = 256
"""Objects of which a handle remembers the tag, so that a change costs no second read."""
SLOW_SECONDS = GRACE_SECONDS / 2


class ObjectLedger:
    """See `protocol.Ledger`. Safe to use from many threads; a handle remembers nothing that another one must know."""

    def __init__(self, store: ObjectStore) -> None:
        """Open the ledger of a store. Nothing is written: a ledger is made with its first record.

        Raises:
            LedgerUnavailable: the store cannot be reached.
            LedgerUnreadable: a newer version made it, or it is damaged.
        """
        self._store = store
        self._lock = threading.Lock()
        self._last = datetime.min  # noqa: DTZ901 (before every moment; replaced by an aware one)
        self._seen: OrderedDict[str, tuple[str, StoredRecord]] = OrderedDict()
        self._holds = Holds(store, self.now, self._standing)
        self._ledger_id = self._identity()

    @property
    def name(self) -> str:
        """Where it lies."""
        return self._store.name

    # --- identity and clock ------------------------------------------------------------------------------------------

    @property
    def ledger_id(self) -> str:
        """The ledger's own uuid; minted when it is first asked for."""
        if self._ledger_id is None:
            self._ledger_id = self._minted()
        return self._ledger_id

    @property
    def identity(self) -> str | None:
        """The ledger's uuid as far as it has been minted; unlike `ledger_id` this never writes."""
        return self._ledger_id

    def _identity(self) -> str | None:
        found = self._store.get(IDENTITY)
        if found is None:
            return None
        try:
            fields = json.loads(found.body)
            schema, ledger_id = fields["schema"], str(fields["ledger_id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerUnreadable(
                f"The ledger {self.name} has lost its identity ({IDENTITY} is damaged).",
                "Restore that object's version before from the bucket.",
            ) from error
        refuse_future_schema(f"The ledger {self.name}", schema)
        return ledger_id

    def _minted(self) -> str:
        # Records without an identity are a ledger that lost it: a second uuid would disown what the first one made.
        if self._store.list("records/", limit=1) and self._identity() is None:
            raise LedgerUnreadable(
                f"The ledger {self.name} has lost its identity ({IDENTITY} is gone).",
                "Restore that object from the bucket's versions or from a copy.",
            )
        mine = minted()
        body = json.dumps({"schema": SCHEMA_VERSION, "ledger_id": mine}, indent=1).encode()
        if self._store.write(IDENTITY, body, over=None, ours=lambda found: mine.encode() in found) is not None:
            return mine
        ledger_id = self._identity()
        if ledger_id is None:
            raise LedgerUnavailable(f"The ledger {self.name} was deleted while it was being made.", "Try again.")
        return ledger_id

    def _check_identity(self) -> None:
        """See that the store still is the ledger that was opened: it may have been deleted and made again."""
        mine = self.ledger_id
        if self._identity() != mine:
            raise LedgerUnavailable(
                f"{self.name} is not the ledger {mine} any more: it was deleted or replaced.",
                "Nothing was provisioned. Start again with the ledger that is there now, or restore the former one.",
            )

    def now(self) -> datetime:
        """Return the time on the store's clock; of one handle no two calls return the same, so lines have an order."""
        told = self._store.now()
        with self._lock:
            if self._last.tzinfo is not None and told <= self._last:
                told = self._last + timedelta(microseconds=1)
            self._last = told
        return told

    # --- writing -----------------------------------------------------------------------------------------------------

    def create(self, record: KeptRecord, *, actor: str, reason: str, holds: Sequence[str] = ()) -> Versioned:
        """See `protocol.Ledger.create`."""
        check_change(None, record)
        self._check_identity()
        began, taken = self.now(), []
        try:
            for name in holds:
                taken.append(self._holds.take(name, record.id))  # noqa: PERF401 (what was taken before one is refused)
        except LeaseHeld:
            there = self._stored(record.id)
            self._give_back(taken, () if there is None else there.holds)
            if there is not None:
                raise AlreadyExists(f"{record.id} exists already.") from None
            raise
        self._store.write(f"open/{record.id}", token().encode(), over=None, ours=lambda _: True)
        write = token()
        stored = first(record, self._line(None, record, actor, reason), holds, write)
        if not self._put(stored, over=None, write=write):
            # Another process of the same flow run was faster. What it holds by the same names stays held.
            with suppress(LedgerUnreadable):
                there = self._stored(record.id)
                self._give_back(taken, () if there is None else there.holds)
            raise AlreadyExists(f"{record.id} exists already.")
        seen = stored.versioned()
        if holds and self.now() - began > timedelta(seconds=SLOW_SECONDS):
            self._check_holds(seen, holds, actor)
        return seen

    def _check_holds(self, seen: Versioned, holds: Sequence[str], actor: str) -> None:
        """After a pause that outlasted a hold's grace: give the record up when somebody has the name by now."""
        lost = [name for name in holds if self._holds.holder(name) != seen.record.id]
        if not lost:
            return
        for state in (State.RELEASING, State.RELEASED):
            seen = self.replace(
                seen, seen.record.revised(state=state), actor=actor, reason=f"it lost the hold {lost[0]}"
            )
        raise LeaseHeld(f"{lost[0]} was taken by another record while this process stood still.", "Try again.")

    def _give_back(self, taken: Iterable[Taken], kept: Sequence[str]) -> None:
        keys = {key_of(name) for name in kept}
        for each in taken:
            if each.key not in keys:
                self._holds.give_back(each)

    def replace(self, seen: Versioned, record: KeptRecord, *, actor: str, reason: str) -> Versioned:
        """See `protocol.Ledger.replace`."""
        check_change(seen.record, record)
        tag, stored = self._seen_at(record.id, seen.version)
        line = self._line(seen.record, record, actor, reason) if worth_a_line(seen.record, record) else None
        write = token()
        following = stored.followed_by(record, line, write)
        if not self._put(following, over=tag, write=write):
            raise StaleWrite(f"{record.id} changed since it was read.")
        if following.released:
            self._store.delete(f"open/{record.id}")
        return Versioned(record, following.version)

    def _seen_at(self, record_id: str, version: int) -> tuple[str, StoredRecord]:
        with self._lock:
            known = self._seen.get(record_id)
        if known is None or known[1].version != version:
            self._stored(record_id)
            with self._lock:
                known = self._seen.get(record_id)
        if known is None or known[1].version != version:
            raise StaleWrite(f"{record_id} changed since it was read.")
        return known

    def _put(self, stored: StoredRecord, *, over: str | None, write: str) -> bool:
        mine, overtaken = stored.body(), False

        def ours(body: bytes) -> bool:
            nonlocal overtaken
            overtaken = body != mine  # our write was, and somebody's later one is there: its tag is not ours to use
            try:
                return write in parse(stored.id, body).writes
            except LedgerUnreadable:
                return False

        tag = self._store.write(_key(stored.id), mine, over=over, ours=ours)
        self._remember(stored.id, None if tag is None or overtaken else (tag, stored))
        return tag is not None

    def _line(self, before: KeptRecord | None, after: KeptRecord, actor: str, reason: str) -> Transition:
        return Transition(
            time=self.now(),
            generation=after.generation,
            actor=as_line(actor),
            before=before.state if before else None,
            state=after.state,
            reason=as_line(reason),
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    def read(self, record_id: str) -> Versioned | None:
        """See `protocol.Ledger.read`."""
        stored = self._stored(record_id)
        return None if stored is None else stored.versioned()

    def records(
        self, *, states: Sequence[State] | None = None, changed_since: datetime | None = None
    ) -> list[Versioned]:
        """See `protocol.Ledger.records`. What is open costs one list and a read each, whatever was released before."""
        if states is not None and not states:
            return []
        found = []
        for stored in self._listed(everything=states is None or State.RELEASED in states, since=changed_since)[0]:
            if states is None or stored.state in states:
                with suppress(LedgerUnreadable):  # `unreadable` tells of it; it never hides the others (rule R9)
                    found.append(stored.versioned())
        return found

    def unreadable(self) -> list[tuple[str, str]]:
        """See `protocol.Ledger.unreadable`."""
        listed, problems = self._listed(everything=False)
        for stored in listed:
            try:
                stored.versioned()
            except LedgerUnreadable as error:
                problems.append((stored.id, str(error)))
        return problems

    def history(self, record_id: str) -> list[Transition]:
        """See `protocol.Ledger.history`."""
        stored = self._stored(record_id)
        return [] if stored is None else stored.history()

    def rounds(self, base: str) -> list[Versioned]:
        """See `protocol.Ledger.rounds`."""
        if not is_id(base):
            return []
        ids = [_id(key) for key in self._store.list(f"records/{base}-")]
        numbered = [each for each in ids if each.rpartition("-")[0] == base and each.rpartition("-")[2].isdecimal()]
        found, problems = self._read_all(sorted(numbered, key=lambda each: int(each.rpartition("-")[2])))
        if problems:
            raise LedgerUnreadable(problems[0][1])
        return [stored.versioned() for stored in found]

    def hold(self, name: str, record_id: str) -> None:
        """See `protocol.Ledger.hold`."""
        if not self._standing(record_id):
            raise NotFound(f"{record_id} is no live record, so it cannot hold {name}.")
        self._holds.take(name, record_id)

    def holder(self, name: str) -> str | None:
        """See `protocol.Ledger.holder`."""
        return self._holds.holder(name)

    def close(self) -> None:
        """See `protocol.Ledger.close`."""
        self._store.close()

    def _standing(self, record_id: str) -> bool | None:
        try:
            stored = self._stored(record_id)
        except LedgerUnreadable:
            return True  # it may be live, so it keeps what it holds
        return None if stored is None else not stored.released

    def _stored(self, record_id: str) -> StoredRecord | None:
        found = self._store.get(_key(record_id)) if is_id(record_id) else None
        stored = None if found is None else parse(record_id, found.body)
        self._remember(record_id, None if found is None or stored is None else (found.tag, stored))
        return stored

    def _remember(self, record_id: str, known: tuple[str, StoredRecord] | None) -> None:
        with self._lock:
            self._seen.pop(record_id, None)
            if known is not None:
                self._seen[record_id] = known
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)

    def _listed(
        self, *, everything: bool, since: datetime | None = None
    ) -> tuple[list[StoredRecord], list[tuple[str, str]]]:
        """Return the objects that can be read, oldest first, and what is wrong with the others."""
        keys = self._store.list("records/", since=since) if everything else self._store.list("open/")
        ids = [_id(key) for key in keys]
        found, problems = self._read_all(ids)
        if not everything:
            for stored in found:
                if stored.released:  # whoever released it died before the index was told
                    self._store.delete(f"open/{stored.id}")
            found = [stored for stored in found if not stored.released]
        return sorted(found, key=lambda stored: (stored.began, stored.id)), problems

    def _read_all(self, ids: Sequence[str]) -> tuple[list[StoredRecord], list[tuple[str, str]]]:
        def read(record_id: str) -> StoredRecord | tuple[str, str] | None:
            try:
                return self._stored(record_id)
            except LedgerUnreadable as error:
                return record_id, str(error)

        if len(ids) > 1:
            with ThreadPoolExecutor(min(READERS, len(ids)), thread_name_prefix="ledger") as pool:
                each = list(pool.map(read, ids))
        else:
            each = [read(record_id) for record_id in ids]
        return [one for one in each if isinstance(one, StoredRecord)], [one for one in each if isinstance(one, tuple)]


def _key(record_id: str) -> str:
    return f"records/{record_id}.json"


def _id(key: str) -> str:
    return key.rpartition("/")[2].removesuffix(".json")
