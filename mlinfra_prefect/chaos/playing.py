"""How rows are played: which clients run, and what is struck beside the plan's own strikes."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.place import Place
from mlinfra_prefect.chaos.plan import Plan

EVERYTHING = ("client", "keeper", "operation", "pass", "terraform")
"""Whoever could give something back; what was leased lives on."""


def lease(place: Place, plan: Plan) -> None:
    """One client leases, trains and gives back, and the plan's strikes fall."""
    place.client("lease", seconds=plan.options["seconds"])
    _strikes(place, plan)


def _strikes(place: Place, plan: Plan) -> None:
    for strike in plan.strikes:
        place.strike(strike)


def reapers_race(place: Place, plan: Plan) -> None:
    """Everything is killed; then some reapers at once."""
    lease(place, plan)
    for _ in range(int(plan.options["reapers"])):
        place.reaper()


def reaper_killed(place: Place, plan: Plan) -> None:
    """Everything is killed, then the reaper that came, at a point or at a moment; another one comes."""
    place.client("lease", seconds=plan.options["seconds"], points=False)
    _strikes(place, plan)
    first = place.reaper(points=True)
    if plan.points:
        first.wait(60)
        return
    time.sleep(float(plan.options["reaper_at"]))
    place.hit(place.victims("reaper"), "KILL")
    if plan.options["keeper_too"]:
        place.hit([seen for role in ("keeper", "operation") for seen in place.victims(role)], "KILL")


def reaper_beside_owner(place: Place, plan: Plan) -> None:
    """Reapers, with right and wrong clocks, beside a live client: it loses nothing."""
    client = place.client("lease", seconds=plan.options["seconds"])
    place.wait("began")
    time.sleep(float(plan.options["reaper_at"]))
    for clock in plan.options["clocks"]:
        if place.happened("reaper", f"clock {clock:+.0f} s"):
            place.reaper(clock=clock, settle=5.0)
    client.wait(150)
    if client.returncode != 0 or not place.said("trained"):
        place.problems.append(f"a reaper took a lease from its live client: {place.said()[-1]}")


def double(place: Place, plan: Plan) -> None:
    """Two runs of one key: one trains at a time; the other one waits, or adopts what its dead twin left."""
    place.client("lease", seconds=plan.options["seconds"])
    twin = place.client("double", seconds=plan.options["seconds"])
    place.wait("asked")
    time.sleep(float(plan.options["kill_at"]))
    holder = place.said("asked")[0]["pid"] if place.said("asked") else twin.pid
    place.hit([seen for seen in place.victims("client") if seen.pid == holder], "KILL")


def two_ledgers(place: Place, plan: Plan) -> None:
    """Another home's node lives through everything that is done here, and goes when its own owner wants it."""
    with Place(place.setting, plan).borrowed() as other:
        other.client("up", points=False)
        other.wait("up")
        nodes = other.victims("node")
        lease(place, plan)
        place.reaper()
        other.reaper()
        place.wait_gone(time.time() + 60.0, reaper=True)
        if not nodes or not all(judge.same(seen) for seen in nodes):
            place.problems.append(f"the other ledger's node was touched: {nodes}")
        other.client("give-back", points=False)
        if other.wait_gone(time.time() + 100.0, reaper=False) is None:
            place.problems += [f"the other ledger: {each}" for each in other.findings()]


def all_at_once(place: Place, plan: Plan) -> None:
    """Many leases that nobody waits for reach their deadlines in the same moment."""
    count, life = int(plan.options["count"]), float(plan.options["life"])
    place.client("up", count=count, life_seconds=life, wait=False)
    place.wait("asked", count=count)
    asked = place.said("asked")
    place.wanted_until = max([each["at"] for each in asked], default=time.time()) + life
    place.struck.append({"role": "deadline", "how": f"{len(asked)} leases", "at": place.wanted_until})
    _strikes(place, plan)
    time.sleep(max(0.0, place.wanted_until - time.time()))


def dead_man(place: Place, plan: Plan) -> None:
    """Keeper, client, ledger and Terraform are all gone: the node ends itself at its hard deadline, with no reaper."""
    life = float(plan.options["life"])
    place.client("lease", seconds=120.0, life_seconds=life)
    place.wait("job")
    asked = place.said("asked")[0]["at"]
    mark = place.seen_mark()
    nodes = judge.left(place.home)
    place.hit([seen for role in ("keeper", "client", "operation", "pass", "terraform") for seen in place.victims(role)],
              "KILL")  # fmt: skip
    place.ledger_lost = True
    for path in (*place.home.glob("ledger.sqlite*"), *place.home.glob("work/*/*/terraform/**/*"),
                 *place.home.glob("keeper/cards/*")):  # fmt: skip
        if path.is_file() or path.is_symlink():
            path.unlink()
    place.wanted_until = asked + life
    place.others += nodes
    if not any(seen.role == "agent" and judge.same(seen) for seen in nodes):
        place.problems.append("the node did not live until its deadline came")
    while time.time() < place.wanted_until + 30.0 and judge.carriers(mark):
        time.sleep(0.05)
    place.problems += [f"lives past its deadline: {seen}" for seen in judge.carriers(mark)]


