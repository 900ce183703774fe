"""Rule: where a service keeps the leases, a flow only asks; whoever dies or is told to end, the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keeper_judge as judge
import pytest
from keeper_harness import House

from mlinfra_prefect.keeper.watch import TAKEN

SERVICE = {"MLINFRA_KEEPER_PLACE": "service"}


def elsewhere(house: House) -> dict[str, str]:
    """The environment of a client whose home is another one, and whose ledger is this one: a shared ledger."""
    home = house.handles / "elsewhere"
    home.mkdir()
    (home / "ledger.sqlite").symlink_to(house.home / "ledger.sqlite")
    return {**SERVICE, "MLINFRA_HOME": str(home)}


def test_a_flow_only_asks_and_the_service_keeps(house: House) -> None:
    """One keeper, the service's process, from the first write to the receipt; a hang-up of its terminal is nothing.

    A second service of the same home says so in one sentence; a probe is told whether there is one.
    """
    assert house.checks()[0] == 1
    with house.service() as service:
        assert house.checks() == (0, f"The keeper service, pid {service.pid}, keeps {house.home}.\n")
        client = house.client(
            "record = ready(); say('held', ids=keeper.CLIENT.held()); train(record, 'quick'); give_back(record)",
            **SERVICE,
        )
        lease = client.hears("ready")["id"]
        service.send_signal(signal.SIGHUP)
        assert client.hears("released")["clean"]
        assert client.ends() == 0
        record = house.record(lease)
        assert (record["keeper"]["place"], record["keeper"]["process"]["pid"]) == ("service", service.pid)
        assert (record["keeper_place"], record["generation"]) == ("service", 1)
        assert house.watcher() == service.pid
        argv = [sys.executable, "-m", "mlinfra_prefect", "keeper"]
        second = subprocess.run(argv, env=house.env, capture_output=True, text=True, check=False, timeout=60)
        assert second.returncode == TAKEN
        assert second.stderr.count("\n") == 1
        assert f"another keeper service keeps this home, pid {service.pid}" in second.stderr
        os.utime(house.home / "keeper/watch.json", (0, 0))  # as of a service that hangs
        service.send_signal(signal.SIGSTOP)
        os.utime(house.home / "keeper/watch.json", (0, 0))
        code, said = house.checks()
        service.send_signal(signal.SIGCONT)
        assert code == 1
        assert "has not moved" in said
    house.until(lambda: not house.processes(), "nothing of the service is left")


def test_what_is_asked_on_another_host_is_claimed_from_the_ledger(house: House) -> None:
    """A client of a shared ledger lays no card anywhere: its wish, its end and its death stand in the ledger alone."""
    with house.service() as service:
        house.until((house.home / "ledger.sqlite").exists, "the ledger is there")
        there = elsewhere(house)
        asker = house.client(
            """
            import mlinfra_prefect.keeper.holding as holding
            holding.BEAT_SECONDS = 0.2
            ready("ends")
            wait_for("go")
            keeper.CLIENT.end(context.ledger.rounds(leasing.Key("run", "training", "ends").base)[0].record.id)
            give_back(ready("gives-back"))
            ready("dies")
            wait_for("never")
            """,
            **there,
        )
        ends = asker.hears("ready")["id"]
        first = house.record(ends)
        assert first["keeper"]["process"]["pid"] == service.pid
        house.until(lambda: house.record(ends)["client"]["heartbeat_at"] > first["client"]["heartbeat_at"], "it beats")
        (house.handles / "go").touch()
        assert "client ended" in house.becomes(ends, "released")["receipt"]["reason"]
        given_back = asker.hears("released")
        assert given_back["clean"]
        house.until(lambda: sum(event["what"] == "ready" for event in asker.events) == 3, "the third is ready")
        asker.kill()
        (dies,) = [each for each in judge.records(house.home) if each not in {ends, given_back["id"]}]
        assert "client was lost" in house.becomes(dies, "released")["receipt"]["reason"]
        assert not list(Path(there["MLINFRA_HOME"]).glob("keeper/cards/*"))
        assert not (Path(there["MLINFRA_HOME"]) / "keeper" / "watch.json").exists()
        assert [line["reason"] for line in house.history(ends) if "lives" in line["reason"]] == []


def test_without_a_service_nothing_is_created_and_the_next_one_finishes(house: House) -> None:
    """No service claims it in time: one error with a remedy, no watcher of the flow's own, a record that is going."""
    client = house.client(
        """
        from mlinfra_prefect.errors import KeeperUnavailable
        keeper.CLAIM_SECONDS = 0.5
        try:
            ready()
        except KeeperUnavailable as error:
            say("refused", text=str(error))
        """,
        **SERVICE,
    )
    text = client.hears("refused")["text"]
    assert "no keeper service claimed it" in text
    assert "mlinfra-prefect keeper" in text
    assert client.ends() == 0
    ((lease, record),) = judge.records(house.home).items()
    assert (record["state"], record["error"], record["attempts"]) == ("releasing", "KeeperUnavailable", [])
    assert house.processes() == []
    with house.service():
        assert house.becomes(lease, "released")["receipt"]["created"] == []
    assert house.calls("apply") == 0


