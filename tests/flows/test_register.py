"""`mlinfra-prefect register` against a real server: what it makes, that it may be run again, what then starts runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from mlinfra_prefect.__main__ import main
from mlinfra_prefect.integration.automations import PREFIX
from mlinfra_prefect.integration.deployments import locked_template

CHECKOUT = Path(__file__).resolve().parents[2]
POOL = "here"
TRIES = 30
NAMES = {
    "model-lifecycle/on-demand", "model-lifecycle/nightly", "model-lifecycle/on-dataset", "reap/every-minute",
    "release/for-run",
}  # fmt: skip
START_SECONDS, EVENT_SECONDS = 120.0, 60.0


class Patient(httpx.HTTPTransport):
    """Asks again where the server is busy: its SQLite is locked now and then, and Prefect's own client asks again."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for _ in range(TRIES):
            answer = super().handle_request(request)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            answer.close()
            time.sleep(1)
        return answer


class Server:
    """A Prefect server of these tests, and what they ask it."""

    def __init__(self, place: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.api = httpx.Client(base_url=self.url, timeout=90, transport=Patient())
        self.place = place
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.env = {
            **kept, "PREFECT_HOME": str(place), "PREFECT_API_URL": self.url, "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT1S",
        }  # fmt: skip

    def posted(self, path: str, **body: Any) -> Any:
        answer = self.api.post(path, json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def deployments(self) -> dict[str, dict[str, Any]]:
        flows = {each["id"]: each["name"] for each in self.posted("/flows/filter")}
        return {f"{flows[each['flow_id']]}/{each['name']}": each for each in self.posted("/deployments/filter")}

    def automations(self) -> dict[str, dict[str, Any]]:
        found = self.posted("/automations/filter")
        assert len({each["name"] for each in found}) == len(found), "one is there twice"
        return {each["name"]: each for each in found}

    def runs_of(self, deployment: str) -> list[dict[str, Any]]:
        wanted = {"id": {"any_": [self.deployments()[deployment]["id"]]}}
        return list(self.posted("/flow_runs/filter", deployments=wanted))

    def started(self, deployment: str, **parameters: Any) -> str:
        found = self.deployments()[deployment]["id"]
        return str(self.posted(f"/deployments/{found}/create_flow_run", parameters=parameters)["id"])

    def happened(self, event: str, resource: str, payload: dict[str, Any] | None = None, flow: str = "churn") -> None:
        related = {
            "prefect.resource.id": "prefect.flow.x",
            "prefect.resource.role": "flow",
            "prefect.resource.name": flow,
        }
        told = {
            "event": event, "resource": {"prefect.resource.id": resource}, "related": [related],
            "payload": payload or {}, "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
        }  # fmt: skip
        self.api.post("/events", json=[told]).raise_for_status()

    def lost(self) -> set[str]:
        """The runs of whom the server dropped an event, after four tries against its locked database."""
        dropped = [path.read_text() for path in (self.place / "dlq").glob("*")]
        return {run for each in dropped for run in re.findall(r"prefect\.flow-run\.([0-9a-f-]{36})", each)}

    def does(self, *words: str, cwd: Path, **env: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=cwd, env={**self.env, **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with all its services: a temporary one would schedule nothing. Ended by its pid."""
    here = Server(tmp_path_factory.mktemp("prefect"))
    with (here.place / "server.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(here.port)],
            cwd=here.place, env=here.env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: running.poll() is not None or healthy(here), START_SECONDS)
        assert running.poll() is None, (here.place / "server.log").read_text()[-3000:]
        with temporary_settings({PREFECT_API_URL: here.url}):
            here.posted("/work_pools/", name=POOL, type="process")
            yield here
    finally:
        here.api.close()
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def healthy(server: Server) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return server.api.get("/health").is_success
    return False


def wait_for(what: Callable[[], Any], seconds: float = EVENT_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.5)
    return found


@pytest.fixture
def registered(server: Server, capsys: pytest.CaptureFixture[str]) -> Server:
    assert main(["register", "--pool", POOL]) == 0
    capsys.readouterr()
    return server


def test_the_pool_that_is_made_takes_no_program_from_a_run(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """The server itself refuses a run that names a command, an environment or a directory; others start as ever."""
    assert main(["register", "--pool", "locked", "--create-pool"]) == 0
    capsys.readouterr()
    kept = json.loads((CHECKOUT / "examples" / "locked-work-pool" / "base-job-template.json").read_text())
    assert server.api.get("/work_pools/locked").json()["base_job_template"] == kept == locked_template()
    deployment = server.deployments()["release/for-run"]["id"]
    asked = {"parameters": {"flow_run_id": str(uuid.uuid4())}, "state": {"type": "CANCELLED"}}
    for variables in ({"command": "touch here"}, {"env": {"PATH": "here"}}, {"working_dir": "here"}, {"comand": "x"}):
        answer = server.api.post(
            f"/deployments/{deployment}/create_flow_run", json={**asked, "job_variables": variables}
        )
        assert answer.status_code in {409, 422}, (variables, answer.status_code, answer.text)
        assert next(iter(variables)) in answer.text
    assert server.api.post(f"/deployments/{deployment}/create_flow_run", json=asked).is_success
    assert main(["register", "--pool", POOL]) == 0
    capsys.readouterr()


def test_without_a_server_it_is_one_sentence(capsys) -> None:
    """Registering must not quietly start a server of its own and put the deployments there."""
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert main(["register", "--pool", POOL]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: PREFECT_API_URL: is not set")
    assert told.err.count("\n") == 1
    assert not told.out


def test_a_server_that_does_not_answer_is_one_sentence(capsys) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{closed.getsockname()[1]}/api"}):
            assert main(["register", "--pool", POOL]) == 1
    told = capsys.readouterr().err
    assert "does not answer" in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pool", "nowhere"], "prefect work-pool create --type process nowhere"),
        (["--pool", POOL, "--timezone", "Mars/Olympus"], "timezone: 'Mars/Olympus'"),
        (["--pool", POOL, "--timezone", "../UTC"], "timezone: '../UTC'"),
    ],
)
def test_a_wrong_word_makes_nothing(server, capsys, words, says) -> None:
    before = (server.deployments(), server.automations())
    assert main(["register", *words]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert (server.deployments(), server.automations()) == before


def test_it_makes_the_pool_where_it_is_told_to(server, capsys) -> None:
    assert main(["register", "--pool", "fresh", "--create-pool", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pool_created"]
    assert server.api.get("/work_pools/fresh").json()["type"] == "process"


def test_twice_is_as_good_as_once(registered, capsys) -> None:
    """Ids stay, nothing is doubled; what somebody switched off stays off; what was edited is as in the table again."""
    before = registered.deployments()
    assert set(before) == NAMES
    nightly = before["model-lifecycle/nightly"]
    registered.posted(f"/deployments/{nightly['id']}/pause_deployment")
    name = f"{PREFIX}retrain on mlinfra-prefect.drift.detected"
    automation = registered.automations()[name]
    registered.api.patch(f"/automations/{automation['id']}", json={"enabled": False}).raise_for_status()
    changed = {"parameters": {"epochs": 3}}
    registered.api.patch(f"/deployments/{nightly['id']}", json=changed).raise_for_status()

    assert main(["register", "--pool", POOL, "--timezone", "Europe/Berlin", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["deployments"]
    after = registered.deployments()
    assert {name: each["id"] for name, each in after.items()} == {name: each["id"] for name, each in before.items()}
    assert not any(each["created"] for each in told)
    assert after["model-lifecycle/nightly"]["paused"]
    assert after["model-lifecycle/nightly"]["parameters"]["keep"] is True
    (schedule,) = after["model-lifecycle/nightly"]["schedules"]
    assert schedule["schedule"]["timezone"] == "Europe/Berlin"
    assert len(registered.automations()) == 4
    assert not registered.automations()[name]["enabled"]
    registered.api.patch(f"/automations/{registered.automations()[name]['id']}", json={"enabled": True})
    registered.posted(f"/deployments/{nightly['id']}/resume_deployment")


def test_without_the_automation_the_server_starts_no_release(registered, capsys) -> None:
    assert main(["register", "--pool", POOL, "--no-automation"]) == 0
    assert not [name for name in registered.automations() if "release" in name]


def test_prefect_deploy_in_a_checkout_makes_the_same(registered, capsys) -> None:
    """`prefect deploy --all` finds what `register` made, and leaves it as it was."""
    before, automations = registered.deployments(), registered.automations()
    registered.api.post("/work_pools/", json={"name": "local", "type": "process"}).raise_for_status()
    registered.does("prefect", "--no-prompt", "deploy", "--all", cwd=CHECKOUT)
    after = registered.deployments()
    same = ("id", "entrypoint", "parameters", "description", "tags", "pull_steps", "concurrency_options")
    assert set(after) == NAMES
    for name in NAMES:
        assert {key: after[name][key] or None for key in same} == {key: before[name][key] or None for key in same}, name
    told = {
        name: (each["trigger"], each["actions"][0]["parameters"]) for name, each in registered.automations().items()
    }
    for name, each in automations.items():
        trigger, parameters = told[name]
        assert parameters == each["actions"][0]["parameters"]
        assert _plain(trigger) == _plain(each["trigger"])


def _plain(trigger: dict[str, Any]) -> dict[str, Any]:
    """A trigger without its id; what it expects is a set, which the server writes in any order."""
    return {**trigger, "id": "", "expect": sorted(trigger.get("expect") or ())}


def test_a_worker_anywhere_runs_what_is_installed(registered, home, tmp_path) -> None:
    """No checkout beside it, no pull step: flows are imported by module, and a wrong form ends in one sentence."""
    wrong = registered.started("model-lifecycle/on-demand", accelerator="NOPE")
    quiet = registered.started("reap/every-minute")
    registered.does(
        "prefect", "worker", "start", "--pool", POOL, "--type", "process", "--run-once", cwd=tmp_path,
        PREFECT_WORKER_PREFETCH_SECONDS="0",
    )  # fmt: skip
    message = registered.api.get(f"/flow_runs/{wrong}").json()["state"]["message"]
    assert "accelerator: 'NOPE' is not a known accelerator" in message
    assert "\n" not in message
    # Ours, or the one of this minute: the later one of two is cancelled, for that reason and no other.
    said = {each["id"]: (each["state"]["type"], each["state"]["message"])
            for each in registered.runs_of("reap/every-minute")}  # fmt: skip
    done = ("COMPLETED", "Nothing to release.")
    assert done in said.values()
    assert said[quiet] in {done, ("CANCELLED", "Deployment concurrency limit reached.")}


@pytest.mark.parametrize("parameters", [{"epochs": "many"}, {"epochs": 0}, {"accelerator": 4}, {"max_minutes": 1.5}])
def test_a_form_with_the_wrong_kind_of_value_makes_no_run(registered, parameters) -> None:
    """The server has the flow's own schema: it refuses, and names the field."""
    found = registered.deployments()["model-lifecycle/on-demand"]["id"]
    answer = registered.api.post(f"/deployments/{found}/create_flow_run", json={"parameters": parameters})
    assert answer.is_client_error
    assert f"'{next(iter(parameters))}'" in answer.text


def test_the_schedule_makes_runs(registered) -> None:
    """A server whose scheduler fails (SQLAlchemy 2.1 under Prefect 3.8) says so only in its log."""
    assert wait_for(lambda: registered.runs_of("reap/every-minute"))


def test_events_start_a_retraining_with_what_they_say(registered) -> None:
    """A payload fills the form in; what it does not say is the form's default."""
    registered.happened("mlinfra-prefect.dataset.updated", "acme.churn", {"uri": "/data/churn.npz"})
    registered.happened("mlinfra-prefect.drift.detected", "acme.endpoint", {"endpoint": "churn", "environment": "prod"})

    def both() -> list[dict[str, Any]]:
        runs = [each["parameters"] for each in registered.runs_of("model-lifecycle/on-dataset")]
        return runs if len(runs) == 2 else []

    by_reason = {each.pop("reason"): each for each in wait_for(both)}
    retrained = {"keep": True, "canary": "10,50,100"}
    assert by_reason == {
        "acme.churn was updated": {**retrained, "dataset": "/data/churn.npz"},
        "acme.endpoint drifts": {**retrained, "endpoint": "churn", "environment": "prod"},
    }


def test_a_run_that_dies_or_goes_silent_starts_its_release(registered) -> None:
    """Cancelled and crashed at once; silent after its heartbeats; ours, and one that ended, never."""
    automation = registered.automations()[f"{PREFIX}release after a run without heartbeat"]
    sooner = {
        key: value
        for key, value in automation.items()
        if key not in {"id", "created", "updated", "account", "workspace"}
    }
    sooner["trigger"]["within"] = 10
    registered.api.put(f"/automations/{automation['id']}", json=sooner).raise_for_status()
    cancelled, crashed, ours = (str(uuid.uuid4()) for _ in range(3))
    registered.happened("prefect.flow-run.Cancelled", f"prefect.flow-run.{cancelled}")
    registered.happened("prefect.flow-run.Crashed", f"prefect.flow-run.{crashed}")
    registered.happened("prefect.flow-run.Crashed", f"prefect.flow-run.{ours}", flow="release")
    silent: set[str] = set()

    def released() -> set[str]:
        return {each["parameters"]["flow_run_id"] for each in registered.runs_of("release/for-run")}

    def beats() -> str:
        run = str(uuid.uuid4())
        registered.happened("prefect.flow-run.heartbeat", f"prefect.flow-run.{run}")
        return run

    def found() -> bool:
        # The server takes the changed automation up some time after it has it: an earlier run is watched as before.
        if len(silent) < EVENT_SECONDS:
            silent.add(beats())
        return {cancelled, crashed} - registered.lost() <= released() and bool(silent & released())

    wait_for(found, 2 * EVENT_SECONDS)
    # From here on it watches: of runs that beat now, those that say their end are left alone.
    ended, dead = {beats() for _ in range(5)}, {beats() for _ in range(3)}
    time.sleep(1)
    for run in ended:
        registered.happened("prefect.flow-run.GateRefused", f"prefect.flow-run.{run}")
    wait_for(lambda: dead - registered.lost() <= released() and dead & released())
    assert not released() & {ours, *(ended - registered.lost())}
