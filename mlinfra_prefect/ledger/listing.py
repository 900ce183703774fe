"""The quick look: what stands in an embedded ledger, without the models.

A listing is asked for often, by people and by scripts, and needs a few fields of each record. Loading the models to
show them would take longer than everything else together. So this module is standard library only, writes nothing,
creates nothing, and hands out what is stored as it is stored; whoever acts on a record reads it through `SqliteLedger`.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

SCHEMA_VERSION = 1
"""Of what is written; one higher when an older version could not read it."""

_ALL = "SELECT id, kind, state, schema, json FROM records ORDER BY seq"
_OPEN = "SELECT id, kind, state, schema, json FROM records WHERE state != 'released' ORDER BY seq"
MAKING_SECONDS = 2.0
"""Longest wait for a ledger that another process is making."""
WAIT_SECONDS = 5.0
"""Longest wait for a writer; readers of a write-ahead log hardly ever wait."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record as it is stored.

    Args:
        id: the record's.
        kind: lease or endpoint.
        state: its state, also where the record itself cannot be read.
        values: the record's fields in JSON; empty where it cannot be read.
        problem: why it cannot be read; empty where it can.
    """

    id: str
    kind: str
    state: str
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""


def rows(path: Path, *, everything: bool = False) -> list[Row]:
    """Return what is not released yet (or everything), oldest first; nothing where there is no ledger.

    One unreadable record never hides the others.

    Raises:
        LedgerUnavailable: the file cannot be read.
        LedgerUnreadable: it is no ledger.
    """
    if not path.exists():
        return []
    until = time.monotonic() + MAKING_SECONDS
    while True:
        try:
            found = _read(path, _ALL if everything else _OPEN)
        except sqlite3.DatabaseError as error:
            # A ledger that is being made has for a moment no tables, or no write-ahead log to read with.
            if isinstance(error, sqlite3.OperationalError) and time.monotonic() < until:
                time.sleep(0.02)
                continue
            from mlinfra_prefect.ledger.sqlite_file import translated

            raise translated(error, path) from error
        if found is not None:
            break
        if time.monotonic() >= until:
            return []  # whoever made it died before its first table: nothing was ever written
        time.sleep(0.02)
    return [_row(*each) for each in found]


def _read(path: Path, query: str) -> list[tuple[Any, ...]] | None:
    """Return what the query finds; None where there is no table at all yet."""
    # Read only: a look must neither create a ledger nor carry its write-ahead log over when it leaves.
    with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=WAIT_SECONDS)) as db:
        db.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            return None
        return db.execute(query).fetchall()


def _row(record_id: str, kind: str, state: str, schema: object, text: str) -> Row:
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        return Row(record_id, kind, state, problem=f"a newer version wrote it (schema {schema})")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Row(record_id, kind, state, problem=f"it is damaged ({error})")
    if not isinstance(values, dict) or values.get("id") != record_id:
        return Row(record_id, kind, state, problem="it is damaged (another record lies under its id)")
    return Row(record_id, kind, state, values)
