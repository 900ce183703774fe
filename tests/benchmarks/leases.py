"""Leases: what they add to Terraform by hand, how soon a node is gone, and how soon a lost client is noticed."""

from __future__ import annotations

import time
from pathlib import Path

from mlinfra_prefect.terraform import find_engine
from tests.benchmarks.by_hand import ByHand
from tests.benchmarks.homes import CACHE, bench
from tests.benchmarks.lines import Line, differences, ratios
from tests.benchmarks.side_by_side import Effort

ADDED_SECONDS = 0.5
NOTICE_SECONDS = 30.0
LOST_SECONDS = 2.0


def engines() -> dict[str, Path]:
    """The engines of this machine by name: what a lease would take, and the embedded one beside it."""
    found = [find_engine(None, cache_dir=CACHE), find_engine(None, cache_dir=CACHE, path="")]
    return {engine.name: engine.path for engine in found}


def added(name: str, engine: Path, effort: Effort) -> list[Line]:
    """`lease()` → ready beside the same root by hand.

    Each round: a fresh process leases twice, then its root is applied by hand in both ways. `first` is the first lease
    of the process, with no keeper awake; `later` the next one, which finds one. Imports are not in it (see `starts`),
    and no Prefect server is (see `in_a_flow`).
    """
    first: list[float] = []
    second: list[float] = []
    saved: list[float] = []
    nothing: list[float] = []
    with bench(engine=engine) as here:
        for number in effort.each():
            here.wait_until_quiet()
            holder = here.holder("--times", "2")
            said = [holder.says(), holder.says()]
            holder.end()
            hand = ByHand(engine, Path(said[0]["attempt"]), here.project.parent / "hand")
            first.append(said[0]["ready"])
            second.append(said[1]["ready"])
            turns = [(saved, hand.apply_saved_plan), (nothing, hand.init_and_apply)]
            for kept, turn in turns if number % 2 == 0 else reversed(turns):
                kept.append(turn())
    found = []
    for which, ours in (("first", first), ("later", second)):
        added_to = f"{name}, {which}: lease to ready - the same saved plan by hand"
        beside = f"{name}, {which}: lease to ready / init && apply by hand from nothing"
        found += [
            differences(added_to, ours, saved, aim=ADDED_SECONDS, names="lease | the saved plan by hand"),
            ratios(beside, ours, nothing, aim=1.0, names="lease | init && apply"),
        ]
    return found


def in_a_flow(effort: Effort) -> list[Line]:
    """`lease()` → ready inside a flow run, with the phases as tasks of Prefect's temporary server."""
    with bench() as here:
        holder = here.holder("--in-flow", "--times", str(effort.rounds))
        values = tuple(holder.says()["ready"] for _ in range(effort.rounds))
        holder.end()
    return [Line("lease to ready inside a flow run (Prefect's temporary server)", "s", values)]


def ended(effort: Effort) -> list[Line]:
    """Training finished → node gone, on one lease after the other."""
    process: list[float] = []
    destroyed: list[float] = []
    with bench() as here:
        holder = here.holder("--train", "--times", str(effort.rounds))
        for _ in range(effort.rounds):
            holder.says()  # it is ready
            said = holder.says()
            process.append(said["process_gone"])
            destroyed.append(said["destroyed"])
        holder.end()
    return [
        Line("training finished to node's process gone", "s", tuple(process)),
        Line("training finished to destroyed in the ledger", "s", tuple(destroyed)),
    ]


def lost(effort: Effort) -> list[Line]:
    """SIGKILL of the client → release begun, as the ledger's history says."""
    values = []
    with bench() as here:
        for _ in effort.each():
            holder = here.holder("--for-ever")
            lease_id = holder.says()["id"]
            killed = time.time()
            holder.process.kill()
            until = time.monotonic() + NOTICE_SECONDS
            while (record := here.context.lease(lease_id)).releasing_at is None:
                if time.monotonic() > until:
                    raise RuntimeError("nobody noticed that the client is gone")
                time.sleep(0.01)
            values.append(record.releasing_at.timestamp() - killed)
            holder.end()
    measured = tuple(values)
    return [
        Line("SIGKILL of the client to release begun", "s", measured),
        Line("SIGKILL of the client to release begun, p95", "s", measured, LOST_SECONDS, p95=True),
    ]
