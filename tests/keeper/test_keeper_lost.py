"""Rule: the death of a keeper ends nothing. A new one takes over under the next generation; only then is it decided."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import keeper_judge as judge
from keeper_harness import House


def test_a_training_goes_on_under_a_new_keeper_that_its_live_client_starts(house: House, scratch: Path) -> None:
    """SIGKILL of the watcher in training: the same training process, generation + 1, and its model arrives."""
    go = scratch / "go"
    client = house.client(f"record = ready(); train(record, 'until_file', {str(go)!r}); give_back(record)")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    before, watcher, training = house.record(lease), house.watcher(), house.processes("until_file")
    house.kill_keeper()
    house.until(lambda: house.record(lease)["generation"] == before["generation"] + 1, "a new keeper took over")
    assert house.watcher() != watcher
    assert house.record(lease)["keeper"]["process"]["pid"] == house.watcher()
    assert house.processes("until_file") == training
    go.touch()
    assert client.hears("trained")["artifact"]["lease_id"] == lease
    assert client.hears("released")["clean"]
    assert client.ends() == 0


def test_keeper_and_operation_killed_in_the_middle_of_an_apply(house: House) -> None:
    """The Terraform that they leave behind is respected, and what it makes is kept: applied once, attempt 1."""
    house.hold("apply")
    client = house.client("record = ready(); train(record, 'quick'); give_back(record)")
    lease = client.hears("asked")["id"]
    terraform = house.held("apply")
    house.kill_keeper(operations=True)
    house.until(lambda: house.processes("watch.py"), "its client started a new keeper")
    time.sleep(1.0)  # long enough for an operation that does not look at the lock to do harm
    os.kill(terraform, 0)
    assert house.record(lease)["state"] == "provisioning"
    house.let("apply")
    assert client.hears("released")["clean"]
    assert client.ends() == 0
    record = house.record(lease)
    assert (record["generation"], len(record["attempts"]), house.calls("apply")) == (2, 1, 1)
    assert "found whole after an interrupted apply" in [line["reason"] for line in house.history(lease)]


def test_an_operation_killed_while_it_plans_plans_again(house: House) -> None:
    """Nothing was applied, so the attempt goes on; a second one would count against the lease."""
    house.hold("plan")
    client = house.client("give_back(ready())")
    lease = client.hears("asked")["id"]
    house.held("plan")
    house.kill_keeper(operations=True)
    house.let("plan")
    assert client.hears("released")["clean"]
    assert len(house.record(lease)["attempts"]) == 1


def test_the_reaper_respects_a_terraform_and_the_lease_goes_when_it_has_ended(house: House) -> None:
    """Client, keeper and operation dead: skipped while Terraform holds its inherited lock; a new keeper waits."""
    house.hold("apply")
    client = house.client("ready()")
    lease = client.hears("asked")["id"]
    terraform = house.held("apply")
    client.kill()
    house.kill_keeper(operations=True)
    found = house.reap()
    assert "Terraform" in found["skipped"][lease]
    assert found["released"] == found["stuck"] == {}
    time.sleep(0.5)  # long enough for a keeper that does not look at the lock to do harm
    os.kill(terraform, 0)
    assert house.record(lease)["state"] == "provisioning"
    house.let("apply")
    record = house.becomes(lease, "released")
    assert "client was lost" in record["receipt"]["reason"]
    assert record["receipt"]["created"] == record["receipt"]["destroyed"] == ["1/terraform_data.node"]


def test_a_terraform_that_nobody_waits_for_is_ended_past_its_deadline(house: House) -> None:
    """R3: its starter would have ended it at the recorded deadline. Its state is suspect then; the sweep decides."""
    house.hold("apply")
    client = house.client("ready()")
    lease = client.hears("asked")["id"]
    terraform = house.held("apply")
    client.kill()
    house.kill_keeper(operations=True)
    house.runs(f"""
        from datetime import timedelta
        from mlinfra_prefect.ledger import revise
        def past(record):
            moment = context.ledger.now() - timedelta(seconds=1)
            return record.revised(attempts=tuple(a.revised(operation_deadline=moment) for a in record.attempts))
        revise(context.ledger, {lease!r}, past, actor="test", reason="time goes by")
    """)
    assert lease in house.reap()["released"]
    assert not Path(f"/proc/{terraform}").exists()
    assert "past its deadline" in (Path(house.record(lease)["attempts"][0]["directory"]) / "suspect").read_text()


def test_client_and_keeper_killed_together(house: House) -> None:
    """The reaper takes over at once, and then happens what would have happened: checkpoint, then release."""
    client = house.client("train(ready(), 'until_told')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training, resumed=False")
    os.kill(client.process.pid, signal.SIGSTOP)  # or it would start a new keeper
    house.kill_keeper(operations=True)
    client.kill()
    began = time.monotonic()
    assert "checkpoint_then_release" in house.reap()["released"][lease]
    assert time.monotonic() - began < 20
    assert house.record(lease)["generation"] == 2
    assert list(house.home.glob("checkpoints/dev/*/1/manifest.json"))


def test_a_lease_without_a_client_goes_on_under_the_reaper_s_keeper_until_its_deadline(house: House) -> None:
    """`up`: taking over is a new keeper, not destruction; past the deadline it is released, with its drain inside."""
    client = house.client("live_for(15); record = ready(client=nobody()); train(record, 'until_told')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training, resumed=False")
    client.kill()
    agent = house.processes("run", lease=lease)
    house.kill_keeper()
    found = house.reap()
    # The new keeper may have taken it over before this pass looked: then it is one that a live keeper has.
    assert found["skipped"][lease] in {"it goes on under a live keeper", "a live keeper has it on its desk"}
    house.until(lambda: house.record(lease)["generation"] == 2, "it was taken over")
    assert house.record(lease)["state"] == "ready"
    assert house.processes("run", lease=lease) == agent
    record = house.becomes(lease, "released")
    assert record["receipt"]["reason"] == "its hard deadline is near"
    assert list(house.home.glob("checkpoints/dev/*/1/manifest.json"))
    assert record["jobs"][0]["finished_at"] < record["deadline"]


def test_the_dead_man_ends_what_nobody_keeps(house: House) -> None:
    """No client, no keeper, no reaper: agent and training end at the hard deadline all the same."""
    client = house.client("live_for(4); train(ready(client=nobody()), 'stubborn')")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    client.kill()
    house.kill_keeper(operations=True)
    assert house.processes(lease=lease)
    house.until(lambda: not house.processes(lease=lease), "everything of it is gone", seconds=15)
    deadline = house.runs(f"say('deadline', at=context.record({lease!r}).deadline.timestamp())").hears("deadline")["at"]
    assert time.time() > deadline
    house.reap()  # which may find that a keeper came up with it and was faster
    house.becomes(lease, "released")


def test_a_keeper_that_hangs_is_replaced_when_it_has_renewed_nothing_for_two_windows(house: House) -> None:
    """Alive is not enough: whoever keeps nothing loses its desk (R4)."""
    client = house.client("record = ready(); time.sleep(600)")
    lease = client.hears("ready")["id"]
    watcher = house.watcher()
    os.kill(watcher, signal.SIGSTOP)
    assert lease in house.reap(settle=0)["skipped"]
    house.runs(f"""
        from datetime import timedelta
        from mlinfra_prefect.ledger import revise
        long_ago = lambda record: record.revised(renewed_until=context.ledger.now() - timedelta(minutes=5))
        revise(context.ledger, {lease!r}, long_ago, actor="test", reason="time goes by")
    """)
    house.reap(settle=5)
    house.until(lambda: house.record(lease)["generation"] == 2, "a new keeper has it")
    assert house.watcher() != watcher
    client.kill()
    house.becomes(lease, "released")


def test_a_node_that_is_gone_is_noticed_by_the_renewal_and_its_client_hears_why(house: House) -> None:
    """The keeper begins the release; the client gets NodeLost, and not that somebody stopped its training."""
    client = house.client("""
        record = ready()
        try:
            train(record, "stubborn")
        except Exception as error:
            say("raised", kind=type(error).__name__, text=str(error))
        from mlinfra_prefect.keeper.operate import renew
        from mlinfra_prefect.keeper.desk import wake
        renew(context, [record.id], context.record(record.id).keeper)  # what the watcher has done twice a minute
        wake(context.home)
        keeper.wait_released(context, record.id, timeout=60)
        say("why", kind=type(keeper.why(context.record(record.id))).__name__)
    """)
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    for seen in house.processes("run", lease=lease):
        os.kill(seen.pid, signal.SIGKILL)
    raised = client.hears("raised")
    assert raised["kind"] == "NodeLost", raised
    assert client.hears("why")["kind"] == "NodeLost"
    assert client.ends() == 0
    assert "the node is gone" in house.record(lease)["receipt"]["reason"]


def test_an_old_generation_touches_nothing(house: House) -> None:
    """Fencing: an operation that was overtaken stops at its next write; node, state and record stay as they are."""
    client = house.client("record = ready(); train(record, 'for_seconds', '4'); give_back(record)")
    lease = client.hears("ready")["id"]
    client.hears("news", log="training")
    house.kill_keeper()
    house.until(lambda: house.record(lease)["generation"] == 2, "it was taken over")
    house.until(lambda: not house.processes("mlinfra_prefect.keeper"), "nobody is at it")
    calls = sum(house.calls(command) for command in ("plan", "apply", "destroy"))
    said = house.runs(f"""
        from mlinfra_prefect.errors import LeaseLost
        from mlinfra_prefect.lifecycle import provisioning, releasing
        from mlinfra_prefect.lifecycle.marking import begin_release
        from mlinfra_prefect.model.lease import State
        old = context.lease({lease!r}).revised(generation=1)
        going = old.revised(state=State.RELEASING, drain=True)
        tries = {{
            "release": lambda: releasing.release_pass(context, going),
            "attempt": lambda: releasing.release_attempt(context, old, 1),
            "provision": lambda: provisioning._look_at_leftover(context, old, old.attempt),
            "apply": lambda: provisioning._apply(context, old, 1),
            "add": lambda: provisioning._add_attempt(context, old, (old.attempt.offer,), None),
            "begin": lambda: begin_release(context, old.id, reason="no", generation=1),
        }}
        fenced = []
        for name, attempt in tries.items():
            try:
                attempt()
            except LeaseLost:
                fenced.append(name)
        say("fenced", names=fenced)
    """).hears("fenced")["names"]  # fmt: skip
    assert said == ["release", "attempt", "provision", "apply", "add", "begin"]
    assert sum(house.calls(command) for command in ("plan", "apply", "destroy")) == calls
    assert not list(Path(house.record(lease)["attempts"][0]["node_dir"]).rglob("stop.json"))
    assert client.hears("trained")["artifact"]
    assert client.ends() == 0


def test_without_a_keeper_nothing_is_made_and_nobody_waits_for_ever(house: House) -> None:
    """It cannot be started: before the record, after it, and while somebody waits. Each is one error, soon."""
    client = house.client("""
        from mlinfra_prefect.errors import KeeperUnavailable
        import mlinfra_prefect.keeper.starting as starting
        start = starting._start
        def refuse(context):
            raise starting._unavailable(context.home, "no more processes")

        def tries(what, attempt):
            began = time.time()
            try:
                attempt()
            except KeeperUnavailable as error:
                say(what, text=str(error), seconds=time.time() - began)

        starting._start = refuse
        tries("before", lambda: ask("before"))
        tries("after", lambda: keeper.entrust(context, leasing.ask(
            context, TrainingRequest(max_minutes=5), key=leasing.Key("run", "training", "after"),
            owner=Owner(user="u", host="h"), client=me()).record))
        starting._start = start
        record = ask("meanwhile")
        wait_for("killed")
        starting._start = refuse
        say("refuses")
        tries("meanwhile", lambda: keeper.wait_ready(context, record.id))
    """)
    assert "no more processes" in client.hears("before")["text"]
    assert "no more processes" in client.hears("after")["text"]
    house.hold("plan")
    lease = client.hears("asked")["id"]
    house.held("plan")
    os.kill(client.process.pid, signal.SIGSTOP)
    house.kill_keeper(operations=True)
    (house.handles / "killed").touch()
    house.fail("plan")  # or the plan could be done before the client has looked
    house.let("plan")
    os.kill(client.process.pid, signal.SIGCONT)
    client.hears("refuses")
    if house.processes("watch.py"):
        house.kill_keeper(operations=True)
    found = client.hears("meanwhile")
    assert "no more processes" in found["text"]
    assert found["seconds"] < 10
    assert client.ends() == 0
    house.fail("plan", fails=False)
    house.reap()
    after, meanwhile = judge.records(house.home)  # and no third: nothing was written where nobody would keep it
    assert meanwhile == lease
    record = house.becomes(after, "released")
    assert (record["error"], record["receipt"]["created"]) == ("KeeperUnavailable", [])
