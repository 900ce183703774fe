"""Rule: the watcher is small, quiet and gone when there is nothing to watch, and nothing that it spawns breaks it."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keeper_judge as judge
import pytest
from keeper_harness import House

from mlinfra_prefect.keeper import watch

LEASES = 12


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def resident_mib(pid: int) -> float:
    line = next(each for each in Path(f"/proc/{pid}/status").read_text().splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def test_it_goes_home_when_the_desk_is_empty_and_leaves_no_zombie(house: House) -> None:
    """One lease, given back: the watcher looks after its children, and a moment later nothing of the ledger runs."""
    client = house.client("record = ready(); wait_for('go'); give_back(record); say('over'); wait_for('end')")
    client.hears("ready")
    watcher = house.watcher()
    house.until(lambda: not house.processes("mlinfra_prefect.keeper"), "no operation runs")
    house.until(lambda: not judge.zombies_of(watcher), "the watcher looks after its children", seconds=5)
    (house.handles / "go").touch()
    client.hears("over")
    house.until(lambda: not house.processes(), "it has gone home", seconds=10)
    assert not list(house.home.glob("keeper/cards/*.json")) + list(house.home.glob("keeper/clients/*"))
    (house.handles / "end").touch()
    assert client.ends() == 0


def test_many_leases_at_once_one_small_quiet_watcher(house: House) -> None:
    """Ids never collide, every lease gets ready and goes, and at rest the watcher costs next to nothing."""
    client = house.client(f"""
        from concurrent.futures import ThreadPoolExecutor
        def one(number):
            return ready(f"lease-{{number}}")
        with ThreadPoolExecutor({LEASES}) as pool:
            records = list(pool.map(one, range({LEASES})))
        say("all", ids=[record.id for record in records])
        wait_for("go")
        for record in records:
            keeper.release(context, record.id, reason="done")
        for record in records:
            keeper.wait_released(context, record.id, timeout=60)
        say("gone")
    """)
    found = client.hears("all", seconds=90)
    assert len(set(found["ids"])) == LEASES
    house.until(lambda: not house.processes("mlinfra_prefect.keeper"), "nothing is to be done")
    watcher = house.watcher()
    before, began = cpu_seconds(watcher), time.monotonic()
    time.sleep(2.0)
    share = (cpu_seconds(watcher) - before) / (time.monotonic() - began)
    size = resident_mib(watcher)
    print(f"watcher with {LEASES} leases: {size:.1f} MiB, {100 * share:.1f} % of a core at rest")
    assert share < 0.03
    assert size < 40 + LEASES
    (house.handles / "go").touch()
    client.hears("gone", seconds=90)
    assert client.ends() == 0


def test_terraform_runs_within_the_host_s_limit(house: House) -> None:
    """The slots are taken by whoever starts Terraform: with one slot, no two of them run at the same time."""
    body = """
        say("limit", limit=context.slots.limit, place=str(context.slots.directory))
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(3) as pool:
            records = list(pool.map(lambda n: ready(f"l{n}"), range(3)))
        for record in records:
            give_back(record)
    """
    # All slots but one are held by somebody else, as by other homes of this user.
    from filelock import FileLock

    place = house.handles / f"mlinfra-prefect-{os.getuid()}"
    place.mkdir(mode=0o700)
    (place / "slots").mkdir(mode=0o700)
    locks = [FileLock(place / "slots" / f"slot-{number}.lock") for number in range(1, 64)]
    for lock in locks:
        lock.acquire(blocking=False)
    try:
        client = house.client(body)
        assert client.hears("limit")["place"] == str(place / "slots")
        most = 0
        while client.process.poll() is None:
            running = {seen.lease for seen in house.processes("terraform") if "version" not in seen.argv}
            most = max(most, len({lease for lease in running if lease}))
            time.sleep(0.01)
    finally:
        for lock in locks:
            lock.release()
    assert client.ends() == 0, client.errors.read_text()
    assert most == 1


def test_every_process_carries_the_four_marks(house: House) -> None:
    """Ledger, lease, attempt and deadline: watcher, operation, Terraform, agent, launcher and training alike."""
    house.hold("apply")
    client = house.client("record = ready(); train(record, 'until_told')")
    lease = client.hears("asked")["id"]
    house.held("apply")
    seen = house.processes()
    house.let("apply")
    client.hears("news", log="training, resumed=False")
    seen += house.processes()
    names = {"MLINFRA_LEDGER_ID", "MLINFRA_LEASE_ID", "MLINFRA_ATTEMPT", "MLINFRA_DEADLINE"}
    kinds = {"watch.py", "mlinfra_prefect.keeper", "terraform", "agent-", "keeper_training"}
    assert {kind for kind in kinds if any(kind in str(each) for each in seen)} == kinds
    for each in seen:
        assert names <= set(each.environ), each
        if each.lease:
            assert each.lease == lease
            assert each.environ["MLINFRA_ATTEMPT"] == "1"
            assert float(each.environ["MLINFRA_DEADLINE"]) == pytest.approx(time.time() + 300, abs=60)
    client.kill()
    house.becomes(lease, "released")


def test_a_home_that_cannot_be_written_is_one_sentence_and_nothing_runs(house: House) -> None:
    """Cannot write, so do not provision (R1)."""
    (house.handles / "file").touch()
    client = house.client("ready()", MLINFRA_HOME=str(house.handles / "file" / "home"))
    assert client.ends() != 0
    last = client.errors.read_text().strip().splitlines()[-1]
    assert "LedgerUnavailable" in last
    assert "MLINFRA_HOME" in last
    house.runs("give_back(ready())")


def test_a_full_disk_is_one_sentence_and_nothing_runs(house: House) -> None:
    """The same where the home is there and its disk has no room: no Terraform is started."""
    shell = f"mount -t tmpfs -o size=96k none {house.home} && exec {sys.executable} {house.handles / 'full.py'}"
    script = "import sys; sys.path.insert(0, {!r})\nfrom keeper_client import *\nready()\n"
    (house.handles / "full.py").write_text(script.format(str(Path(__file__).parent)))
    argv = ["unshare", "--mount", "sh", "-c", shell]
    trial = ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(trial, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here (unshare --mount)")
    done = subprocess.run(argv, env=house.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Unavailable" in done.stderr.strip().splitlines()[-1], done.stderr
    assert house.calls("plan") == house.calls("apply") == 0
    house.runs("give_back(ready())")


class Desk:
    """A desk for a watcher that runs in this process, and spawns what it is told to."""

    def __init__(self, place: Path, *, with_reaper: bool = False) -> None:
        (place / "keeper" / "cards").mkdir(parents=True)
        self.cards = place / "keeper" / "cards"
        options = {
            "home": str(place), "python": sys.executable, "place": "process", "renew_seconds": 1e6,
            "idle_seconds": 1e6, "missing_seconds": 1e6, "with_reaper": with_reaper, "wait_for_operations": False,
        }  # fmt: skip
        self.watcher = watch.Watcher(argparse.Namespace(**options))
        self.watcher.next_pass, self.watcher.last_pass = None, time.monotonic()
        self.spawned: list[list[str]] = []
        self.argv = ["sleep", "600"]
        self.watcher.spawn = self.spawn  # type: ignore[method-assign]

    def spawn(self, arguments: list[str], env: dict[str, str], seconds: float) -> watch.Process:
        self.spawned.append(arguments)
        return watch.Process(subprocess.Popen(self.argv), seconds)

    def lay(self, name: str, **card: object) -> None:
        scratch = self.cards / f".{name}"
        scratch.write_text(json.dumps({"id": name, **card}))
        scratch.rename(self.cards / f"{name}.json")

    def turn(self) -> None:
        self.watcher.read_cards()
        self.watcher.take_note()
        self.watcher.start_operations()


@pytest.fixture
def desk(tmp_path: Path, request: pytest.FixtureRequest):
    handler, wakeup = signal.getsignal(signal.SIGCHLD), signal.set_wakeup_fd(-1)
    made = Desk(tmp_path, with_reaper=getattr(request, "param", False))
    yield made
    helpers = [batch.process for batch in made.watcher.stopping]
    for helper in (made.watcher.passing, *helpers):
        if helper is not None:
            helper.popen.kill()
            helper.popen.wait()
    for entry in made.watcher.entries.values():
        if entry.operation is not None:
            entry.operation.popen.kill()
            entry.operation.popen.wait()
    signal.set_wakeup_fd(wakeup)
    signal.signal(signal.SIGCHLD, handler)


def test_an_operation_that_hangs_past_its_deadline_is_ended_alone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only past the deadline that it recorded, and only the process itself: its Terraform has a deadline of its own."""
    began = time.time()
    desk.lay("a", due=began, operation_deadline=began + 900)
    desk.turn()
    entry = desk.watcher.entries["a"]
    assert entry.operation is not None
    operation = entry.operation.popen
    for seconds, alive in ((400.0, True), (929.0, True), (931.0, False)):
        monkeypatch.setattr(watch.time, "time", lambda seconds=seconds: began + seconds)
        desk.turn()
        if not alive:
            operation.wait(5)
        assert (operation.poll() is None) is alive
    assert operation.returncode == -signal.SIGKILL


