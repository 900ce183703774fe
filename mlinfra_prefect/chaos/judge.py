"""The judge: what is left of a ledger on this host. Standard library only; it imports nothing of ours.

It believes ``/proc``, the ledger's SQLite file and the file system, and nothing that the package says of itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sqlite3
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

OWN_OUTPUT = ("artifacts", "checkpoints")
"""Directories of a home that hold what trainings wrote: only they may say what they like there."""
VERBS = {"run": "agent", "job": "launcher", "exec": "launcher", "courier": "courier"}
"""What the agent's archive does, by its first argument."""
LENT = ("aws", "login.")
"""Where the private files of a home lie that hold how its clients log in, and how their names begin: only there may
credentials stand."""
WHOLE_ENVIRONMENT = "prefect-workspace-attempt-"
"""A directory of Prefect's, private and temporary: its runner writes its whole environment there for each run."""
CLEAN_SWEEPS = 2
POLL_SECONDS = 0.05
ENDING_SECONDS = 1.0
"""How long a process may take to end."""


class Ledger(Protocol):
    """A ledger that is no file of a home."""

    def ledger_id(self) -> str | None:
        """Its uuid; None while there is none."""

    def texts(self) -> dict[str, str]:
        """Every record as it is stored."""

    def history(self, record_id: str) -> list[dict[str, Any]]:
        """Every line of a record's history."""


ELSEWHERE: dict[Path, Ledger] = {}
"""Homes whose ledger is no file of theirs, and who reads it."""


@dataclass(frozen=True)
class Seen:
    """A process as /proc shows it."""

    pid: int
    start_time: str
    argv: tuple[str, ...]
    environ: dict[str, str]

    @property
    def lease(self) -> str:
        """The id of the record that it works for, or empty."""
        return self.environ.get("MLINFRA_LEASE_ID", "")

    @property
    def role(self) -> str:
        """What it is.

        keeper, operation, pass, terraform, provider, courier, spawner, agent, launcher, router, server, or work.
        """
        program = Path(self.argv[0]).name if self.argv else ""
        verb = next((a for b, a in zip(self.argv, self.argv[1:], strict=False) if b.endswith(".pyz")), "")
        if any(word.endswith("watch.py") for word in self.argv):
            return "keeper"
        if "mlinfra_prefect.keeper" in self.argv:
            return "pass" if "pass" in self.argv else "operation"
        if program.startswith("terraform-provider"):
            return "provider"
        if program in {"terraform", "tofu"} or (len(self.argv) > 1 and Path(self.argv[1]).name == "terraform"):
            return "terraform"
        if verb:
            return VERBS.get(verb, "spawner")
        if any(word.endswith("router.py") for word in self.argv):
            return "router"
        if any(word.endswith("server.py") for word in self.argv):
            return "server"
        return "work"

    def __str__(self) -> str:
        return f"{self.pid}: {' '.join(self.argv)[:200]} ({self.lease or 'no lease'})"


def _opened(home: Path) -> contextlib.closing[sqlite3.Connection]:
    return closing(sqlite3.connect(f"file:{home / 'ledger.sqlite'}?mode=ro", uri=True, timeout=10))


def ledger_id(home: Path) -> str | None:
    """The ledger's uuid, read with SQLite alone, or from where it lies; None while there is no ledger."""
    if home in ELSEWHERE:
        return ELSEWHERE[home].ledger_id()
    if not (home / "ledger.sqlite").exists():
        return None
    with contextlib.suppress(sqlite3.OperationalError), _opened(home) as db:  # it is being made
        row = db.execute("SELECT value FROM meta WHERE key = 'ledger_id'").fetchone()
        return None if row is None else str(row[0])
    return None


def texts(home: Path) -> dict[str, str]:
    """Every record as it is stored, JSON or not; empty where there is no ledger, or one that was only begun."""
    if home in ELSEWHERE:
        return ELSEWHERE[home].texts()
    if not (home / "ledger.sqlite").exists():
        return {}
    try:
        with _opened(home) as db:
            db.text_factory = lambda raw: raw.decode(errors="replace")
            return {str(row[0]): str(row[1]) for row in db.execute("SELECT id, json FROM records ORDER BY seq")}
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return {}
        raise


