"""Rule: `released` is never said with anything left; what cannot be destroyed is `stuck`, and retried for ever."""

from __future__ import annotations

from pathlib import Path

from keeper_harness import House


def test_a_destroy_that_fails_is_stuck_after_three_passes_and_goes_when_it_works(house: House) -> None:
    """With back-off, with the reason, with the node gone meanwhile: what costs money is ended all the same."""
    house.fail("destroy")
    client = house.client("""
        from mlinfra_prefect.errors import NotYetDestroyed
        record = ready()
        try:
            give_back(record, "done with it")
        except NotYetDestroyed as error:
            say("stuck", text=str(error))
    """)
    lease = client.hears("ready")["id"]
    assert "made to fail" in client.hears("stuck")["text"]
    assert client.ends() == 0
    record = house.record(lease)
    assert (record["state"], record["failures"] >= 3, record["receipt"]) == ("stuck", True, None)
    assert not house.processes("agent", lease=lease)
    assert lease in house.reap()["stuck"]
    house.fail("destroy", fails=False)
    assert list(house.reap()["released"]) == [lease]
    record = house.record(lease)
    assert record["receipt"]["reason"] == "done with it"
    assert record["receipt"]["destroyed"] == ["1/terraform_data.node"]
    moments = [line["time"] for line in house.history(lease) if "release pass" in line["reason"]]
    assert len(moments) >= 4


def test_a_survivor_is_swept_and_stands_in_the_receipt(house: House) -> None:
    """A daemon that left its process group and ignores SIGTERM carries the mark: found, ended, looked for again."""
    client = house.client("record = ready(); train(record, 'breeder'); give_back(record)")
    receipt = client.hears("released")["receipt"]
    assert client.ends() == 0
    assert len(receipt["searches"]) >= 3
    assert "python" in receipt["searches"][0]["found"][0]
    assert receipt["searches"][0]["ended"] == receipt["searches"][0]["found"]
    assert [search["found"] for search in receipt["searches"][-2:]] == [[], []]


def test_an_agent_that_ignores_its_grant_does_not_survive_either(house: House) -> None:
    """A stopped (hung) agent hears nothing: the sweep ends it, by pid and start time."""
    import os
    import signal

    client = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = client.hears("ready")["id"]
    agent = house.processes("agent-", "run", lease=lease)
    os.kill(agent[0].pid, signal.SIGSTOP)
    (house.handles / "go").touch()
    receipt = client.hears("released")["receipt"]
    assert client.ends() == 0
    assert any(str(agent[0].pid) in name for name in receipt["searches"][0]["found"])


def test_a_state_that_cannot_be_read_does_not_stop_a_local_release(house: House) -> None:
    """A 0-byte state (a full disk): on this platform everything is found by its mark, so the sweep decides (R3)."""
    client = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = client.hears("ready")["id"]
    state = Path(house.record(lease)["attempts"][0]["directory"]) / "terraform.tfstate"
    state.write_bytes(b"")
    (house.handles / "go").touch()
    receipt = client.hears("released")["receipt"]
    assert client.ends() == 0
    assert receipt["created"] == ["1/terraform_data.node"]
    assert receipt["destroyed"] == []  # Terraform destroyed nothing, and the receipt does not say so
    assert any("cannot be read" in line["reason"] for line in house.history(lease))


def test_a_terraform_directory_that_is_gone_does_not_stop_a_local_release(house: House) -> None:
    """Somebody tidied up by hand: the agent dies with its directory or by the sweep, and the record is closed."""
    import shutil

    client = house.client("record = ready(); wait_for('go'); give_back(record)")
    lease = client.hears("ready")["id"]
    shutil.rmtree(Path(house.record(lease)["attempts"][0]["directory"]).parent)
    (house.handles / "go").touch()
    assert client.hears("released")["clean"]
    assert client.ends() == 0


def test_an_apply_that_fails_tries_once_more_and_tells_the_client_why(house: House) -> None:
    """Two attempts, each with a state of its own, then the client gets Terraform's words, and nothing is left."""
    house.fail("apply")
    client = house.client("""
        try:
            ready()
        except Exception as error:
            say("raised", kind=type(error).__name__, text=str(error))
    """)
    lease = client.hears("asked")["id"]
    raised = client.hears("raised")
    assert raised["kind"] == "TerraformFailed"
    assert "made to fail" in raised["text"]
    assert client.ends() == 0
    record = house.becomes(lease, "released")
    assert [attempt["state"] for attempt in record["attempts"]] == ["released", "released"]
    assert house.calls("apply") == 2


def test_what_nobody_foresaw_reaches_the_client_and_is_given_back(house: House) -> None:
    """A disk that cannot take the node's directory is an OSError deep inside: one sentence, no endless wait."""
    house.runs("context")
    client = house.client("""
        try:
            record = ask()
            (context.home.work / record.id).write_text("in the way")
            keeper.wait_ready(context, record.id, timeout=60)
        except Exception as error:
            say("raised", kind=type(error).__name__, text=str(error))
    """)
    lease = client.hears("asked")["id"]
    raised = client.hears("raised")
    (house.home / "work" / lease).unlink(missing_ok=True)
    assert raised["text"], raised
    client.ends()
    house.becomes(lease, "released")
