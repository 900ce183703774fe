"""Rule: a first deployment is written ahead and keeper-owned until it serves; killed before, everything is given back.

What a later deployment does to an endpoint that stands is in test_keeper_rollouts.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

import keeper_judge as judge
import pytest
from keeper_harness import House


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=2) as answer:
            return json.load(answer)["ready"] is True
    except OSError:
        return False


def test_a_client_killed_during_a_deploy_leaves_neither_server_nor_name_nor_port(house: House, digits: Path) -> None:
    """Rolled back by the keeper alone; the same name and the same port can be had again."""
    client = house.client(f"deploy(model({str(digits)!r}), expires_minutes=None)")
    deploying = client.hears("deploying")
    house.until(lambda: house.processes("server.py"), "the server was started")
    assert house.record(deploying["rollout"])["state"] == "provisioning"
    killed = client.kill()
    rollout, endpoint = (house.becomes(deploying[which], "released") for which in ("rollout", "id"))
    assert house.began_release(deploying["rollout"]) - killed < 5
    assert all("rolled back" in each["receipt"]["reason"] for each in (rollout, endpoint))
    assert [(each["state"], each["share"]) for each in endpoint["versions"]] == [("rolled-back", 0)]
    assert not answers(deploying["url"])
    again = house.client(f"""
        record = deploy(model({str(digits)!r}), port={deploying["port"]})
        give_back(record)
    """)
    assert again.hears("deploying")["port"] == deploying["port"]
    assert again.hears("released")["clean"]
    assert again.ends() == 0
    assert house.record(again.hears("released")["id"])["versions"][0]["state"] == "retired"


def test_a_client_killed_before_the_first_rollout_leaves_no_empty_endpoint(house: House, digits: Path) -> None:
    """Between the two write-ahead records: the name is given back though nothing was ever started for it."""
    house.client(f"""
        import mlinfra_prefect.lifecycle.serving as serving
        serving._create_rollout = lambda *_, **__: die()
        deploy(model({str(digits)!r}), expires_minutes=None)
    """).ends()
    (endpoint,) = judge.records(house.home)
    record = house.becomes(endpoint, "released")
    assert "client was lost" in record["receipt"]["reason"]
    assert record["versions"] == []


def test_an_endpoint_outlives_its_client_and_its_keeper_and_its_server_comes_back(house: House, digits: Path) -> None:
    """It lives by grants of its own: the reaper leaves it alone, and who kills its server has it started again."""
    client = house.runs(f"deploy(model({str(digits)!r}), expires_minutes=None)")
    deployed = client.hears("deployed")
    endpoint, rollout = deployed["id"], deployed["rollout"]
    house.until(lambda: not house.processes("watch.py"), "the keeper has gone home")
    url = house.record(endpoint)["url"]
    assert answers(url)
    by_its_own = "its server lives by its own grant"
    assert house.reap()["skipped"] == {endpoint: by_its_own, rollout: by_its_own}
    (server,) = house.processes("server.py")
    os.kill(server.pid, signal.SIGKILL)
    house.until(
        lambda: [each for each in house.processes("server.py") if each.pid != server.pid], "it is started again"
    )
    house.until(lambda: answers(url), "it answers again")
    assert house.reap()["skipped"] == {endpoint: by_its_own, rollout: by_its_own}
    assert [attempt["number"] for attempt in house.record(rollout)["attempts"]] == [1]
    house.runs(f"give_back(context.record({endpoint!r}))")


def test_an_endpoint_that_expires_is_closed_by_its_keeper(house: House, digits: Path) -> None:
    """The keeper stays for an endpoint that expires, and gives everything back at that moment."""
    client = house.client(f"record = deploy(model({str(digits)!r})); say('up', url=record.url)")
    endpoint, url = client.hears("deployed")["id"], client.hears("up")["url"]
    rollout = client.hears("deployed")["rollout"]
    assert client.ends() == 0
    assert answers(url)
    # Five minutes are over at once: the record is all that a keeper knows of time.
    house.runs(f"""
        from mlinfra_prefect.ledger import revise
        from mlinfra_prefect.keeper.desk import lay, wake
        over = lambda record: record.revised(expires_at=context.ledger.now())
        lay(context, revise(context.ledger, {endpoint!r}, over, actor="test", reason="time goes by"))
        wake(context.home)
    """)
    assert house.becomes(endpoint, "released")["receipt"]["reason"] == "it expired"
    assert house.record(rollout)["receipt"]["reason"] == "endpoint: it expired"
    assert not answers(url)


def test_an_expired_endpoint_whose_keeper_is_gone_is_closed_by_the_reaper(house: House, digits: Path) -> None:
    """The dead-man ends router and server, the reaper finds the record; its version goes with it."""
    client = house.client(f"""
        from datetime import timedelta
        import mlinfra_prefect.lifecycle.serving as serving
        serving.timedelta = lambda **given: timedelta(seconds=20) if "minutes" in given else timedelta(**given)
        deploy(model({str(digits)!r}))
    """)
    endpoint, rollout = client.hears("deployed")["id"], client.hears("deployed")["rollout"]
    assert client.ends() == 0
    house.kill_keeper(operations=True)
    for each in (endpoint, rollout):
        house.until(lambda each=each: not house.processes(lease=each), "it has ended itself", seconds=40)
        assert house.record(each)["state"] == "ready"
    assert house.reap()["released"] == {endpoint: "it expired"}
    assert house.record(rollout)["state"] == "released"


def test_a_server_that_never_gets_ready_is_given_back_with_its_words(house: House, digits: Path) -> None:
    """A model that is none: refused before anything is written, where that is knowable; else EndpointNotReady with the
    server's own sentence, and everything given back. A stored file that changed is refused, too."""
    client = house.client(f"""
        import hashlib
        from mlinfra_prefect.errors import MlinfraError
        import mlinfra_prefect.lifecycle.serving as serving
        place = Path("broken")
        shutil.copytree({str(digits)!r}, place)
        (place / "files/model.skops").write_bytes(b"no model")
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"][0].update(sha256=hashlib.sha256(b"no model").hexdigest(), size=8)
        (place / "manifest.json").write_text(json.dumps(manifest))
        artifact = model("broken")

        def tries():
            try:
                deploy(artifact)
            except MlinfraError as error:
                say("raised", kind=type(error).__name__, text=str(error))
            for seen in context.ledger.records():
                keeper.wait_released(context, seen.record.id, timeout=60)

        tries()
        serving.check_trusted = lambda *_: None  # as where skops is not here to tell
        tries()
        (artifact.path / "model.skops").write_bytes(b"changed!")
        tries()
    """)
    assert client.ends() == 0, client.errors.read_text()
    known, served, changed = [event for event in client.events if event["what"] == "raised"]
    assert (known["kind"], served["kind"], changed["kind"]) == ("InvalidInput", "EndpointNotReady", "ArtifactCorrupted")
    assert "could not be loaded" in served["text"]
    assert len([event for event in client.events if event["what"] == "deploying"]) == 1


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_port_that_somebody_else_has(house: House, digits: Path, when: str) -> None:
    """In use before: refused by name, nothing written. Taken while the router starts: given back, and why is told."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if when == "before":
            listener.listen()
        client = house.client(f"""
            from mlinfra_prefect.errors import MlinfraError
            import mlinfra_prefect.local.platform as platform
            if {when!r} == "meanwhile":
                platform._free = lambda port: True
            try:
                deploy(model({str(digits)!r}), port={port})
            except MlinfraError as error:
                say("raised", kind=type(error).__name__, text=str(error))
        """)
        raised = client.hears("raised")
        assert client.ends() == 0
    if when == "before":
        assert raised["kind"] == "InvalidInput"
        assert "port" in raised["text"]
        assert not any(event["what"] == "deploying" for event in client.events)
    else:
        assert raised["kind"] == "EndpointNotReady"
        assert f"Port {port} of endpoint 'digits' is in use" in raised["text"]
        for which in ("id", "rollout"):
            house.becomes(client.hears("deploying")[which], "released")


def test_a_second_look_at_ready_is_the_server_s_own(house: House, digits: Path) -> None:
    """Keeper and operation killed while the server loads: the next operation waits for it before it says ready."""
    client = house.client(f"""
        from mlinfra_prefect.local.client import ready as answers
        record = deploy(model({str(digits)!r}))
        say("up", answers=answers(record.url))
        give_back(record)
    """)
    deploying = client.hears("deploying")
    house.until(lambda: house.processes("server.py"), "the server was started")
    house.until(lambda: house.record(deploying["rollout"])["attempts"][0]["applied_at"], "it is applied")
    house.until(lambda: not house.processes("terraform", lease=deploying["rollout"]), "Terraform has ended")
    house.kill_keeper(operations=True)
    assert not answers(deploying["url"])
    assert client.hears("up")["answers"]
    assert client.ends() == 0
    assert any("interrupted apply" in line["reason"] for line in house.history(deploying["rollout"]))
