"""Rule: a client that is SIGKILLed at any moment leaves nothing behind, and nobody has to help."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
from keeper_harness import House

NOTICED_SECONDS = 5.0
"""From SIGKILL of the client to the first write of its lease's release: one small process on a busy machine."""


def committed_checkpoint(house: House) -> list[Path]:
    """The checkpoints that stand, complete and intact by their own manifests."""
    found = []
    for manifest in house.home.glob("checkpoints/dev/*/*/manifest.json"):
        entries = json.loads(manifest.read_bytes())["files"]
        assert entries
        for entry in entries:
            assert hashlib.sha256((manifest.parent / entry["path"]).read_bytes()).hexdigest() == entry["sha256"]
        found.append(manifest.parent)
    return found


def test_a_client_killed_right_after_its_record_is_noticed(house: House) -> None:
    """Between the durable record and the first word to the keeper lies no gap: the keeper was told to expect it."""
    client = house.client("""
        create = context.ledger.create
        def create_and_die(record, **how):
            create(record, **how)
            say("asked", id=record.id)
            die()
        context.ledger.create = create_and_die
        ask()
    """)
    record_id = client.hears("asked")["id"]
    assert client.ends() == -signal.SIGKILL
    record = house.becomes(record_id, "released")
    assert record["receipt"]["created"] == []
    assert house.calls("apply") == 0


def test_a_client_killed_before_its_record_leaves_an_empty_desk(house: House) -> None:
    """An announced record that is never written: its card goes with its client, and the keeper goes home."""
    client = house.client("""
        context.ledger.create = lambda record, **how: die()
        ask()
    """)
    assert client.ends() == -signal.SIGKILL
    house.until(lambda: not list(house.home.glob("keeper/cards/*.json")), "the desk is empty")
    house.until(lambda: not house.processes(), "the keeper has gone home")


@pytest.mark.parametrize("policy", ["checkpoint_then_release", "release_now"])
def test_a_client_killed_while_terraform_applies(house: House, policy: str) -> None:
    """Terraform is never signalled: it finishes, and what it made is destroyed (R3)."""
    house.hold("apply")
    client = house.client(f"ready(on_client_lost={policy!r})")
    record_id = client.hears("asked")["id"]
    terraform = house.held("apply")
    client.kill()
    os.kill(terraform, 0)
    house.let("apply")
    record = house.becomes(record_id, "released")
    assert record["receipt"]["created"] == record["receipt"]["destroyed"] == ["1/terraform_data.node"]
    assert "client was lost" in record["receipt"]["reason"]
    assert not (Path(record["attempts"][0]["directory"]) / "suspect").exists()


def test_a_client_killed_while_terraform_plans_makes_nothing(house: House) -> None:
    """What nobody waits for any more is not applied."""
    house.hold("plan")
    client = house.client("ready()")
    record_id = client.hears("asked")["id"]
    house.held("plan")
    client.kill()
    house.let("plan")
    house.becomes(record_id, "released")
    assert house.calls("apply") == 0


def test_a_killed_client_gets_its_checkpoint_before_the_lease_goes(house: House) -> None:
    """`checkpoint_then_release`: the running training is told, commits, and only then the meter stops (R16)."""
    client = house.client("train(ready(), 'until_told', resume='key')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training, resumed=False")
    killed = client.kill()
    record = house.becomes(lease, "released")
    noticed = house.began_release(lease) - killed
    print(f"client SIGKILL to release begun: {noticed:.3f} s")
    assert noticed < NOTICED_SECONDS
    assert len(committed_checkpoint(house)) == 1
    assert record["jobs"][0]["state"] == "stopped"
    steps = [line["reason"] for line in house.history(lease)]
    assert steps.index("attempt 1: drain") < steps.index("attempt 1: stopping the meter, then destroying it")