def session_killed(place: Place, plan: Plan) -> None:
    """The client's session is killed whole, as a terminal or a worker does it: the keeper has one of its own."""
    client = place.client("lease", seconds=plan.options["seconds"])
    place.wait("began")
    time.sleep(float(plan.options["kill_at"]))
    place.hit([seen for seen in _everybody(place) if _session(seen.pid) == client.pid], "KILL")


def cgroup_killed(place: Place, plan: Plan) -> None:
    """The client's cgroup is killed whole, its keeper with it: a reaper comes."""
    group = cgroup_root() / f"mlinfra-chaos-{place.root.name}"
    group.mkdir()
    try:
        place.client("lease", seconds=plan.options["seconds"],
                     wrap=["/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"])  # fmt: skip
        place.wait("began")
        time.sleep(float(plan.options["kill_at"]))
        for _ in range(5):
            pids = [int(line) for line in (group / "cgroup.procs").read_text().split()]
            place.hit([seen for pid in pids if (seen := judge.look(pid)) is not None], "KILL")
            time.sleep(0.02)
    finally:
        until = time.monotonic() + 5.0
        while time.monotonic() < until:
            with suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.05)


def cgroup_root() -> Path:
    """Where this host lets a group of processes be made: the unified hierarchy, or the one of pids."""
    root = Path("/sys/fs/cgroup")
    return root if (root / "cgroup.procs").exists() else root / "pids"


def namespace_killed(place: Place, plan: Plan) -> None:
    """A container's process 1 is killed, and all of its PID namespace with it: a reaper outside sees what it held."""
    place.env["MLINFRA_KEEPER_PLACE"] = ""
    client = place.client(
        "lease", seconds=plan.options["seconds"], wrap=["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    )
    place.wait("began")
    time.sleep(float(plan.options["kill_at"]))
    first = [seen for seen in map(judge.look, _children(client.pid)) if seen is not None]
    place.hit(first, "KILL")
    client.wait(30)
    place.env["MLINFRA_KEEPER_PLACE"] = "process"


def disk_full(place: Place, plan: Plan) -> None:
    """The home's disk fills up at any moment, the client is killed, and room comes back a while later."""
    place.mount(megabytes=24)
    place.client("lease", seconds=plan.options["seconds"])
    place.wait("began")
    time.sleep(float(plan.options["kill_at"]))
    leased = place.happened("disk", "full")
    filler = place.home / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"\0" * 65536)
    time.sleep(float(plan.options["full_for"]) / 2)
    place.hit(place.victims("client"), "KILL")
    time.sleep(float(plan.options["full_for"]) / 2)
    filler.unlink()
    if leased:
        place.struck.append({"role": "disk", "how": "room again", "at": time.time()})


def store_busy(place: Place, plan: Plan) -> None:
    """Another program holds the ledger's write lock for some seconds while everything is killed."""
    place.client("lease", seconds=plan.options["seconds"])
    place.wait("asked")
    time.sleep(float(plan.options["kill_at"]))
    with suppress(sqlite3.OperationalError), closing(_ledger(place)) as db:
        db.execute("BEGIN IMMEDIATE")
        place.happened("store", "locked")
        time.sleep(float(plan.options["busy_for"]) / 2)
        place.hit([seen for role in plan.options["victims"] for seen in place.victims(role)], "KILL")
        time.sleep(float(plan.options["busy_for"]) / 2)
        db.execute("ROLLBACK")
    if place.struck:
        place.struck.append({"role": "store", "how": "free again", "at": time.time()})


def store_broken(place: Place, plan: Plan) -> None:
    """A truncated record, or one of a newer version, stands beside the live one: that one is given back, those stay."""
    place.client("lease", seconds=plan.options["seconds"])
    place.wait("asked")
    with closing(_ledger(place)) as db:
        kind = plan.options["broken"]
        row = db.execute("SELECT kind, state, version, schema, json FROM records LIMIT 1").fetchone()
        if row is not None:
            text = row[4][: len(row[4]) // 2] if kind == "truncated" else json.dumps({"from": "the future"})
            schema = row[3] if kind == "truncated" else row[3] + 100
            db.execute(
                "INSERT INTO records (id, kind, base, state, version, schema, json) VALUES (?, ?, ?, ?, ?, ?, ?)",
                ("l0broken-1", row[0], "l0broken", row[1], row[2], schema, text),
            )
            place.happened("store", kind)
            place.apart_from.add("l0broken-1")
            place.broken = text
    _strikes(place, plan)


def _ledger(place: Place) -> sqlite3.Connection:
    return sqlite3.connect(place.home / "ledger.sqlite", timeout=20, isolation_level=None)


def _everybody(place: Place) -> list[judge.Seen]:
    return [*place.victims("client"), *judge.carriers(judge.ledger_id(place.home))]


def _session(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[3])
    except OSError:
        return 0


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
