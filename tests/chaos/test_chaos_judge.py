"""Rule: the judge finds what leaked, whoever says that nothing did. Each leak here is planted by hand."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.chaos import judge

MARK = f"judged-{os.getpid()}"
CANARY = "canary-0123456789"
CLEAN = {"found": [], "ended": []}


@pytest.fixture
def home() -> Iterator[Path]:
    """A home of which nothing is left: one record, released with two clean sweeps, and an empty state."""
    root = Path(tempfile.mkdtemp(prefix="mlj-"))
    with sqlite3.connect(root / "ledger.sqlite") as db:
        db.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT)")
        db.execute("INSERT INTO meta VALUES ('ledger_id', ?)", (MARK,))
        db.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, id TEXT, json TEXT)")
    db.close()
    (root / "work").mkdir()
    (root / "work" / "terraform.tfstate").write_text(json.dumps({"version": 4, "resources": []}))
    (root / "work" / "operation.lock").touch()
    write(root, {"id": "l1-1", "state": "released", "reason": "done", "receipt": {"searches": [CLEAN, CLEAN]}})
    yield root
    shutil.rmtree(root)


def write(home: Path, record: dict[str, object]) -> None:
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("DELETE FROM records")
        db.execute("INSERT INTO records (id, json) VALUES (?, ?)", (record["id"], json.dumps(record)))
    db.close()


def found(home: Path) -> str:
    return "\n".join(judge.findings(home, canary=CANARY))


def test_a_clean_home_is_clean(home: Path) -> None:
    assert found(home) == ""


@pytest.mark.parametrize("words", [["sleep", "60"], ["watch.py.not", "60"]])
def test_a_process_that_carries_the_ledger_is_found(home: Path, words: list[str]) -> None:
    """By its environment alone; and what only looks like a watcher is one that is left."""
    argv = ["sleep", "60"] if words[0] == "sleep" else [sys.executable, "-c", "import time; time.sleep(60)", words[0]]
    with subprocess.Popen(argv, env={"MLINFRA_LEDGER_ID": MARK, "MLINFRA_LEASE_ID": "l1-1"}) as planted:
        try:
            assert f"process left: {planted.pid}" in found(home)
            assert judge.verdict(home, seconds=0.1)[0].startswith(f"process left: {planted.pid}")
        finally:
            planted.kill()
    assert found(home) == ""


def test_another_ledgers_process_is_nobodys_business(home: Path) -> None:
    """The whole id decides, and only in the variable that carries it."""
    for env in ({"MLINFRA_LEDGER_ID": f"{MARK}0"}, {"ELSE": MARK}):
        with subprocess.Popen(["sleep", "60"], env=env) as stranger:
            try:
                assert found(home) == ""
            finally:
                stranger.kill()


@pytest.mark.parametrize(
    "record",
    [
        {"id": "l1-1", "state": "stuck", "reason": "it does not go", "receipt": None},
        {"id": "l1-1", "state": "released", "reason": "", "receipt": None},
        {"id": "l1-1", "state": "released", "reason": "", "receipt": {"searches": [CLEAN]}},
        {"id": "l1-1", "state": "released", "reason": "", "receipt": {"searches": [CLEAN, {"found": ["process 1"]}]}},
    ],
    ids=["stuck", "no receipt", "one sweep", "a sweep that found something"],
)
def test_released_is_not_believed_without_two_clean_sweeps(home: Path, record: dict[str, object]) -> None:
    write(home, record)
    assert "l1-1" in found(home)


def test_a_held_lock_is_found(home: Path) -> None:
    """A stack's, a record's, and Terraform's own on a state; not the desk of a watcher that is about to go."""
    holder = "import fcntl, sys, time; f = open(sys.argv[1], 'r+'); {take}; print('held', flush=True); time.sleep(60)"
    for name, take in (
        ("operation.lock", "fcntl.flock(f, fcntl.LOCK_EX)"), ("terraform.tfstate", "fcntl.lockf(f, fcntl.LOCK_EX)")
    ):  # fmt: skip
        argv = [sys.executable, "-c", holder.format(take=take), str(home / "work" / name)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as held:
            assert held.stdout is not None
            held.stdout.readline()
            try:
                assert f"lock held: {home / 'work' / name}" in found(home)
            finally:
                held.kill()
    with (home / "watch.lock").open("w") as desk:
        fcntl.flock(desk, fcntl.LOCK_EX)
        assert found(home) == ""


def test_a_state_with_resources_is_found(home: Path) -> None:
    state = {"version": 4, "resources": [{"type": "terraform_data", "name": "node"}]}
    (home / "work" / "terraform.tfstate").write_text(json.dumps(state))
    assert "state with 1 resources" in found(home)
    state["resources"] = [{"type": "terraform_data", "name": "node", "instances": []}]
    (home / "work" / "terraform.tfstate").write_text(json.dumps(state))
    assert found(home) == ""
    state["resources"] = [{"type": "terraform_data", "name": "node", "instances": [{}]}]
    (home / "work" / "terraform.tfstate").write_text(json.dumps(state))
    assert "state with 1 resources" in found(home)


@pytest.mark.parametrize("name", ["operations.log", "ledger.sqlite-wal", "work/1/plan.bin"])
def test_a_secret_is_found_in_any_file_but_the_trainings_own(home: Path, name: str) -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (home / "artifacts").mkdir()
    (home / "artifacts" / "model.txt").write_text(CANARY)
    assert found(home) == ""
    if name.endswith("-wal"):
        write(home, {"id": "l1-1", "state": "released", "reason": CANARY, "receipt": {"searches": [CLEAN, CLEAN]}})
    else:
        path.write_bytes(b"\0\1" + CANARY.encode() + b"\2")
    assert "secret in" in found(home)


def test_a_home_without_a_ledger_has_nothing(tmp_path: Path) -> None:
    assert judge.findings(tmp_path, canary=CANARY) == []


def test_nobody_is_ended_who_took_over_a_pid() -> None:
    """A process is ended by pid and start time; another one of the same pid lives."""
    with subprocess.Popen(["sleep", "60"]) as other:
        try:
            seen = judge.look(other.pid)
            assert seen is not None
            judge.end(judge.Seen(seen.pid, "1", seen.argv, seen.environ))
            assert other.poll() is None
            judge.end(seen)
            assert other.wait(10) != 0
        finally:
            other.kill()


def test_a_record_that_is_lost_or_torn_is_found(home: Path) -> None:
    """Somebody was told of it, and it is not there; or it is there, and nobody can read it."""
    assert judge.findings(home, asked=["l1-1"]) == []
    assert judge.findings(home, asked=["l1-1", "l2-1"]) == ["l2-1 is lost: it was asked for"]
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("INSERT INTO records (id, json) VALUES ('l3-1', ?)", ('{"id": "l3-1", "sta',))
    db.close()
    assert judge.findings(home) == ["l3-1 cannot be read"]
    assert judge.findings(home, apart_from=["l3-1"]) == []


def test_a_ledger_that_is_gone_or_another_one_hides_nothing(home: Path) -> None:
    """What carries the mark that was seen before is looked for all the same."""
    path = home / "ledger.sqlite"
    with subprocess.Popen(["sleep", "60"], env={"MLINFRA_LEDGER_ID": MARK, "MLINFRA_LEASE_ID": "l1-1"}) as planted:
        try:
            with sqlite3.connect(path) as db:
                db.execute("UPDATE meta SET value = 'another'")
            db.close()
            assert judge.findings(home) == []
            told = judge.findings(home, mark=MARK, asked=["l1-1"])
            assert told[0].startswith(f"process left: {planted.pid}")
            assert told[1] == f"the ledger {MARK} is gone, or another one stands in its place: another"
            path.unlink()
            told = judge.findings(home, mark=MARK, asked=["l1-1"])
            assert told[0].startswith(f"process left: {planted.pid}")
            assert told[1:] == [
                f"the ledger {MARK} is gone, or another one stands in its place: None",
                "l1-1 is lost: it was asked for",
            ]
        finally:
            planted.kill()


@pytest.mark.parametrize("how", ["command line", "environment", "directory"])
def test_a_process_that_lost_its_mark_is_found_by_where_it_was_started(home: Path, how: str) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(60)", str(home) if how == "command line" else "x"]
    env = {"TMPDIR": str(home / "work")} if how == "environment" else {}
    with subprocess.Popen(argv, env=env, cwd=home if how == "directory" else "/") as planted:
        try:
            until = time.monotonic() + 5  # a new program has no command line for a moment
            while not judge.inside(home) and time.monotonic() < until:
                time.sleep(0.01)
            assert [seen.pid for seen in judge.inside(home)] == [planted.pid]
            assert judge.inside(home, apart_from=[planted.pid]) == []
            assert judge.inside(home / "other") == []
        finally:
            planted.kill()


def test_a_secret_beside_the_home_is_found(tmp_path: Path) -> None:
    """In a log or a database of somebody else's; what a training wrote itself is its own."""
    home = tmp_path / "h"
    for path in (home / "artifacts" / "a1" / "model", home / "work" / "log", tmp_path / "prefect" / "prefect.db"):
        path.parent.mkdir(parents=True)
        path.write_text(f"..{CANARY}..")
    assert judge.told(home, CANARY) == [f"secret in {home / 'work' / 'log'}"]
    assert sorted(judge.told(home, CANARY, around=tmp_path)) == [
        f"secret in {home / 'work' / 'log'}", f"secret in {tmp_path / 'prefect' / 'prefect.db'}",
    ]  # fmt: skip
