"""SQLite ledgers for the tests: opened by name, and spoiled in the file itself."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.testing.ledger import Damage


def open_store(directory: Path, store: str = "first") -> SqliteLedger:
    """Open the ledger of that name below a directory."""
    return SqliteLedger(directory / f"{store}.sqlite")


def spoil(directory: Path, record_id: str, kind: Damage) -> None:
    """Spoil a record in the file itself."""
    change = {
        Damage.CORRUPTED: "json = substr(json, 1, length(json) / 2)",
        Damage.BROKEN_TEXT: "json = CAST(CAST(substr(json, 1, 40) AS BLOB) || x'FF' || substr(json, 41) AS TEXT)",
        Damage.FUTURE: 'schema = 999, json = \'{"kind": "lease", "colour": "blue"}\'',
    }[kind]
    with closing(sqlite3.connect(directory / "first.sqlite")) as db, db:
        assert db.execute(f"UPDATE records SET {change} WHERE id = ?", (record_id,)).rowcount == 1  # noqa: S608


def lose(directory: Path) -> None:
    """Remove the file, and its log with it."""
    for path in directory.glob("first.sqlite*"):
        path.unlink()
