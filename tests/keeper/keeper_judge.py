"""The judge: what is left of a ledger on this host. It imports nothing of ours and believes only what /proc says."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it."""

    pid: int
    start_time: str
    argv: tuple[str, ...]
    environ: dict[str, str]

    @property
    def lease(self) -> str:
        return self.environ.get("MLINFRA_LEASE_ID", "")

    def __str__(self) -> str:
        return f"{self.pid}: {' '.join(self.argv)[:200]} ({self.lease or 'no lease'})"


def ledger_id(home: Path) -> str | None:
    """The ledger's uuid, read with SQLite alone."""
    path = home / "ledger.sqlite"
    if not path.exists():
        return None
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as db:
        try:
            row = db.execute("SELECT value FROM meta WHERE key = 'ledger_id'").fetchone()
        except sqlite3.OperationalError:
            return None  # it is being made
    return None if row is None else str(row[0])


def records(home: Path) -> dict[str, dict[str, Any]]:
    """Every record, as it is stored."""
    with closing(sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
        return {row[0]: json.loads(row[1]) for row in db.execute("SELECT id, json FROM records ORDER BY seq")}


def history(home: Path, record_id: str) -> list[dict[str, Any]]:
    """Every line of a record's history."""
    names = ("time", "generation", "actor", "before", "state", "reason")
    with closing(sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10)) as db:
        rows = db.execute(f"SELECT {', '.join(names)} FROM history WHERE id = ? ORDER BY seq", (record_id,)).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def carriers(mark: str | None) -> list[Seen]:
    """Every process of this host, zombies apart, that carries a ledger's id."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or mark is None:
            continue
        try:
            raw = Path(entry.path, "environ").read_bytes()
            if mark.encode() not in raw:
                continue
            stat = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            argv = Path(entry.path, "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0"))
        environ = {name: value for name, _, value in pairs if name}
        if environ.get("MLINFRA_LEDGER_ID") == mark and stat[0] not in "ZX":
            found.append(Seen(int(entry.name), stat[19], tuple(argv[:-1]), environ))
    return found


def zombies_of(pid: int) -> list[int]:
    """The dead children that a process has not looked at."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                fields = Path(entry.path, "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] == "Z" and int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def verdict(home: Path, seconds: float = 20.0) -> list[str]:
    """What is still there of a home after a while: processes, and records that say `released` without proof.

    An idle watcher, and its last look around, are about to go; that they do is the rule of one test.
    """
    mark = ledger_id(home)

    def left() -> list[Seen]:
        return [
            seen
            for seen in carriers(mark)
            if not any("watch.py" in word for word in seen.argv) and "pass" not in seen.argv
        ]

    until = time.monotonic() + seconds
    while left() and time.monotonic() < until:
        time.sleep(0.05)
    problems = [f"process left: {seen}" for seen in left()]
    for record in records(home).values() if mark else ():
        if record["state"] != "released":
            problems.append(f"{record['id']} is {record['state']}: {record['reason']}")
            continue
        receipt = record["receipt"]
        if receipt is None or len(receipt["searches"]) < 2 or any(s["found"] for s in receipt["searches"][-2:]):
            problems.append(f"{record['id']} is released without two clean sweeps: {receipt}")
    return problems


def end(seen: Seen) -> None:
    """Kill a process, if it still is the one that was seen."""
    try:
        stat = Path(f"/proc/{seen.pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        if stat[19] == seen.start_time:
            os.kill(seen.pid, signal.SIGKILL)
    except OSError:
        pass
