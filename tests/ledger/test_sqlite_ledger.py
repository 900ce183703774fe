"""The embedded ledger keeps every rule of a ledger, and the promises of a file: private, durable, one host."""

from __future__ import annotations

import functools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_stores import lose, open_store, spoil

from mlinfra_prefect.errors import LedgerUnavailable, LedgerUnreadable
from mlinfra_prefect.ledger import SqliteLedger, mounts, sqlite_file
from mlinfra_prefect.ledger.mounts import (
    Mount,
    file_system,
    parse_linux_table,
    parse_listing,
    refuse_network_file_system as refuse,
)
from mlinfra_prefect.testing.ledger import LedgerConformance
from mlinfra_prefect.testing.records import sample_lease


class TestSqliteLedger(LedgerConformance):
    """SQLite passes the conformance suite."""

    @pytest.fixture
    def open_ledger(self, tmp_path: Path) -> functools.partial[SqliteLedger]:
        """Open ledgers below the test's directory."""
        return functools.partial(open_store, tmp_path)

    @pytest.fixture
    def damage(self, tmp_path: Path) -> functools.partial[None]:
        """Spoil records in the file itself."""
        return functools.partial(spoil, tmp_path)

    @pytest.fixture
    def lose(self, tmp_path: Path) -> functools.partial[None]:
        """Remove the file."""
        return functools.partial(lose, tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_every_file_of_the_ledger_is_private(tmp_path: Path, umask: int) -> None:
    """The ledger names people and places: mode 0600, whatever the umask, also for the write-ahead log."""
    before = os.umask(umask)
    try:
        ledger = open_store(tmp_path)
        ledger.create(sample_lease(), actor="test", reason="made")
    finally:
        os.umask(before)
    with closing(ledger):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("first.sqlite", "first.sqlite-wal", "first.sqlite-shm"), 0o600)


def test_a_ledger_that_was_opened_up_becomes_private_again(tmp_path: Path) -> None:
    """Opening repairs the mode."""
    open_store(tmp_path).close()
    (tmp_path / "first.sqlite").chmod(0o644)
    open_store(tmp_path).close()
    assert stat.S_IMODE((tmp_path / "first.sqlite").stat().st_mode) == 0o600


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    """Write-ahead log and full synchronisation: a commit that returned survives the loss of power (rule R1)."""
    with closing(open_store(tmp_path)) as ledger:
        pragmas = {name: ledger._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_no_table_needs_a_newer_sqlite_than_enterprise_linux_has(tmp_path: Path) -> None:
    """SQLite 3.34 (RHEL 9) does not know STRICT tables."""
    open_store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "first.sqlite")) as db:
        made = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    assert made
    assert not [sql for sql in made if "STRICT" in sql.upper()]


def test_opening_waits_for_who_makes_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite does not wait when a new file gets its write-ahead log while another one writes it; the ledger does."""
    waited: list[float] = []
    with closing(sqlite3.connect(tmp_path / "first.sqlite", isolation_level=None)) as maker:
        maker.execute("BEGIN IMMEDIATE")

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            maker.execute("COMMIT")

        monkeypatch.setattr(sqlite_file.time, "sleep", sleep)
        open_store(tmp_path).close()
    assert len(waited) == 1


TAKES_IT_APART = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("PRAGMA journal_mode=DELETE")
except sqlite3.OperationalError as error:
    sys.exit(str(error))
"""


def test_a_second_handle_does_not_drop_the_locks_of_the_first(tmp_path: Path) -> None:
    """Closing a descriptor of the file would: then another process could take the log from under an open ledger."""
    with closing(open_store(tmp_path)) as ledger:
        ledger.create(sample_lease(), actor="test", reason="made")
        with closing(open_store(tmp_path)):
            command = [sys.executable, "-c", TAKES_IT_APART, str(tmp_path / "first.sqlite")]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        assert done.stderr.strip() == "database is locked"
        assert len(ledger.records()) == 1


