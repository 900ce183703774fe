"""Rule: a zombie is fenced. What was taken over from it is not touched when it comes back (R4, R6)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from keeper_harness import House

from mlinfra_prefect.keeper import overdue
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.local.process import carriers
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import AttemptState
from mlinfra_prefect.terraform import in_flight, lock
from mlinfra_prefect.testing.records import sample_attempt, sample_lease


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


def test_a_provider_whose_terraform_is_dead_is_ended_and_one_whose_terraform_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the stack's lock and says nothing more: waiting for the deadline would keep what was made until then."""
    monkeypatch.setattr(overdue, "ORPHAN_SECONDS", 0.1)
    provider = tmp_path / "terraform-provider-aws_v5"
    shutil.copy("/bin/sleep", provider)
    context = Context(Home(tmp_path / "home"))
    with closing(context.ledger) as ledger:
        attempt = sample_attempt().revised(
            directory=str(tmp_path), state=AttemptState.APPLYING, operation="apply",
            operation_deadline=ledger.now() + timedelta(hours=1),
        )  # fmt: skip
        record = sample_lease(ledger_id=ledger.ledger_id).revised(attempts=(attempt,))
        marks = {"MLINFRA_LEDGER_ID": ledger.ledger_id, "MLINFRA_LEASE_ID": record.id}
        held = lock.acquire(tmp_path / LOCK_NAME)
        terraform = subprocess.Popen(
            ["/bin/sh", "-c", f"{provider} 60 & echo $! > {tmp_path}/pid; wait"],
            env={**os.environ, **marks}, pass_fds=(held,), start_new_session=True,
        )  # fmt: skip
        os.close(held)
        try:
            until = time.monotonic() + 10
            while len(carriers(ledger.ledger_id, record.id)) < 2 or not (tmp_path / "pid").read_text():
                assert time.monotonic() < until
                time.sleep(0.01)
            assert overdue.must_wait_for(context, record)
            assert not overdue.end_overdue_terraform(context, record)
            terraform.kill()
            terraform.wait()
            assert in_flight(tmp_path / LOCK_NAME)
            assert not overdue.must_wait_for(context, record)
            assert overdue.end_overdue_terraform(context, record)
            assert context.open_stack(tmp_path, record, attempt.number).suspect
        finally:
            with suppress(OSError, ValueError):
                os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
            terraform.kill()
            terraform.wait()
