"""The judge: what is left of a home, seen from outside. Imports nothing of the package."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import time
from pathlib import Path


def ledger_id(home: Path) -> str:
    """The id that every process of this home carries."""
    with sqlite3.connect(home / "ledger.sqlite", timeout=30) as db:
        return str(db.execute("SELECT value FROM meta WHERE key = 'ledger_id'").fetchone()[0])


def records(home: Path) -> list[dict[str, object]]:
    """Every record, as JSON."""
    if not (home / "ledger.sqlite").exists():
        return []
    with sqlite3.connect(home / "ledger.sqlite", timeout=30) as db:
        try:
            return [json.loads(row[0]) for row in db.execute("SELECT json FROM records ORDER BY seq")]
        except sqlite3.OperationalError:
            return []


def processes(home: Path) -> list[tuple[int, str]]:
    """Living processes that carry the ledger's id: (pid, command line)."""
    mark = f"MLINFRA_LEDGER_ID={ledger_id(home)}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if (
                mark in (entry / "environ").read_bytes().split(b"\0")
                and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(
                    (int(entry.name), (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
                )
        except OSError:
            continue
    return found


def end(left: list[tuple[int, str]]) -> None:
    """End what a failed test left behind: by pid, and only what carries its ledger's id."""
    for pid, _ in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_gone(home: Path, seconds: float = 60) -> float:
    """Wait until every record is released and no process is left; returns how long it took.

    Fails with what is left.
    """
    began = time.monotonic()
    while True:
        open_records = [(r["id"], r["state"], r["reason"]) for r in records(home) if r["state"] != "released"]
        left = processes(home)
        if not open_records and not left:
            return time.monotonic() - began
        if time.monotonic() - began > seconds:
            end(left)
            raise AssertionError(f"still there after {seconds} s: {open_records} {left}")
        time.sleep(0.05)
