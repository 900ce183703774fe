"""Rule: what carries our marks and has no open record is ended by the next pass; a neighbour's is not (R7, R8)."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import keeper_judge as judge
import pytest

from mlinfra_prefect.errors import InvalidInput, LedgerUnreadable, PermanentError
from mlinfra_prefect.keeper import sweeping
from mlinfra_prefect.keeper.operate import step
from mlinfra_prefect.keeper.passes import Pass
from mlinfra_prefect.keeper.reap import reap
from mlinfra_prefect.keeper.sight import NAME, unknown_before
from mlinfra_prefect.keeper.watch import BUSY, is_held
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle import addenda
from mlinfra_prefect.lifecycle.archiving import is_archived
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, Keeper, LeaseRecord
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.testing.records import sample_attempt

Plant = Callable[..., subprocess.Popen[bytes]]
SLEEPER = "import time\nwhile True: time.sleep(1)"


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A home that has known its ledger from the beginning; at its end no process carries its mark."""
    root = Path(tempfile.mkdtemp(prefix="mlo-"))
    monkeypatch.setenv("MLINFRA_HOME", str(root))
    monkeypatch.chdir(root)
    made = Context(Home(root))
    remembers(made)
    yield made
    for seen in judge.carriers(made.ledger.ledger_id):
        judge.end(seen)
    made.ledger.close()
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def plant(context: Context) -> Iterator[Plant]:
    """Start a process with marks: a zombie's, an orphan's, or a neighbour's."""
    planted: list[subprocess.Popen[bytes]] = []

    def start(
        lease: str, *, ledger: str | None = None, deadline: float | None = None, script: str = SLEEPER
    ) -> subprocess.Popen[bytes]:
        marks = {
            "MLINFRA_LEDGER_ID": context.ledger.ledger_id if ledger is None else ledger,
            "MLINFRA_LEASE_ID": lease,
            "MLINFRA_DEADLINE": "" if deadline is None else repr(deadline),
        }
        planted.append(subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **marks}))
        until = time.monotonic() + 10
        while not any(seen.pid == planted[-1].pid for seen in judge.carriers(marks["MLINFRA_LEDGER_ID"])):
            assert time.monotonic() < until
            time.sleep(0.01)  # between fork and exec it still has our environment
        return planted[-1]

    yield start
    for each in planted:
        each.kill()
        each.wait()


def remembers(context: Context) -> None:
    """What a pass remembers of a ledger that this home has had for long, without the keeper that a pass would start."""
    unknown_before(context, context.ledger.records())
    path = context.home.keeper / NAME
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "unknown_before": 0.0}))


def asked(context: Context, key: str = "one", *, client: Client | None = None, **request: Any) -> LeaseRecord:
    return ask(
        context, TrainingRequest(max_minutes=5, **request), key=Key("run", "training", key),
        owner=Owner(user="u", host="h"), client=client or Client(kind="process", process=identify()),
    ).record  # fmt: skip


def released(context: Context, key: str = "one") -> LeaseRecord:
    """A tombstone: it never had anything."""
    record = asked(context, key)
    over = release_pass(context, begin_release(context, record.id, reason="done"))
    assert isinstance(over, LeaseRecord)
    assert over.receipt is not None
    return over


def ended(process: subprocess.Popen[bytes]) -> bool:
    process.wait(5)  # its exit status is whoever's saw it first
    return True


def reasons(found: Pass, name: str) -> dict[str, str]:
    return {each.id: each.reason for each in getattr(found, name)}


