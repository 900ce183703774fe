"""Rule: whatever is promoted, and whoever is killed at whatever moment of a rollout, no request fails.

How often is set by ``MLINFRA_LOAD_PROMOTIONS`` and ``MLINFRA_LOAD_KILLS``, and the moments by ``MLINFRA_LOAD_SEED``.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
from keeper_harness import House
from rollout_asker import Asker, give_back, served, standing, versions

PROMOTIONS = int(os.environ.get("MLINFRA_LOAD_PROMOTIONS", "20"))
KILLS = int(os.environ.get("MLINFRA_LOAD_KILLS", "3"))
SEED = int(os.environ.get("MLINFRA_LOAD_SEED", "1"))
VICTIMS = ("client", "watcher", "operation", "client and watcher", "everything of the keeper and its client")


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_promotions_one_after_the_other_fail_no_request(house: House, digits: Path, contrary: Path) -> None:
    """Two live versions take turns; each promotion is in effect when it returns."""
    first = standing(house, digits, retire_seconds=3600)
    standing(house, contrary, retire_seconds=3600)
    asker = Asker(house, house.record(first["id"])["url"], threads=3)
    client = house.runs(f"""
        for number in range({PROMOTIONS}):
            began = time.monotonic()
            after = rollouts.promote(context, context.endpoint("digits"), 1 + number % 2, reason="taking turns")
            now = context.platform("local").served(after)
            say("promoted", version=1 + number % 2, share=now.version(1 + number % 2).share,
                seconds=time.monotonic() - began)
            time.sleep(0.1)
    """)  # fmt: skip
    promoted = [event for event in client.events if event["what"] == "promoted"]
    assert [event["share"] for event in promoted] == [100] * PROMOTIONS
    asker.all_answered(PROMOTIONS)
    assert set(asker.versions) == {"1", "2"}
    print(f"{PROMOTIONS} promotions, {asker.asked} requests, 0 failed")
    give_back(house, first["id"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_at_random_moments_of_rollouts_fail_no_request(house: House, digits: Path, contrary: Path) -> None:
    """After each kill one pass of the reaper leaves one version that serves everything, and no rollout in flight."""
    chance = random.Random(SEED)
    first = standing(house, digits)
    asker = Asker(house, house.record(first["id"])["url"])
    ends = []
    for number in range(KILLS):
        victim = VICTIMS[number % len(VICTIMS)]
        client = house.client(f"deploy(model({str(contrary if number % 2 == 0 else digits)!r}), canary=[30, 70])")
        rollout = client.hears("deploying")["rollout"]
        moment = chance.uniform(0.0, 6.0)
        time.sleep(moment)
        watchers, operations = house.processes("watch.py"), house.processes("mlinfra_prefect.keeper")
        pids = []
        if "watcher" in victim or "keeper" in victim:
            pids += [seen.pid for seen in watchers]
        if "operation" in victim or "keeper" in victim:
            pids += [seen.pid for seen in operations]
        if "client" in victim:
            pids.append(client.process.pid)
        end(pids)
        if "client" not in victim:
            client.process.wait(120)
        else:
            client.process.wait(10)
        house.reap()
        house.until(lambda: settled(house, first["id"]), f"{victim} killed after {moment:.1f} s: it has settled")  # noqa: B023
        (current,) = [each for each, (state, _) in versions(house, first["id"]).items() if state == "serving"]
        assert served(house, first["id"]) == {current: 100}
        ends.append((victim, round(moment, 1), house.record(rollout)["state"]))
    asker.all_answered(KILLS)
    print(f"{KILLS} kills, {asker.asked} requests, 0 failed: {ends}")
    give_back(house, first["id"])


def settled(house: House, endpoint: str) -> bool:
    """Whether one version serves everything and every other one is gone, servers included."""
    states = [each["state"] for each in house.record(endpoint)["versions"]]
    if states.count("serving") != 1 or set(states) - {"serving", "retired", "rolled-back"}:
        return False
    gone = [each["rollout"] for each in house.record(endpoint)["versions"] if each["state"] != "serving"]
    return all(house.record(each)["state"] == "released" for each in gone)
