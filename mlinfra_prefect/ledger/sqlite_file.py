"""The file of the embedded ledger: made private, durable and waited for, and refused when it is something else.

What SQLite does by itself is not enough here: it creates files as readable as the umask allows, does not wait when two
processes switch a new file to its write-ahead log, and would add our tables to the database of another program.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from pathlib import Path

from mlinfra_prefect.errors import LedgerUnavailable, LedgerUnreadable
from mlinfra_prefect.ledger.stored import SCHEMA_VERSION, refuse_future_schema
from mlinfra_prefect.model.names import minted, token

BUSY_SECONDS = 30.0
"""Longest wait for other writers; 100 of them waited 0.35 s at worst."""

FULL_BYTES = 1 << 20
# No STRICT tables: SQLite has them from 3.37, and RHEL 9 has 3.34.
_TABLES = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, base TEXT NOT NULL,
    state TEXT NOT NULL, version INTEGER NOT NULL, schema INTEGER NOT NULL, json TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS records_by_state ON records (state);
CREATE INDEX IF NOT EXISTS records_by_base ON records (base);
CREATE TABLE IF NOT EXISTS history (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, time TEXT NOT NULL, generation INTEGER NOT NULL,
    actor TEXT NOT NULL, before TEXT, state TEXT NOT NULL, reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS history_by_id ON history (id);
CREATE TABLE IF NOT EXISTS holds (name TEXT PRIMARY KEY, id TEXT NOT NULL);
"""


def open_file(path: Path) -> tuple[sqlite3.Connection, str]:
    """Open the ledger's file, creating it when it is absent, and return its connection and its uuid.

    Raises:
        LedgerUnavailable: it cannot be opened.
        LedgerUnreadable: it was made by a newer version, or is no ledger.
    """
    try:
        _create_private(path)
        db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        # One record of broken text must be one unreadable record, not the end of every listing.
        db.text_factory = lambda raw: raw.decode(errors="surrogateescape")
        try:
            return db, _prepared(db, path)
        except BaseException:
            db.close()
            raise
    except sqlite3.DatabaseError as error:
        raise translated(error, path) from error
    except OSError as error:
        raise LedgerUnavailable(f"The ledger {path} cannot be opened ({error.strerror}).") from error


def translated(error: sqlite3.DatabaseError, path: Path) -> LedgerUnavailable | LedgerUnreadable:
    """Turn SQLite's error into ours."""
    code = getattr(error, "sqlite_errorname", "")
    if code in {"SQLITE_NOTADB", "SQLITE_CORRUPT"}:
        return LedgerUnreadable(f"{path} is not a ledger or is corrupted ({error}).", "Restore it from a copy.")
    room = " The disk is full." if code == "SQLITE_FULL" or _free_bytes(path.parent) < FULL_BYTES else ""
    return LedgerUnavailable(f"The ledger {path} cannot be used ({error}).{room}", "Nothing was provisioned.")


def _prepared(db: sqlite3.Connection, path: Path) -> str:
    # Looked at before anything is changed: the database of another program is left as it is.
    ready = _is_ledger(db, path)
    _use_write_ahead_log(db)
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA fullfsync=ON")  # macOS: fsync alone does not reach the disk there
    if not ready:
        db.execute("BEGIN IMMEDIATE")  # whoever comes second finds it all done
        for statement in _TABLES.split(";"):
            db.execute(statement)
        db.execute("INSERT OR IGNORE INTO meta VALUES ('ledger_id', ?)", (minted(),))
        db.execute("INSERT OR IGNORE INTO meta VALUES ('schema', ?)", (str(SCHEMA_VERSION),))
        db.execute("COMMIT")
        _sync_directory(path.parent)
    meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
    schema = str(meta.get("schema"))
    refuse_future_schema(f"The ledger {path}", int(schema) if schema.isdecimal() else schema)
    if "ledger_id" not in meta:
        raise LedgerUnreadable(f"The ledger {path} has lost its identity.", "Restore it from a copy.")
    return str(meta["ledger_id"])


def _is_ledger(db: sqlite3.Connection, path: Path) -> bool:
    tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    ours = {"meta", "records", "history", "holds"} <= tables
    if tables and not ours:
        raise LedgerUnreadable(f"{path} is the database of another program.", "Point MLINFRA_HOME elsewhere.")
    return ours


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    # SQLite does not wait by itself here: of two processes that create a ledger at once, one would get "locked".
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            break
    if mode != "wal":
        raise sqlite3.OperationalError(f"no write-ahead log here, only {mode}")


def _create_private(path: Path) -> None:
    # The file itself is never opened and closed here: closing any descriptor of a SQLite file drops every lock that
    # this process has on it. An empty file is made beside it and linked to its name, unless others were faster.
    if not path.exists():
        empty = path.with_name(f".{path.name}.{token()}")
        os.close(os.open(empty, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            os.link(empty, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP}:
                raise  # those two: a file system without links, which has no modes to keep either
        finally:
            empty.unlink()
    if path.exists() and path.stat().st_mode & 0o077:
        path.chmod(0o600)


def _sync_directory(directory: Path) -> None:
    opened = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _free_bytes(directory: Path) -> int:
    try:
        disk = os.statvfs(directory)
    except OSError:
        return FULL_BYTES  # it is gone or cannot be asked; the error itself says enough
    return disk.f_bavail * disk.f_frsize
