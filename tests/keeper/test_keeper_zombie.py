"""Rule: a zombie is fenced. What was taken over from it is not touched when it comes back (R4, R6)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from keeper_harness import House


def operations(house: House, lease: str) -> list[int]:
    return [seen.pid for seen in house.processes("mlinfra_prefect.keeper", lease=lease) if "step" in seen.argv]


def test_a_keeper_that_is_stopped_taken_over_and_continued_touches_nothing(house: House) -> None:
    """As on another host: the two do not see each other's lock. The ledger's generation alone fences the old one."""
    client = house.client("train(ready(grace_seconds=4, on_client_lost='checkpoint_then_release'), 'stubborn')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    os.kill(client.process.pid, signal.SIGSTOP)
    client.kill()
    house.until(lambda: "drain" in str(house.record(lease)["attempts"][0]["operation"]), "it drains")
    (zombie,) = operations(house, lease)
    os.kill(zombie, signal.SIGSTOP)
    house.kill_keeper()
    (house.home / "work" / lease / "operation.lock").unlink()
    reaper = house.client("from mlinfra_prefect.keeper.reap import reap; reap(context)")
    house.until(lambda: house.record(lease)["generation"] == 2, "it was taken over")
    taken = len(house.history(lease))
    os.kill(zombie, signal.SIGCONT)  # it is in the middle of its drain, and so is its successor
    assert reaper.ends() == 0
    house.until(lambda: zombie not in operations(house, lease), "the zombie has ended")
    record = house.becomes(lease, "released")
    later = house.history(lease)[taken:]
    assert later
    assert not any(line["actor"].endswith(f"/{zombie}") or line["generation"] != 2 for line in later)
    assert (record["generation"], house.calls("destroy")) == (2, 1)
    assert record["receipt"]["destroyed"] == ["1/terraform_data.node"]


def test_until_quiet_goes_on_until_only_what_lives_or_is_stuck_is_left(house: House) -> None:
    """Client and keeper of two leases are dead: a Terraform that still runs is waited for; one that fails is stuck."""
    keeps = house.client("ready('keeps', client=nobody())")
    kept = keeps.hears("ready")["id"]
    assert keeps.ends() == 0
    house.hold("apply")
    client = house.client("ready('lost')")
    lost = client.hears("asked")["id"]
    house.held("apply")
    os.kill(client.process.pid, signal.SIGSTOP)
    house.kill_keeper(operations=True)
    client.kill()
    reaper = subprocess.Popen(
        [sys.executable, "-m", "mlinfra_prefect", "reap", "--until-quiet", "--json"],
        env=house.env, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    house.until(lambda: house.record(kept)["generation"] == 2, "the first pass has been there")
    assert reaper.poll() is None
    house.let("apply")
    out, _ = reaper.communicate(timeout=90)
    told = json.loads(out)
    assert reaper.returncode == 0
    assert [each["id"] for each in told["released"]] == [lost]
    assert [each["id"] for each in told["skipped"]] == [kept]
    house.fail("destroy")
    give_back = house.client(f"keeper.release(context, {kept!r}, reason='done')")
    assert give_back.ends() == 0
    stuck = subprocess.run(
        [sys.executable, "-m", "mlinfra_prefect", "reap", "--until-quiet", "--json"],
        env=house.env, stdout=subprocess.PIPE, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert stuck.returncode == 3
    assert [each["id"] for each in json.loads(stuck.stdout)["stuck"]] == [kept]
    house.fail("destroy", fails=False)
    began = time.monotonic()
    assert kept in house.reap()["released"]
    assert time.monotonic() - began < 60
