"""Rule: a retry of the same flow run picks up what the last try left, and never does the same thing twice."""

from __future__ import annotations

from pathlib import Path

from keeper_harness import House


def test_a_retry_adopts_the_lease_its_running_job_and_its_finished_one(house: House, scratch: Path) -> None:
    """Same key, dead client: the same lease, the same training process, and the finished job's stored artifact."""
    go = scratch / "go"
    work = f"train(record, 'quick'); train(record, 'until_file', {str(go)!r})"
    first = house.client(f"record = ready(on_client_lost='keep', keep_minutes=3); {work}")
    lease = first.hears("ready")["id"]
    quick = first.hears("trained")
    first.hears("news", log="training")
    training = house.processes("until_file")
    first.kill()
    house.until(lambda: house.record(lease)["keep_until"], "it is kept without a client")
    second = house.client(f"record = ready(on_client_lost='keep', keep_minutes=3); {work}; give_back(record)")
    assert second.hears("asked") == {"what": "asked", "id": lease, "adopted": True}
    again = second.hears("trained")
    assert (again["job"], again["artifact"]) == (quick["job"], quick["artifact"])
    second.hears("news", log="training")
    assert house.processes("until_file") == training
    record = house.record(lease)
    assert (record["keep_until"], record["client"]["process"]["pid"]) == (None, second.process.pid)
    go.touch()
    assert second.hears("released")["clean"]
    assert second.ends() == 0
    assert len(list((house.home / "work" / lease / "logs").glob("*.log.txt"))) == 2


def test_a_second_live_runner_is_told_who_has_it(house: House) -> None:
    """Two processes with the same flow run: one lease, and `LeaseHeld` for the second (R13)."""
    first = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = first.hears("ready")["id"]
    second = house.client("""
        from mlinfra_prefect.errors import LeaseHeld
        try:
            ask()
        except LeaseHeld as error:
            say("held", text=str(error))
    """)
    assert lease in second.hears("held")["text"]
    assert second.ends() == 0
    (house.handles / "go").touch()
    assert first.ends() == 0


def test_a_retry_beside_a_lease_that_is_going_opens_the_next_round(house: House) -> None:
    """Where the old lease is releasing, the retry does not wait for it: the next round has its own resources."""
    house.hold("destroy")
    first = house.client("give_back(ready())")
    old = first.hears("ready")["id"]
    house.held("destroy")
    first.kill()
    second = house.client("record = ready(); wait_for('go'); give_back(record)")
    new = second.hears("ready")["id"]
    assert (old[:-2], old[-2:], new[-2:]) == (new[:-2], "-1", "-2")
    assert house.record(old)["state"] == "releasing"
    house.let("destroy")
    house.becomes(old, "released")
    (house.handles / "go").touch()
    assert second.ends() == 0


def test_a_resume_key_is_held_by_one_live_lease_and_says_when_other_code_made_the_checkpoint(house: House) -> None:
    """`ResumeHeld` beside a live lease; after it, resumed across the code change, and the artifact says so."""
    first = house.client("""
        from mlinfra_prefect.errors import ResumeHeld
        record = ready("a")
        other = ready("b")
        import threading
        stopper = threading.Thread(target=lambda: train(record, "until_told", resume="lora"), daemon=True)
        stopper.start()
        wait_for("held")
        try:
            train(other, "quick", resume="lora")
        except ResumeHeld as error:
            say("held", text=str(error))
        keeper.release(context, record.id, reason="done")
        # Its last checkpoint is still being committed: the key is waited for, not refused.
        train(other, "for_seconds", "0", resume="lora", code_hash="code-2")
        give_back(other)
    """)
    first.hears("news", log="training, resumed=False")
    (house.handles / "held").touch()
    assert "lora" in first.hears("held")["text"]
    artifact = first.hears("trained")["artifact"]
    assert artifact["resumed_from"] == "lora/1"
    assert artifact["resumed_across_code"] is True
    path = house.home / "artifacts" / artifact["id"] / "files" / "model.txt"
    assert path.read_text() == "resumed=True"
    first.hears("released")
    first.ends()


def test_a_job_that_was_written_down_but_never_arrived_is_handed_over_again(house: House) -> None:
    """The client died between its note and the node: a retry does not wait for a job that is not there."""
    first = house.client("""
        record = ready(on_client_lost="keep", keep_minutes=3)
        from mlinfra_prefect.local.node import LocalNode
        LocalNode.submitted = lambda *_: die()
        train(record, "quick")
    """)
    lease = first.hears("ready")["id"]
    assert first.ends() != 0
    house.until(lambda: house.record(lease)["keep_until"], "it is kept without a client")
    assert house.record(lease)["jobs"][0]["state"] == "submitted"
    second = house.client(
        "record = ready(on_client_lost='keep', keep_minutes=3); train(record, 'quick'); give_back(record)"
    )
    assert second.hears("trained")["job"] == house.record(lease)["jobs"][0]["job_id"]
    assert second.ends() == 0
