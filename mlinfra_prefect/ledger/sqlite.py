"""The embedded ledger: one SQLite file, written durably.

SQLite with a write-ahead log and full synchronisation takes 100 writers on one host without a lock error (FACTS 22).
It is for one host: on a network file system its locks lie, so those are refused.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from mlinfra_prefect.errors import (
    AlreadyExists,
    LeaseHeld,
    LedgerUnavailable,
    LedgerUnreadable,
    NotFound,
    StaleWrite,
)
from mlinfra_prefect.ledger.mounts import refuse_network_file_system
from mlinfra_prefect.ledger.protocol import KeptRecord, Transition, Versioned, worth_a_line
from mlinfra_prefect.ledger.sqlite_file import open_file, translated
from mlinfra_prefect.ledger.stored import SCHEMA_VERSION, decode
from mlinfra_prefect.model.endpoint import check_change
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.names import as_line


class SqliteLedger:
    """See `protocol.Ledger`. Safe to use from many threads and processes; every call is its own transaction.

    A handle does not survive a fork: open another one in the child. And nobody may open the file by other means than
    SQLite in a process that has it open: closing it would drop this process's locks on it.
    """

    def __init__(self, path: Path) -> None:
        """Open the ledger at `path`, creating it, private, when it is absent.

        Raises:
            LedgerUnavailable: the file cannot be opened, or lies on a network file system.
            LedgerUnreadable: it was made by a newer version, or is no ledger.
        """
        self._path = path
        self._lock = threading.Lock()
        refuse_network_file_system(path)
        self._db, self._ledger_id = open_file(path)
        self._file = self._inode()

    def _inode(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 (twenty times a second: no object for it)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _refuse_lost_file(self) -> None:
        """SQLite reads and writes a removed file as if nothing had happened, and nobody else would ever see it."""
        if self._inode() != self._file:
            raise LedgerUnavailable(
                f"The ledger {self._path} was removed or replaced while it was open.",
                "Nothing was provisioned. Restore the file from a copy, then start again.",
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._refuse_lost_file()
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    # On a full disk SQLite rolled back already; a failed COMMIT leaves the transaction open.
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.DatabaseError as error:
                raise translated(error, self._path) from error

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[object, ...]]:
        with self._lock:
            try:
                with closing(self._db.execute(query, tuple(values))) as cursor:
                    found = cursor.fetchall()
                self._refuse_lost_file()  # after the read: what was read before the loss is true
                return found
            except UnicodeEncodeError:
                return []  # half a surrogate pair, as from a file name: no record has such a name
            except sqlite3.DatabaseError as error:
                raise translated(error, self._path) from error

    @property
    def ledger_id(self) -> str:
        """The ledger's own uuid."""
        return self._ledger_id

    def now(self) -> datetime:
        """Return the host's wall clock: the store's clock of a store on this host (rule R5)."""
        return datetime.now(UTC)

    def create(self, record: KeptRecord, *, actor: str, reason: str, holds: Sequence[str] = ()) -> Versioned:
        """See `protocol.Ledger.create`."""
        check_change(None, record)
        base = record.base if isinstance(record, LeaseRecord) else record.id.rpartition("-")[0]
        with self._transaction() as db:
            if db.execute("SELECT 1 FROM records WHERE id = ?", (record.id,)).fetchone():
                raise AlreadyExists(f"{record.id} exists already.")
            for name in holds:
                _take(db, name, record.id)
            db.execute(
                "INSERT INTO records (id, kind, base, state, version, schema, json) VALUES (?, ?, ?, ?, 1, ?, ?)",
                (record.id, record.kind, base, record.state, SCHEMA_VERSION, record.model_dump_json()),
            )
            self._remember(db, None, record, actor, reason)
        return Versioned(record, 1)

    def read(self, record_id: str) -> Versioned | None:
        """See `protocol.Ledger.read`."""
        rows = self._rows("SELECT id, kind, schema, json, version FROM records WHERE id = ?", (record_id,))
        return _parsed(rows[0]) if rows else None

    def replace(self, seen: Versioned, record: KeptRecord, *, actor: str, reason: str) -> Versioned:
        """See `protocol.Ledger.replace`."""
        check_change(seen.record, record)
        with self._transaction() as db:
            done = db.execute(
                "UPDATE records SET state = ?, version = version + 1, schema = ?, json = ?"
                " WHERE id = ? AND version = ?",
                (record.state, SCHEMA_VERSION, record.model_dump_json(), record.id, seen.version),
            )
            if done.rowcount != 1:
                raise StaleWrite(f"{record.id} changed since it was read.")
            if record.state is State.RELEASED:
                db.execute("DELETE FROM holds WHERE id = ?", (record.id,))
            if worth_a_line(seen.record, record):
                self._remember(db, seen.record, record, actor, reason)
        return Versioned(record, seen.version + 1)

    def _remember(
        self, db: sqlite3.Connection, before: KeptRecord | None, after: KeptRecord, actor: str, reason: str
    ) -> None:
        db.execute(
            "INSERT INTO history (id, time, generation, actor, before, state, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                after.id,
                self.now().isoformat(),
                after.generation,
                as_line(actor),
                before.state if before else None,
                after.state,
                as_line(reason),
            ),
        )

    def records(
        self, *, states: Sequence[State] | None = None, changed_since: datetime | None = None
    ) -> list[Versioned]:
        """See `protocol.Ledger.records`. Nothing is left out: a row costs no call."""
        del changed_since
        return [found for found in map(_parsed_or_none, self._listed(states)) if found is not None]

    def unreadable(self) -> list[tuple[str, str]]:
        """See `protocol.Ledger.unreadable`."""
        problems = []
        for row in self._rows("SELECT id, kind, schema, json, version FROM records WHERE state != 'released'"):
            try:
                _parsed(row)
            except LedgerUnreadable as error:
                problems.append((str(row[0]), str(error)))
        return problems

    def _listed(self, states: Sequence[State] | None) -> list[tuple[object, ...]]:
        query = "SELECT id, kind, schema, json, version FROM records"
        if states is None:
            return self._rows(f"{query} ORDER BY seq")
        places = ", ".join("?" for _ in states)
        return self._rows(f"{query} WHERE state IN ({places}) ORDER BY seq", [str(state) for state in states])

    def history(self, record_id: str) -> list[Transition]:
        """See `protocol.Ledger.history`."""
        rows = self._rows(
            "SELECT time, generation, actor, before, state, reason FROM history WHERE id = ? ORDER BY seq", (record_id,)
        )
        names = ("time", "generation", "actor", "before", "state", "reason")
        try:
            return [Transition.model_validate(dict(zip(names, row, strict=True))) for row in rows]
        except ValidationError as error:
            raise LedgerUnreadable(
                f"The history of {record_id} is damaged.", "Restore the ledger from a copy."
            ) from error

    def hold(self, name: str, record_id: str) -> None:
        """See `protocol.Ledger.hold`."""
        with self._transaction() as db:
            found = db.execute("SELECT state FROM records WHERE id = ?", (record_id,)).fetchone()
            if found is None or found[0] == State.RELEASED:
                raise NotFound(f"{record_id} is no live record, so it cannot hold {name}.")
            _take(db, name, record_id)

    def holder(self, name: str) -> str | None:
        """See `protocol.Ledger.holder`."""
        rows = self._rows("SELECT id FROM holds WHERE name = ?", (name,))
        return str(rows[0][0]) if rows else None

    def rounds(self, base: str) -> list[Versioned]:
        """See `protocol.Ledger.rounds`."""
        rows = self._rows("SELECT id, kind, schema, json, version FROM records WHERE base = ? ORDER BY seq", (base,))
        return [_parsed(row) for row in rows]

    def close(self) -> None:
        """See `protocol.Ledger.close`."""
        with self._lock:
            self._db.close()


def _take(db: sqlite3.Connection, name: str, record_id: str) -> None:
    found = db.execute("SELECT id FROM holds WHERE name = ?", (name,)).fetchone()
    if found is None:
        db.execute("INSERT INTO holds VALUES (?, ?)", (name, record_id))
    elif found[0] != record_id:
        raise LeaseHeld(f"{name} is held by {found[0]}.", f"`mlinfra-prefect show {found[0]}` tells whose it is.")


def _parsed(row: Sequence[object]) -> Versioned:
    record_id, kind, schema, text, version = row
    return Versioned(decode(str(record_id), kind, schema, text), int(str(version)))


def _parsed_or_none(row: Sequence[object]) -> Versioned | None:
    try:
        return _parsed(row)
    except LedgerUnreadable:
        return None  # `unreadable` tells of it; one bad record never hides the others (rule R9)