def test_release_now_waits_for_no_training(house: House) -> None:
    """`release_now`: a training with half a minute of grace that hears nothing is gone all the same."""
    client = house.client("train(ready(on_client_lost='release_now', grace_seconds=60), 'stubborn')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    killed = client.kill()
    house.becomes(lease, "released", seconds=20)
    assert house.began_release(lease) - killed < NOTICED_SECONDS
    assert not any("drain" in line["reason"] for line in house.history(lease))


def test_keep_outlives_its_client_until_its_minutes_are_over(house: House) -> None:
    """`keep`: the training goes on without a client, shown and counted, for `keep_minutes`; then it is released."""
    caps = house.handles / "caps.toml"
    caps.write_text("[environments.dev]\ncaps = { max_leases = 1 }\n")
    client = house.client("train(ready(on_client_lost='keep', keep_minutes=3), 'until_told')", MLINFRA_CONFIG=str(caps))
    lease = client.hears("ready")["id"]
    client.hears("news", log="training, resumed=False")
    training = house.processes("until_told")
    assert training
    client.kill()
    house.until(lambda: house.record(lease)["keep_until"], "it is kept")
    kept = house.record(lease)["keep_until"]
    shown = {verb: house.says(*words) for verb, words in {"ps": ["ps"], "show": ["show", lease]}.items()}
    assert f"kept until {kept[11:19]} UTC" in shown["ps"]
    assert f"{kept[:10]} {kept[11:19]} UTC" in next(line for line in shown["show"].splitlines() if "kept until" in line)
    assert json.loads(house.says("ps", "--json"))[0]["keep_until"] == kept
    house.runs(
        """
        from mlinfra_prefect.errors import QuotaExceeded
        try:
            ask("another")
        except QuotaExceeded:
            say("refused")
        """,
        MLINFRA_CONFIG=str(caps),
    ).hears("refused")
    assert house.record(lease)["state"] == "ready"
    assert house.processes("until_told") == training
    # Three minutes are over at once: the record is all that a keeper knows of time.
    house.runs(f"""
        from datetime import timedelta
        from mlinfra_prefect.ledger import revise
        from mlinfra_prefect.keeper.desk import lay, wake
        over = lambda record: record.revised(keep_until=context.ledger.now() - timedelta(seconds=1))
        lay(context, revise(context.ledger, {lease!r}, over, actor="test", reason="time goes by"))
        wake(context.home, {lease!r})
    """)
    record = house.becomes(lease, "released")
    assert record["receipt"]["reason"] == "its keep minutes are over"
    assert len(committed_checkpoint(house)) == 1


def test_a_client_killed_while_it_releases(house: House) -> None:
    """From the first small write on, the release is the keeper's."""
    house.hold("apply")
    house.let("apply")
    house.hold("destroy")
    client = house.client("give_back(ready())")
    lease = client.hears("ready")["id"]
    house.held("destroy")
    client.kill()
    house.let("destroy")
    assert house.becomes(lease, "released")["receipt"]["reason"] == "done"


def test_a_finished_training_is_kept_though_its_client_did_not_live_to_collect_it(house: House) -> None:
    """The artifact of a training that finished is stored and verified by the keeper when the client is gone."""
    client = house.client("""
        record = ready(on_client_lost="release_now")
        import mlinfra_prefect.lifecycle.training as training
        def die_instead(*_):
            say("finished")
            die()
        training.collect = die_instead
        train(record, "quick")
    """)
    lease = client.hears("ready")["id"]
    client.hears("finished")
    assert client.ends() == -signal.SIGKILL
    job = house.becomes(lease, "released")["jobs"][0]
    assert job["state"] == "succeeded"
    stored = json.loads((house.home / "artifacts" / job["artifact_id"] / "artifact.json").read_bytes())
    assert stored["lease_id"] == lease
    path = house.home / "artifacts" / job["artifact_id"] / "files" / "model.txt"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stored["files"][0]["sha256"]


def test_a_child_that_holds_the_pipe_does_not_keep_the_lease(house: House) -> None:
    """Pipe *and* pid: a forked child of the client may hold the pipe open for as long as it likes."""
    client = house.client("""
        import subprocess
        record = ready()
        pipe = keeper.CLIENT._holds[record.id].pipe
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], pass_fds=[pipe])
        say("child", pid=child.pid)
        time.sleep(600)
    """)
    lease = client.hears("ready")["id"]
    child = client.hears("child")["pid"]
    try:
        killed = client.kill()
        house.becomes(lease, "released")
        os.kill(child, 0)
        assert house.began_release(lease) - killed < NOTICED_SECONDS
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_is_not_the_client(house: House) -> None:
    """After a plain fork the child holds no pipe and answers for nothing; its end is not the client's."""
    client = house.client("""
        record = ready()
        child = os.fork()
        if child == 0:
            os._exit(0 if keeper.CLIENT.held() == [] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        time.sleep(0.5)
        say("still", state=context.record(record.id).state)
        give_back(record)
    """)
    assert client.hears("still")["state"] == "ready"
    assert client.ends() == 0


def test_a_client_that_ends_though_its_process_lives(house: House) -> None:
    """A notebook's run is over: the integration says so, and the lease goes while the process stays."""
    client = house.client("""
        over = []
        record = leasing.ask(context, TrainingRequest(max_minutes=5), key=leasing.Key("run", "training", "x"),
                             owner=Owner(user="u", host="h"), client=me()).record
        keeper.entrust(context, record, ended=lambda: bool(over))
        keeper.wait_ready(context, record.id, timeout=60)
        say("ready", id=record.id)
        over.append(True)
        receipt = keeper.wait_released(context, record.id, timeout=60)
        say("released", reason=receipt.reason)
    """)
    lease = client.hears("ready")["id"]
    assert "ended without releasing" in client.hears("released")["reason"]
    assert client.ends() == 0
    assert house.record(lease)["state"] == "released"