def stored(home: Path) -> dict[str, Any]:
    """Everything that a dry run must leave as it is: the ledger's content, and every file but SQLite's own."""
    records = judge.records(home)
    files = {
        str(path.relative_to(home)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in home.rglob("*")
        if not path.name.startswith("ledger.sqlite")
    }
    return {"records": records, "history": {each: judge.history(home, each) for each in records}, "files": files}


def test_a_zombie_of_a_released_lease_is_ended_and_told_while_its_record_stays(context: Context, plant: Plant) -> None:
    """A dry run says so and changes nothing; the pass ends it by one scan; the tombstone is what it was."""
    record = released(context)
    zombie = plant(record.id)
    before = stored(context.home.root)
    would = reap(context, dry_run=True)
    assert would.dry_run
    assert f"process {zombie.pid}" in reasons(would, "planned")[record.id]
    assert stored(context.home.root) == before
    assert zombie.poll() is None
    found = reap(context)
    assert f"process {zombie.pid}" in reasons(found, "orphans")[record.id]
    assert not found.quiet
    assert ended(zombie)
    assert context.record(record.id) == record
    (noted,) = addenda.of(context.home, record.id)
    assert noted.found == noted.ended
    assert noted.where == socket.gethostname()
    assert reap(context).quiet
    assert (context.home.record_dir(record.id) / addenda.NAME).stat().st_mode & 0o777 == 0o600


def test_an_orphan_without_a_record_is_ended_and_neighbours_are_not(
    context: Context, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours without a record goes. Another ledger's goes past its own deadline and the grace; never an endpoint's."""
    now = time.time()
    over = now - sweeping.DEADLINE_GRACE_SECONDS
    spared = {
        "another ledger's": plant("l0f-1", ledger="another", deadline=now + 60),
        "past its deadline, within the grace": plant("l0f-2", ledger="another", deadline=over + 60),
        "without a deadline": plant("l0f-3", ledger="another"),
        "of an endpoint, whose date may have been moved": plant("e0f-1", ledger="another", deadline=over - 60),
        "working for all of ours": plant(""),
    }
    orphan, overdue = plant("l0a-1"), plant("l0f-9", ledger="another", deadline=over - 60)
    monkeypatch.setattr(sweeping, "MOST_ENDED", 1)
    first = reap(context)
    assert len(first.orphans) == 1
    assert [each.again for each in first.skipped] == [True]  # R8: a pass has a cap, and the next one goes on
    monkeypatch.undo()
    found = {**reasons(first, "orphans"), **reasons(reap(context), "orphans")}
    assert set(found) == {"l0a-1", "l0f-9"}
    assert "no record of this ledger names it" in found["l0a-1"]
    assert "past its own deadline" in found["l0f-9"]
    assert ended(orphan)
    assert ended(overdue)
    assert [what for what, each in spared.items() if each.poll() is not None] == []
    lines = (context.home.keeper / "orphans.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"l0a-1", "l0f-9"}


def test_a_ledger_that_lost_its_newest_record_ends_nothing_before_its_deadline(context: Context, plant: Plant) -> None:
    """Restored from a copy: what it does not know may have a live keeper (R8). What starts afterwards is its own."""
    record = asked(context)
    assert reasons(reap(context, settle_seconds=0, dry_run=True), "skipped")
    remembers(context)
    lost = plant("l0b-1", deadline=time.time() + 600)
    with closing(sqlite3.connect(context.home.ledger)) as db, db:
        db.execute("DELETE FROM records WHERE id = ?", (record.id,))
    time.sleep(0.05)  # the kernel counts starts in hundredths of a second
    assert reap(context).orphans == ()
    assert lost.poll() is None
    time.sleep(1.1)
    later = plant("l0b-2")
    assert list(reasons(reap(context), "orphans")) == ["l0b-2"]
    assert ended(later)
    assert lost.poll() is None


def test_a_copy_of_a_ledger_in_a_new_home_ends_nothing_of_the_original(context: Context, plant: Plant) -> None:
    """What the original leased after the copy was made is no orphan of the copy, not even in its very first pass."""
    asked(context)
    elsewhere = Path(tempfile.mkdtemp(prefix="mlo-"))
    try:
        with (
            closing(sqlite3.connect(context.home.ledger)) as live,
            closing(sqlite3.connect(elsewhere / "ledger.sqlite")) as copy,
        ):
            live.backup(copy)
        later = plant(asked(context, "later").id)
        restored = Context(Home(elsewhere))
        assert restored.ledger.ledger_id == context.ledger.ledger_id
        for _ in range(2):
            assert reap(restored, settle_seconds=0).orphans == ()
        assert later.poll() is None
        restored.ledger.close()
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


def test_a_record_in_a_home_that_cannot_be_looked_into_stops_no_other(
    context: Context, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two users of one host share a ledger: the home of the other one is closed, and its lease is left alone."""
    theirs = asked(context, "theirs")
    elsewhere = context.home.root / "closed"
    look = Path.exists

    def closed(path: Path) -> bool:
        if path.is_relative_to(elsewhere):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path)

    attempt = sample_attempt(
        1, directory=str(elsewhere / "work" / theirs.id / "1" / "terraform"),
        node_dir=str(elsewhere / "work" / theirs.id / "1" / "node"),
    )  # fmt: skip
    revise(context.ledger, theirs.id, lambda it: it.revised(attempts=(attempt,)), actor="test", reason="planned")
    orphan = plant("l0a-1")
    monkeypatch.setattr(Path, "exists", closed)
    found = reap(context, settle_seconds=0)
    assert "its directories lie in the home" in reasons(found, "skipped")[theirs.id]
    assert set(reasons(found, "orphans")) == {"l0a-1"}
    assert ended(orphan)


def test_directories_are_told_and_never_deleted_and_a_released_one_explains_itself(context: Context) -> None:
    """The record lies in its directory; a directory of nobody may hold the only state of something."""
    record = released(context)
    place = context.home.record_dir(record.id)
    assert is_archived(place)
    (place / "record.json").unlink()  # its operation was killed before its last write
    stranger = context.home.work / "l0c-1"
    stranger.mkdir()
    (stranger / "terraform.tfstate").write_text("{}")
    found = reap(context)
    assert "was left as it is" in reasons(found, "orphans")[stranger.name]
    assert found.quiet
    assert (stranger / "terraform.tfstate").read_text() == "{}"
    assert json.loads((place / "record.json").read_bytes())["receipt"]["id"] == record.id


def test_a_record_of_another_ledger_or_home_is_left_with_a_sentence(context: Context) -> None:
    """A copied ledger or home names machines that are somebody's: skipped by the reaper, refused by a release."""
    record = asked(context)
    elsewhere = Path(tempfile.mkdtemp(prefix="mlo-"))
    try:
        (elsewhere / "ledger.sqlite").touch()
        place = elsewhere / "work" / "l0d-1" / "1" / "terraform"
        place.mkdir(parents=True)
        attempt = {
            "number": 1, "stack": "local-node", "directory": str(place), "node_dir": str(place.parent / "node"),
            "offer": {"type": "local", "region": "r", "market": "on-demand", "usd_per_hour": 0.0, "gpus": 0},
        }  # fmt: skip
        for changes, told in (
            ({"ledger_id": "another"}, "of ledger another"),
            ({"ledger_id": context.ledger.ledger_id, "attempts": [attempt]}, str(elsewhere)),
        ):
            overwrite(context, record.id, **changes)
            found = reap(context)
            assert told in reasons(found, "skipped")[record.id]
            assert found.quiet
            with pytest.raises(PermanentError, match="cannot be released here"):
                begin_release(context, record.id, reason="no")
            assert context.record(record.id).live
    finally:
        shutil.rmtree(elsewhere)


def overwrite(context: Context, record_id: str, **changes: Any) -> None:
    with closing(sqlite3.connect(context.home.ledger)) as db, db:
        values = json.loads(db.execute("SELECT json FROM records WHERE id = ?", (record_id,)).fetchone()[0])
        db.execute("UPDATE records SET json = ? WHERE id = ?", (json.dumps({**values, **changes}), record_id))


def test_an_unreadable_record_keeps_its_processes_and_a_newer_ledger_ends_only_what_is_overdue(
    context: Context, plant: Plant
) -> None:
    """Fail closed: what cannot be read is nobody's to end before its own deadline."""
    record = released(context)
    kept = plant(record.id, deadline=time.time() + 60)
    with closing(sqlite3.connect(context.home.ledger)) as db, db:
        db.execute("UPDATE records SET schema = 99")
    assert list(reasons(reap(context), "stuck")) == [record.id]
    with closing(sqlite3.connect(context.home.ledger)) as db, db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    overdue = plant("l0f-9", deadline=time.time() - sweeping.DEADLINE_GRACE_SECONDS - 60)
    with pytest.raises(LedgerUnreadable, match="schema 99"):
        reap(Context(context.home))
    assert kept.poll() is None
    assert ended(overdue)


def test_a_pass_over_one_environment_touches_no_other(context: Context, plant: Plant) -> None:
    """Tombstones have one; what has no record is left to a pass over all; an unknown one is wrong input."""
    record = released(context)
    with pytest.raises(InvalidInput, match="environment"):
        reap(context, environment="nowhere")
    zombie, orphan = plant(record.id), plant("l0a-1")
    with closing(sqlite3.connect(context.home.ledger)) as db, db:
        text = db.execute("SELECT json FROM records WHERE id = ?", (record.id,)).fetchone()[0]
        db.execute("UPDATE records SET json = ?", (text.replace('"environment":"dev"', '"environment":"prod"'),))
    assert reap(context, environment="dev").orphans == ()
    assert zombie.poll() is None
    assert list(reasons(reap(context, environment="prod"), "orphans")) == [record.id]
    assert orphan.poll() is None


def test_a_dry_run_says_what_a_pass_would_do_with_each_record(context: Context) -> None:
    """And writes nothing, starts nothing: no watcher, no card."""
    dead = Client(kind="process", process=identify().revised(start_time="1"))
    lost, kept = asked(context, "lost", client=dead), asked(context, "kept", client=Client(kind="none"))
    going = begin_release(context, asked(context, "going").id, reason="done")
    before = stored(context.home.root)
    found = reap(context, dry_run=True)
    told = reasons(found, "planned")
    assert "its client was lost (checkpoint_then_release)" in told[lost.id]
    assert "go on under a new keeper" in told[kept.id]
    assert "its release would be tried again by a new keeper: done" in told[going.id]
    assert (found.released, found.stuck) == ((), ())
    assert stored(context.home.root) == before
    assert judge.carriers(context.ledger.ledger_id) == []


def test_an_operation_that_hangs_without_its_watcher_is_ended_past_its_deadline(context: Context, plant: Plant) -> None:
    """It holds the record's own lock and blocks its release. Before its deadline it is respected."""
    going = begin_release(context, asked(context).id, reason="done")
    place = context.home.record_dir(going.id)
    place.mkdir()
    path = place / "operation.lock"
    hung = plant(going.id, script=f"import fcntl\nheld = open({str(path)!r}, 'w')\nfcntl.flock(held, 2)\n{SLEEPER}")
    until = time.monotonic() + 10
    while not is_held(str(path)):
        assert time.monotonic() < until
        time.sleep(0.01)
    keeper = Keeper(place="process", process=identify())
    assert step(context, going.id, keeper) == BUSY
    assert hung.poll() is None
    os.utime(path, (1.0, 1.0))
    assert step(context, going.id, keeper) == BUSY
    assert ended(hung)
    (context.home.cards / f"{going.id}.json").unlink()
    assert release_pass(context, context.record(going.id)).receipt is not None


def test_a_full_home_is_told_loses_no_record_and_spares_no_zombie(
    context: Context, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be written is a sentence; what costs money is ended all the same; the next pass finds it all."""
    tombstone = released(context)
    lost = asked(context, "lost", client=Client(kind="process", process=identify().revised(start_time="1")))
    zombie = plant(tombstone.id)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        for place in ("keeper.desk.write_json", "keeper.sight.write_json", "lifecycle.addenda.add"):
            patch.setattr(f"mlinfra_prefect.{place}", full)
        found = reap(context, settle_seconds=0)
    assert "No space left on device" in reasons(found, "stuck")[lost.id]
    assert list(reasons(found, "orphans")) == [tombstone.id]
    assert ended(zombie)
    assert context.record(lost.id) == lost
    assert lost.id in reasons(reap(context, dry_run=True), "planned")
