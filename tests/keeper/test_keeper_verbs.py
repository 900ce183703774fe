"""Rule: a person steers what serves by name, from another process than who deployed it; what fails harms nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from keeper_harness import House

SECONDS = 120


def typed(house: House, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as somebody at a terminal would."""
    return subprocess.run(
        [sys.executable, "-m", "mlinfra_prefect", *words], env=house.env, cwd=house.handles, capture_output=True,
        text=True, timeout=SECONDS, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def told(house: House, *words: str) -> Any:
    """Run a verb that must work, and return its JSON."""
    done = typed(house, *words, "--json")
    assert done.returncode == 0, (done.stderr, house.words())
    return json.loads(done.stdout)


def listed(house: House) -> dict[int, tuple[str, int | None]]:
    """State and served share of each version, as `endpoints --json` says."""
    (endpoint,) = told(house, "endpoints")
    return {each["version"]: (each["state"], each["share"]) for each in endpoint["versions"]}


def answering(url: str) -> str:
    """The version that answers a request now."""
    with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=10) as answer:
        assert json.load(answer)["ready"] is True
        return str(answer.headers["Mlinfra-Version"])


@pytest.mark.slow
def test_an_endpoint_is_steered_by_name(house: House, digits: Path, contrary: Path) -> None:
    """Promote a canary that waits, go back at once, retire, go back by deploying again, repair, release."""
    house.runs(f"deploy(model({str(digits)!r}), expires_minutes=None, retire_seconds=600)")
    client = house.client(f"""
        deploy(model({str(contrary)!r}), canary=[50], promote=False, expires_minutes=None, retire_seconds=600)
        wait_for({str(house.handles / "go")!r})
    """)
    client.hears("deployed", version=2)
    (endpoint,) = told(house, "endpoints")
    assert listed(house) == {1: ("serving", 50), 2: ("canary", 50)}
    token = typed(house, "endpoints", "--token", "digits").stdout
    assert len(token) > 43

    assert told(house, "promote", "digits", "--reason", "it looks well")["versions"] == [
        {"version": 1, "state": "retiring", "share": 0}, {"version": 2, "state": "serving", "share": 100},
    ]  # fmt: skip
    assert listed(house) == {1: ("retiring", 0), 2: ("serving", 100)}
    assert answering(endpoint["url"]) == "2"
    (house.handles / "go").touch()
    assert client.ends() == 0
    assert listed(house)[2] == ("serving", 100)  # it is nobody's now

    done = typed(house, "rollback", "digits")
    assert (done.returncode, done.stdout) == (0, "digits: rolled back from version 2; version 1 100 % (serving)\n")
    assert answering(endpoint["url"]) == "1"
    told(house, "retire", "digits", "2")
    house.until(lambda: listed(house)[2] == ("retired", 0), "version 2 is gone")
    gone = typed(house, "promote", "digits", "--version", "2")
    assert (gone.returncode, "Version 2 of endpoint 'digits' is gone" in gone.stderr) == (1, True)
    assert listed(house) == {1: ("serving", 100), 2: ("retired", 0)}

    house.until(lambda: not house.processes("watch.py"), "the keeper has gone home")
    for seen in house.processes():
        os.kill(seen.pid, signal.SIGKILL)
    house.until(lambda: not house.processes(), "all is dead")
    assert listed(house) == {1: ("serving", None), 2: ("retired", None)}
    repaired = told(house, "endpoints", "--repair")["repaired"]
    assert {each["result"] for each in repaired} == {"brought back"}
    assert len(repaired) == 2
    assert answering(endpoint["url"]) == "1"
    assert told(house, "endpoints", "--repair") == {"repaired": []}
    # After a rollout, a rollback by deploying, and a repair it is the same; with the endpoint it goes.
    assert typed(house, "endpoints", "--token", "digits").stdout == token
    assert told(house, "release", "digits")["receipt"]["kind"] == "endpoint"
    assert told(house, "endpoints") == []
    assert typed(house, "endpoints", "--token", endpoint["id"]).returncode == 1
    assert not list(house.home.glob("work/*/token"))


def test_a_version_that_never_gets_ready_leaves_the_one_that_serves(house: House, digits: Path) -> None:
    """Its client gets one error with the server's own words; the next deployment is not in its way."""
    house.runs(f"deploy(model({str(digits)!r}))")
    (before,) = told(house, "endpoints")
    client = house.runs(f"""
        import hashlib
        from mlinfra_prefect.errors import MlinfraError
        import mlinfra_prefect.lifecycle.serving as serving
        place = Path("broken")
        shutil.copytree({str(digits)!r}, place)
        (place / "files/model.skops").write_bytes(b"no model")
        manifest = json.loads((place / "manifest.json").read_text())
        manifest["files"][0].update(sha256=hashlib.sha256(b"no model").hexdigest(), size=8)
        (place / "manifest.json").write_text(json.dumps(manifest))
        serving.check_trusted = lambda *_: None  # as where skops is not here to tell
        try:
            deploy(model("broken"))
        except MlinfraError as error:
            say("raised", kind=type(error).__name__, text=str(error))
    """)
    raised = client.hears("raised")
    assert raised["kind"] == "EndpointNotReady"
    assert "could not be loaded" in raised["text"]
    house.becomes(client.hears("deploying")["rollout"], "released")
    (after,) = told(house, "endpoints")
    assert after["versions"][0] == before["versions"][0]
    second = after["versions"][1]
    assert (second["state"], second["share"], "could not be loaded" in second["reason"]) == ("rolled-back", 0, True)
    assert answering(before["url"]) == "1"
    house.runs(f"give_back(deploy(model({str(digits)!r})))")