WRITER = """
import sys
from pathlib import Path
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.testing.records import sample_lease
ledger = SqliteLedger(Path(sys.argv[1]))
for number in range(1, 100_000):
    record = ledger.create(sample_lease(f"w-{number}"), actor="writer", reason="made", holds=(f"hold-{number}",))
    sys.stdout.write(record.record.id + "\\n")
    sys.stdout.flush()
"""


def test_a_killed_writer_loses_no_committed_record(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing: every record that was reported is there, whole, with history and hold."""
    path = tmp_path / "first.sqlite"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environment) as writer:
        try:
            assert writer.stdout is not None
            reported = [writer.stdout.readline().decode().strip() for _ in range(50)]
            writer.send_signal(signal.SIGKILL)
            reported += writer.stdout.read().decode().split()
        finally:
            writer.kill()
    assert writer.returncode == -signal.SIGKILL
    with closing(open_store(tmp_path)) as ledger:
        kept = ledger.records()
        assert ledger.unreadable() == []
        # The last one may have been committed and not yet reported, never the other way round.
        assert [seen.record.id for seen in kept][: len(reported)] == reported
        assert len(kept) - len(reported) in {0, 1}
        for number, seen in enumerate(kept, start=1):
            assert [line.state for line in ledger.history(seen.record.id)] == ["requested"]
            assert ledger.holder(f"hold-{number}") == seen.record.id
        ledger.create(sample_lease("after"), actor="test", reason="goes on")


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    """What is not a ledger is never turned into one."""
    path = tmp_path / "first.sqlite"
    text = b"dear diary, " * 1000
    path.write_bytes(text)
    with pytest.raises(LedgerUnreadable, match=r"first\.sqlite is not a ledger"):
        open_store(tmp_path)
    assert path.read_bytes() == text


def test_the_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Our tables and our log mode are never put into somebody's data."""
    path = tmp_path / "first.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(LedgerUnreadable, match="another program"):
        open_store(tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE meta SET value = '2' WHERE key = 'schema'", r"schema 2.*Upgrade"),
        ("DELETE FROM meta WHERE key = 'schema'", "schema None"),
        ("DELETE FROM meta WHERE key = 'ledger_id'", "lost its identity"),
    ],
)
def test_a_ledger_of_a_newer_program_or_without_identity_is_refused(tmp_path: Path, change: str, message: str) -> None:
    """Fail closed: a ledger that is not fully understood is not written, and never gets a second uuid."""
    open_store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / "first.sqlite")) as db, db:
        db.execute(change)
    with pytest.raises(LedgerUnreadable, match=message):
        open_store(tmp_path)


def test_a_damaged_history_says_so(tmp_path: Path) -> None:
    """A line of history that cannot be read is an error with a sentence."""
    with closing(open_store(tmp_path)) as ledger:
        record = ledger.create(sample_lease(), actor="test", reason="made").record
        ledger._db.execute("UPDATE history SET time = 'yesterday'")
        with pytest.raises(LedgerUnreadable, match=f"history of {record.id}"):
            ledger.history(record.id)


def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    """No directory, a file in its place, a directory in the file's place: one sentence that names the ledger."""
    (tmp_path / "file").write_text("")
    (tmp_path / "dir").mkdir()
    for path in (tmp_path / "file" / "ledger.sqlite", tmp_path / "absent" / "ledger.sqlite", tmp_path / "dir"):
        with pytest.raises(LedgerUnavailable, match=f"{path} cannot be (opened|used)"):
            SqliteLedger(path)


def test_a_closed_ledger_is_unavailable(tmp_path: Path) -> None:
    """Use after close is an error of ours, never SQLite's."""
    ledger = open_store(tmp_path)
    ledger.close()
    with pytest.raises(LedgerUnavailable, match="closed"):
        ledger.records()
    with pytest.raises(LedgerUnavailable, match="closed"):
        ledger.create(sample_lease(), actor="test", reason="late")