def records(home: Path) -> dict[str, dict[str, Any]]:
    """Every record that is JSON, as it is stored."""
    return _whole(texts(home))


def _whole(known: dict[str, str]) -> dict[str, dict[str, Any]]:
    found = {}
    for record_id, text in known.items():
        with contextlib.suppress(ValueError):
            found[record_id] = json.loads(text)
    return found


def history(home: Path, record_id: str) -> list[dict[str, Any]]:
    """Every line of a record's history."""
    if home in ELSEWHERE:
        return ELSEWHERE[home].history(record_id)
    names = ("time", "generation", "actor", "before", "state", "reason")
    with _opened(home) as db:
        query = f"SELECT {', '.join(names)} FROM history WHERE id = ? ORDER BY seq"  # noqa: S608 (names of ours)
        rows = db.execute(query, (record_id,)).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def look(pid: int) -> Seen | None:
    """A process by its pid; None when it is gone, a zombie, or another user's."""
    place = Path("/proc", str(pid))
    try:
        raw = (place / "environ").read_bytes()
        stat = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
        argv = (place / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if stat[0] in "ZX":
        return None
    pairs = (item.partition("=") for item in raw.decode(errors="replace").split("\0"))
    return Seen(pid, stat[19], tuple(argv[:-1]), {name: value for name, _, value in pairs if name})


def carriers(mark: str | None) -> list[Seen]:
    """Every process of this host, zombies apart, that carries a ledger's id."""
    return [] if mark is None else carriers_of("MLINFRA_LEDGER_ID", mark)


def carriers_of(name: str, mark: str) -> list[Seen]:
    """Every process of this host, zombies apart, that has a variable with a value in its environment."""
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            if mark.encode() not in Path(entry.path, "environ").read_bytes():
                continue
        except OSError:
            continue
        seen = look(int(entry.name))
        if seen is not None and seen.environ.get(name) == mark:
            found.append(seen)
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


def left(home: Path, *, mark: str | None = None) -> list[Seen]:
    """The processes of a home that should be gone: an idle watcher, and its last look around, are about to go."""
    return [seen for seen in carriers(mark or ledger_id(home)) if seen.role not in {"keeper", "pass"}]


def unproven(home: Path) -> list[str]:
    """Records that are not released, or that say so without two clean sweeps."""
    problems = []
    for record_id, record in records(home).items() if ledger_id(home) else ():
        if record.get("state") != "released":
            problems.append(f"{record_id} is {record.get('state')}: {record.get('reason')}")
            continue
        receipt = record.get("receipt")
        searches = receipt["searches"] if receipt else []
        if len(searches) < CLEAN_SWEEPS or any(search["found"] for search in searches[-CLEAN_SWEEPS:]):
            problems.append(f"{record_id} is released without two clean sweeps: {receipt}")
    return problems


def lost(home: Path, *, mark: str | None, asked: Collection[str]) -> list[str]:
    """What is missing or torn: the ledger itself, records that somebody was told of, records that nobody can read."""
    problems = []
    if mark is not None and (there := ledger_id(home)) != mark:
        problems.append(f"the ledger {mark} is gone, or another one stands in its place: {there}")
    known = texts(home)
    whole = _whole(known)
    problems += [f"{record_id} cannot be read" for record_id in known if record_id not in whole]
    return problems + [f"{record_id} is lost: it was asked for" for record_id in sorted(set(asked) - set(known))]


def inside(place: Path, *, apart_from: Collection[int] = ()) -> list[Seen]:
    """Every process that names a directory, or one below it, in its command line or environment, or works in it.

    Whether it carries a mark or not: who lost its mark is found by where it was started.
    """
    found, needle = [], str(place).encode()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in {os.getpid(), *apart_from}:
            continue
        try:
            words = Path(entry.path, "cmdline").read_bytes() + b"\0" + Path(entry.path, "environ").read_bytes()
            there = needle in words or Path(entry.path, "cwd").readlink().is_relative_to(place)
        except OSError:
            continue
        seen = look(int(entry.name)) if there else None
        if seen is not None:
            found.append(seen)
    return found


def verdict(home: Path, seconds: float = 20.0) -> list[str]:
    """What is still there of a home after a while: processes, and records that say `released` without proof."""
    until = time.monotonic() + seconds
    while left(home) and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
    return [*(f"process left: {seen}" for seen in left(home)), *unproven(home)]


def files(home: Path) -> Iterator[Path]:
    """Every regular file of a home, links not followed."""
    for place, _, names in os.walk(home):
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    yield path


def held_locks(home: Path) -> list[str]:
    """Lock files of a home, and Terraform states, that somebody holds.

    A watcher that is about to go holds its own desk. Terraform's local lock is the kernel's on the state: the note that
    a killed Terraform leaves beside it (``.terraform.tfstate.lock.info``) locks nobody out. A process that ends loses
    its environment some milliseconds before its locks, so a lock that is held is looked at again.
    """
    until = time.monotonic() + ENDING_SECONDS
    held = [path for path in files(home) if _is_lock(path) and _is_held(path)]
    while held and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        held = [path for path in held if _is_held(path)]
    return [f"lock held: {path}" for path in held]


def _is_lock(path: Path) -> bool:
    if path.name in {"watch.lock", "door.lock"}:
        return False
    return path.name == "lock" or path.suffix in {".lock", ".tfstate"}


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    state = path.suffix == ".tfstate"
    try:
        take = fcntl.lockf if state else fcntl.flock
        take(descriptor, (fcntl.LOCK_EX if state else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def states_left(home: Path) -> list[str]:
    """Terraform states that still have resources; an apply that was ended leaves the mere name of one behind."""
    found = []
    for path in files(home):
        if not path.name.endswith(".tfstate"):
            continue
        with contextlib.suppress(OSError, ValueError, AttributeError):
            told = json.loads(path.read_bytes()).get("resources") or []
            named = [each for each in told if each.get("instances", True)]
            if named:
                found.append(f"state with {len(named)} resources: {path}")
    return found


def told(home: Path, canary: str, *, around: Path | None = None) -> list[str]:
    """Files of a home, and of the directory `around` it, in which a secret stands; the trainings' own output apart."""
    found, needle = [], canary.encode()
    for path in files(around or home):
        if path.is_relative_to(home) and path.relative_to(home).parts[0] in OWN_OUTPUT:
            continue
        if path.parent.name.startswith(WHOLE_ENVIRONMENT):
            continue
        if path.parent == home / LENT[0] and path.name.startswith(LENT[1]) and not path.stat().st_mode & 0o077:
            continue
        with contextlib.suppress(OSError):
            if needle in path.read_bytes():
                found.append(f"secret in {path}")
    return found


def findings(
    home: Path,
    *,
    canary: str = "",
    apart_from: Collection[str] = (),
    mark: str | None = None,
    asked: Collection[str] = (),
    around: Path | None = None,
) -> list[str]:
    """Everything that should not be there now, or should and is not, in words; empty: nothing leaked.

    Args:
        home: which.
        canary: a secret that was passed to the training.
        apart_from: ids of records that the test itself broke.
        mark: the ledger's uuid, where it was seen before; None: as it is there now.
        asked: ids of records that somebody was told of.
        around: where the secret must not stand either: logs and databases of others.
    """
    problems = [f"process left: {seen}" for seen in left(home, mark=mark)]
    found = unproven(home) + lost(home, mark=mark, asked=asked)
    problems += [each for each in found if each.partition(" ")[0] not in apart_from]
    problems += held_locks(home) + states_left(home)
    return problems + (told(home, canary, around=around) if canary else [])


def same(seen: Seen) -> bool:
    """Whether a process still is the one that was seen."""
    now = look(seen.pid)
    return now is not None and now.start_time == seen.start_time


def send(seen: Seen, number: int) -> bool:
    """Signal a process, if it still is the one that was seen; returns whether it was."""
    if not same(seen):
        return False
    try:
        os.kill(seen.pid, number)
    except OSError:
        return False
    return True


def end(seen: Seen) -> None:
    """Kill a process, if it still is the one that was seen."""
    send(seen, signal.SIGKILL)