def test_told_to_end_it_signals_no_terraform_and_the_next_one_goes_on(house: House) -> None:
    """SIGTERM in the middle of an apply: it ends at once and well, the apply finishes, applied once.

    SIGKILL in training: the training goes on, and the next service takes over under the next generation.
    """
    go = house.handles / "go"
    house.hold("apply")
    with house.service(contained=False) as service:
        client = house.client(
            f"record = ready(); train(record, 'until_file', {str(go)!r}); give_back(record)", **SERVICE
        )
        lease = client.hears("asked")["id"]
        terraform = house.held("apply")
        service.terminate()
        assert service.wait(30) == 0
    os.kill(terraform, 0)
    assert f"the next keeper takes over: {lease}" in (house.handles / "client-service.err").read_text()
    with house.service() as service:
        house.let("apply")
        client.hears("news", log="training")
        assert house.calls("apply") == 1
        training = house.processes("until_file")
        house.until(lambda: house.record(lease)["keeper"]["process"]["pid"] == service.pid, "it took over")
        before = house.record(lease)["generation"]
        service.kill()
        service.wait()
    assert house.processes("until_file") == training
    with house.service() as service:
        house.until(lambda: house.record(lease)["keeper"]["process"]["pid"] == service.pid, "the next one took over")
        assert house.record(lease)["generation"] == before + 1
        assert house.processes("until_file") == training
        go.touch()
        assert client.hears("released")["clean"]
        assert client.ends() == 0


def test_in_a_container_it_waits_for_its_operations(house: House) -> None:
    """There everything ends with the first process: told to end it begins nothing more, and stays for what runs."""
    house.hold("apply")
    with house.service(contained=True) as service:
        client = house.client("ready(client=nobody())", **SERVICE)
        lease = client.hears("asked")["id"]
        house.held("apply")
        service.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            service.wait(1.5)
        house.let("apply")
        assert service.wait(60) == 0
        assert house.record(lease)["state"] == "ready"
    assert client.ends() == 0
    with house.service("--with-reaper"):
        house.runs(f"give_back(context.lease({lease!r}))", **SERVICE)


def test_a_service_replaces_the_watcher_that_a_flow_has_started(house: House) -> None:
    """It loses nothing by being ended: the lease goes on under the service, one generation higher."""
    client = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = client.hears("ready")["id"]
    watcher = house.watcher()
    with house.service() as service:
        house.until(lambda: house.record(lease)["generation"] == 2, "the service took over")
        assert house.watcher() == service.pid != watcher
        (house.handles / "go").touch()
        assert client.hears("released")["clean"]
        assert client.ends() == 0


def test_silence_counts_where_a_process_proves_nothing(house: House) -> None:
    """A run in a process that outlives it beats; when it has not for the lease TTL, on the ledger's clock, it is lost.

    A process that is seen to live is not lost by its silence, and one on another host is.
    """
    client = house.client("""
        from datetime import timedelta
        import mlinfra_prefect.keeper.holding as holding
        from mlinfra_prefect.ledger import revise
        from mlinfra_prefect.model.process import ProcessIdentity
        os.environ["MLINFRA_KEEPER_PLACE"] = "process"
        holding.BEAT_SECONDS = 0.1
        run = ready("run", client=Client(kind="flow_run", process=identify()))
        time.sleep(0.5)
        say("beaten", seconds=(context.record(run.id).client.heartbeat_at - run.created_at).total_seconds())
        holding._beat = lambda hold: None
        far = ProcessIdentity(host="elsewhere", boot="of another kernel", pid=1, start_time="1")
        os.environ["MLINFRA_KEEPER_PLACE"] = "service"  # what makes a process beat, too
        here = ask("here")
        away = ask("away", client=Client(kind="process", process=far))
        os.environ["MLINFRA_KEEPER_PLACE"] = "process"
        def silent(record):
            at = context.ledger.now() - timedelta(seconds=121)
            return record.revised(client=record.client.revised(heartbeat_at=at), keeper_place=None)
        for record in (run, here, away):
            keeper.have_kept(context, revise(context.ledger, record.id, silent, actor="test", reason="silence"))
        say("silent", run=run.id, here=here.id, away=away.id)
        keeper.wait_ready(context, here.id)
        wait_for("go")
        give_back(here)
    """)
    assert client.hears("beaten")["seconds"] > 0
    ids = client.hears("silent")
    assert "no heartbeat for 120 seconds" in house.becomes(ids["run"], "released")["receipt"]["reason"]
    assert "no heartbeat for 120 seconds" in house.becomes(ids["away"], "released")["receipt"]["reason"]
    assert house.becomes(ids["here"], "ready")["client"]["lost_at"] is None
    (house.handles / "go").touch()
    assert client.hears("released", id=ids["here"])["clean"]
    assert client.ends() == 0
    assert [line for line in house.history(ids["run"]) if line["reason"] == "the client lives"] == []


def test_a_watcher_that_can_start_no_operation_leaves_the_desk(house: House) -> None:
    """Its virtual environment was deleted under a live lease: it says so and goes; another installation goes on."""
    python = house.handles / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    client = house.client(f"""
        import mlinfra_prefect.keeper.starting as starting
        starting.MISSING_SECONDS = 1.0
        sys.executable = {str(python)!r}
        ready(client=nobody())
    """)
    lease = client.hears("ready")["id"]
    assert client.ends() == 0
    python.unlink()
    began = time.monotonic()
    house.runs(f"from mlinfra_prefect.keeper.desk import wake; wake(context.home, {lease!r})")
    house.until(lambda: not house.processes("watch.py"), "it left the desk")
    assert time.monotonic() - began < 30
    assert "is gone: the desk is left to another keeper" in (house.home / "keeper/operations.log").read_text()
    house.reap()
    house.until(lambda: house.record(lease)["generation"] == 2, "another installation took over")
    assert house.record(lease)["state"] == "ready"
    house.runs(f"give_back(context.lease({lease!r}))")