def test_a_full_disk_is_told_and_the_handle_goes_on_afterwards(tmp_path: Path) -> None:
    """Nothing is half written, and the same handle writes again when there is room."""
    with closing(open_store(tmp_path)) as ledger:
        pages = ledger._db.execute("PRAGMA page_count").fetchone()[0]
        ledger._db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(LedgerUnavailable, match="The disk is full"):
            _fill(ledger)
        kept = ledger.records()
        ledger._db.execute("PRAGMA max_page_count = 100000")
        more = ledger.create(sample_lease("more"), actor="test", reason="made")
        assert ledger.records() == [*kept, more]
        assert ledger.history(sample_lease(f"w-{len(kept) + 1}").id) == []


def _fill(ledger: SqliteLedger) -> None:
    for number in range(1, 100):
        ledger.create(sample_lease(f"w-{number}"), actor="test", reason="made")


TABLE = r"""/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export /home nfs4 rw,vers=4.2 0 0
/dev/sdb1 /home/ada/local\040disk xfs rw 0 0
server:/old /mnt nfs rw 0 0
/dev/sdc1 /mnt ext4 rw 0 0
systemd-1 /auto autofs rw 0 0
server:/auto /auto cifs rw 0 0
"""
MAC = """/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)
devfs on /dev (devfs, local, nobrowse)
//ada@nas/share on /Volumes/My Share (smbfs, nodev, nosuid, mounted by ada)
map auto_home on /System/Volumes/Data/home (autofs, automounted, nobrowse)
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/var/lib/ledger.sqlite", "ext4"),
        ("/home/ada/.mlinfra-prefect/ledger.sqlite", "nfs4"),
        ("/homework/ledger.sqlite", "ext4"),
        ("/home/ada/local disk/ledger.sqlite", "xfs"),
        ("/mnt/ledger.sqlite", "ext4"),
        ("/auto/x/ledger.sqlite", "cifs"),
    ],
)
def test_the_innermost_and_latest_mount_decides(path: str, found: str) -> None:
    """Longest place first; of two mounts on one place the later one hides the earlier."""
    assert file_system(Path(path), parse_linux_table(TABLE)) == found


def test_the_listing_of_a_mac_is_understood() -> None:
    """Blanks in names and options after the type are no hindrance."""
    listed = parse_listing(MAC)
    assert file_system(Path("/Users/ada/ledger.sqlite"), listed) == "apfs"
    assert file_system(Path("/Volumes/My Share/ledger.sqlite"), listed) == "smbfs"
    assert len(listed) == 4


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "lustre", "NFS4"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's locks do not hold there, so two keepers could own one lease; nothing is made."""
    table = [Mount(Path("/"), "ext4"), Mount(tmp_path.resolve(), kind)]
    with pytest.raises(LedgerUnavailable, match=f"{kind}, a network file system.*MLINFRA_HOME"):
        refuse(tmp_path / "ledger.sqlite", table)
    monkeypatch.setattr(mounts, "mounted", lambda: table)
    with pytest.raises(LedgerUnavailable, match=kind):
        open_store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_network_file_system_is_refused(tmp_path: Path) -> None:
    """What counts is where the file lies, not the way to it."""
    (tmp_path / "net").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "net")
    table = [Mount(Path("/"), "ext4"), Mount((tmp_path / "net").resolve(), "nfs")]
    with pytest.raises(LedgerUnavailable):
        refuse(tmp_path / "link" / "ledger.sqlite", table)


def test_a_local_disk_is_allowed(tmp_path: Path) -> None:
    """Local file systems pass, and so does a host that does not say what is mounted."""
    for table in ([Mount(Path("/"), "ext4")], [Mount(Path("/"), "btrfs"), Mount(Path("/net"), "nfs")], []):
        refuse(tmp_path / "ledger.sqlite", table)


def test_this_host_says_what_is_mounted() -> None:
    """The table of the host itself is read: its root is in it."""
    assert Path("/") in [mount.place for mount in mounts.mounted()]