def test_the_next_drain_never_waits_for_those_that_are_being_seen_to(desk: Desk) -> None:
    """A training may take an hour to stop: what is due meanwhile gets a process that sees to it at once."""
    for number in range(watch.ENDS_AT_ONCE):
        desk.lay(f"draining-{number}", due=1.0, state="releasing")
    desk.turn()
    for number in range(watch.STOPS_AT_ONCE + 2):
        desk.lay(f"later-{number}", due=1.0, state="releasing")
        desk.turn()
    stops = [words[1:] for words in desk.spawned if words[0] == "stop"]
    assert stops == [[f"later-{number}"] for number in range(watch.STOPS_AT_ONCE)]
    desk.watcher.stopping[0].process.popen.kill()
    desk.watcher.stopping[0].process.popen.wait()
    desk.turn()
    last = watch.STOPS_AT_ONCE
    assert desk.spawned[-1] == ["stop", f"later-{last}", f"later-{last + 1}"]  # they share the next one


def test_what_hangs_is_tried_again_once_its_drain_was_seen_to(desk: Desk, tmp_path: Path) -> None:
    """An operation of a watcher that died holds the record: only another operation of it ends that one."""
    desk.lay("hung", due=1.0, state="releasing")
    place = tmp_path / "work" / "hung"
    place.mkdir(parents=True)
    with (place / "operation.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        desk.watcher.read_cards()
        desk.watcher.entries["hung"].stopped = True
        desk.turn()
    assert desk.spawned == [["step", "hung"]]


def test_a_service_in_a_container_waits_for_the_drains_that_it_sees_to(desk: Desk) -> None:
    """Process 1 takes all others with it."""
    desk.watcher.waits = True
    for number in range(watch.ENDS_AT_ONCE + 1):
        desk.lay(f"draining-{number}", due=1.0, state="releasing")
    desk.turn()
    desk.watcher.ending = True
    for entry in desk.watcher.entries.values():
        if entry.operation is not None:
            entry.operation.popen.kill()
            entry.operation.popen.wait()
    desk.turn()
    assert not any(entry.operation for entry in desk.watcher.entries.values())
    assert not desk.watcher.may_end()
    desk.lay("due", due=1.0, state="releasing")
    desk.watcher.next_pass = time.monotonic() - 1.0
    desk.turn()
    assert desk.watcher.patience() > 1.0  # it starts nothing any more, so nothing is looked at again and again
    desk.watcher.stopping[0].process.popen.kill()
    desk.watcher.stopping[0].process.popen.wait()
    desk.turn()
    assert desk.watcher.may_end()


def test_a_card_that_stays_due_does_not_spin(desk: Desk) -> None:
    """An operation that ends well and leaves its card as due as it was is asked again later and later."""
    desk.argv = ["true"]
    desk.lay("a", due=1.0)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        desk.turn()
        time.sleep(0.005)
    assert 2 <= len(desk.spawned) <= 5


def test_a_broken_card_and_a_program_that_does_not_start_stop_nobody(desk: Desk) -> None:
    """Half a card, a card that is no object, an interpreter that is gone: the next card is served."""
    (desk.cards / "half.json").write_text('{"id": ')
    (desk.cards / "list.json").write_text("[]")
    desk.lay("good", due=1.0)
    desk.turn()
    assert desk.spawned == [["step", "good"]]
    del desk.watcher.spawn
    desk.watcher.python = "/nonexistent/python"
    desk.lay("other", due=1.0)
    desk.turn()
    assert desk.watcher.entries["other"].operation is None
    assert desk.watcher.entries["other"].not_before > time.monotonic()


@pytest.mark.parametrize("desk", [True, False], indirect=True, ids=["with reaper", "without"])
def test_a_keeper_with_a_reaper_reaps_every_minute(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass when it begins; then another one each minute, or none by the clock."""
    desk.argv, desk.watcher.next_pass = ["true"], time.monotonic()
    began, passes = time.monotonic(), []
    for seconds in (0.1, 59.0, 61.0, 119.0, 122.0):
        monkeypatch.setattr(watch.time, "monotonic", lambda seconds=seconds: began + seconds)
        desk.watcher.start_pass()
        if desk.watcher.passing is not None:
            desk.watcher.passing.popen.wait()
            desk.watcher.passing = None  # as the watcher does once it has ended
        passes.append(len(desk.spawned))
    assert passes == ([1, 1, 2, 2, 3] if desk.watcher.reaps else [1, 1, 1, 1, 1])
    assert desk.spawned[0] == ["pass"]


def test_the_next_moment_is_waited_for_and_not_polled(desk: Desk) -> None:
    """A lease at rest with a deadline in an hour: the watcher sleeps a minute at a time."""
    desk.argv = ["true"]
    desk.lay("a", due=time.time() + 3600)
    desk.turn()
    entry = desk.watcher.entries["a"]
    assert entry.operation is not None
    entry.operation.popen.wait()
    desk.turn()
    assert desk.watcher.patience() == 60.0


def test_taking_over_many_at_once_stays_small_and_what_is_due_does_not_wait(tmp_path: Path) -> None:
    """A new watcher of many leases looks at a few at a time; one with something to do is served beside them."""
    cards, looking = tmp_path / "keeper" / "cards", tmp_path / "looking"
    cards.mkdir(parents=True)
    looking.mkdir()
    # An operation that only says that it runs, and ends when it is let.
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nfor last; do :; done\ntouch {looking}/"$last"\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n'
    )
    python.chmod(0o700)
    later = time.time() + 3600
    for number in range(3 * watch.LOOKS_AT_ONCE):
        (cards / f"well-{number}.json").write_text(json.dumps({"id": f"well-{number}", "due": later}))
    (cards / "due.json").write_text(json.dumps({"id": "due", "due": time.time() - 1.0}))
    argv = [
        sys.executable, "-I", "-S", watch.__file__, "--home", str(tmp_path), "--python", str(python), "--place",
        "service", "--renew-seconds", "3600", "--idle-seconds", "1", "--missing-seconds", "60",
    ]  # fmt: skip

    def looked() -> set[str]:
        return {path.name for path in looking.iterdir()} - {"pass", "lookout"}

    def until(condition, seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)
        assert condition(), looked()

    watcher = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: len(looked()) == watch.LOOKS_AT_ONCE + 1)
        before = cpu_seconds(watcher.pid)
        time.sleep(1.0)  # long enough for one that does not count, or that asks again and again
        assert len(looked()) == watch.LOOKS_AT_ONCE + 1
        assert "due" in looked()
        assert cpu_seconds(watcher.pid) - before < 0.5
        (tmp_path / "go").touch()
        until(lambda: len(looked()) == 3 * watch.LOOKS_AT_ONCE + 1)
        watcher.terminate()
        assert watcher.wait(10) == 0
    finally:
        (tmp_path / "go").touch()
        watcher.kill()
        watcher.wait()


def test_many_releases_at_once_are_few_operations_and_no_meter_waits(house: House) -> None:
    """Terraform hangs: the first ones stand in its way, and all others cost nothing any more all the same."""
    many = watch.ENDS_AT_ONCE + 4
    client = house.client(f"""
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor({many}) as pool:
            records = list(pool.map(ready, [f"lease-{{number}}" for number in range({many})]))
        say("all", ids=[record.id for record in records])
        wait_for("end")
    """)
    ids = client.hears("all", seconds=120)["ids"]
    house.until(lambda: not house.processes("mlinfra_prefect.keeper"), "nothing is to be done")
    grants = [house.home / "work" / each / "1" / "grant" for each in ids]
    assert all(grant.exists() for grant in grants)
    hold, watcher = house.handles / "hold-destroy", house.watcher()
    hold.touch()
    client.kill()
    most = 0

    def stopped() -> bool:
        nonlocal most
        # The watcher's own; what one of them has just forked looks like it until it becomes another program.
        seen = house.processes("mlinfra_prefect.keeper", "step")
        most = max(most, sum(parent(each.pid) == watcher for each in seen))
        return not any(grant.exists() for grant in grants)

    house.until(stopped, "every meter is stopped", seconds=90)
    going = [each for each in judge.records(house.home).values() if each["state"] == "releasing"]
    assert len(going) == many
    assert 0 < most <= watch.ENDS_AT_ONCE
    hold.unlink()
    for each in ids:
        assert house.becomes(each, "released", seconds=120)["receipt"]
    house.until(lambda: not house.processes(), "nothing is left", seconds=30)
