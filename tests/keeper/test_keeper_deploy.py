"""Rule: an endpoint is written ahead and keeper-owned until it is ready; killed before, everything is given back."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

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
    assert house.record(deploying["id"])["state"] == "provisioning"
    killed = client.kill()
    record = house.becomes(deploying["id"], "released")
    assert house.began_release(deploying["id"]) - killed < 5
    assert "rolled back" in record["receipt"]["reason"]
    assert not answers(deploying["url"])
    again = house.client(f"""
        record = deploy(model({str(digits)!r}), port={deploying["port"]})
        give_back(record)
    """)
    assert again.hears("deploying")["port"] == deploying["port"]
    assert again.hears("released")["clean"]
    assert again.ends() == 0
    assert house.record(again.hears("released")["id"])["versions"][0]["state"] == "retired"


def test_a_ready_endpoint_outlives_its_client_and_its_keeper(house: House, digits: Path) -> None:
    """It lives by its own grant, and its name is taken; its server killed, the reaper closes the record."""
    client = house.client(f"""
        from mlinfra_prefect.errors import EndpointExists, UnsupportedHere
        artifact = model({str(digits)!r})
        record = deploy(artifact, expires_minutes=None)
        for options in ({{}}, {{"canary": [10, 100]}}):
            try:
                canary = options.pop("canary", None)
                ask_to_serve(context, artifact, ServingRequest(name="digits"), owner=Owner(user="u", host="h"),
                             client=me(), canary=canary)
            except (EndpointExists, UnsupportedHere) as error:
                say("refused", kind=type(error).__name__, text=str(error))
    """)  # fmt: skip
    endpoint = client.hears("deployed")["id"]
    assert client.ends() == 0
    refused = [event for event in client.events if event["what"] == "refused"]
    assert [event["kind"] for event in refused] == ["EndpointExists", "UnsupportedHere"]
    assert endpoint in refused[0]["text"]
    house.until(lambda: not house.processes("watch.py"), "the keeper has gone home")
    url = house.record(endpoint)["url"]
    assert answers(url)
    assert house.reap()["skipped"] == {endpoint: "its server lives by its own grant"}
    for seen in house.processes("server.py"):
        os.kill(seen.pid, signal.SIGKILL)
    house.until(lambda: not house.processes("agent-", lease=endpoint), "its agent has noticed")
    assert house.reap()["released"] == {endpoint: "its server is gone"}
    assert house.record(endpoint)["receipt"]["destroyed"] == ["1/terraform_data.server"]


def test_an_endpoint_that_expires_is_closed_by_its_keeper(house: House, digits: Path) -> None:
    """The keeper stays for an endpoint that expires, and gives everything back at that moment."""
    client = house.client(f"record = deploy(model({str(digits)!r})); say('up', url=record.url)")
    endpoint, url = client.hears("deployed")["id"], client.hears("up")["url"]
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
    assert not answers(url)


def test_an_expired_endpoint_whose_keeper_is_gone_is_closed_by_the_reaper(house: House, digits: Path) -> None:
    """The dead-man ends the server, the reaper finds the record."""
    client = house.client(f"""
        from datetime import timedelta
        import mlinfra_prefect.lifecycle.serving as serving
        serving.timedelta = lambda **given: timedelta(seconds=9) if "minutes" in given else timedelta(**given)
        deploy(model({str(digits)!r}))
    """)
    endpoint = client.hears("deployed")["id"]
    assert client.ends() == 0
    house.kill_keeper(operations=True)
    house.until(lambda: not house.processes(lease=endpoint), "the server has ended itself", seconds=20)
    assert house.record(endpoint)["state"] == "ready"
    assert house.reap()["released"] == {endpoint: "it expired"}


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
    """In use before: refused by name, nothing written. Taken while the server starts: EndpointNotReady, given back."""
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
        house.becomes(client.hears("deploying")["id"], "released")


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
    house.until(lambda: house.record(deploying["id"])["attempts"][0]["applied_at"], "it is applied")
    house.until(lambda: not house.processes("terraform", lease=deploying["id"]), "Terraform has ended")
    house.kill_keeper(operations=True)
    assert not answers(deploying["url"])
    assert client.hears("up")["answers"]
    assert client.ends() == 0
    assert any("interrupted apply" in line["reason"] for line in house.history(deploying["id"]))
