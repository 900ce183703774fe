"""A lease and a training in each set-up: the run ends well, the receipt is clean, and nothing of it is left.

A real server, a real `flow.serve`, a real process worker, and plain `python flow.py` with no server configured.
Whether anything is left is read from outside: the ledger's file and ``/proc`` (`judge` imports none of our code).
Notebooks are in ``tests/integration/test_notebook.py``, task runners in a process that lives on beside it in
``test_runners.py``, PID namespaces in ``tests/keeper/test_keeper_place.py``.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
FLOW = "light_flow.py"
RUN_SECONDS, CANCEL_SECONDS = 120.0, 60.0
LONG = 120.0
"""Seconds that a training lasts which is going to be cancelled."""
TERMINATED = "its block ended with TerminationSignal"
"""What the flow itself writes into the ledger: a lost client would read otherwise."""

pytestmark = pytest.mark.slow


def sibling(path: Path) -> ModuleType:
    """Import a module that stands beside the tests; pytest's importlib mode imports no siblings."""
    spec = importlib.util.spec_from_file_location(f"where_it_runs_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


judge = sibling(HERE / "judge.py")
prefect_place = sibling(HERE.parent / "browser" / "prefect_place.py")
Record = dict[str, Any]


@pytest.fixture(scope="module")
def place() -> Iterator[Any]:
    """A Prefect server and an empty home beside a project with the flow. What is left at the end fails."""
    # Sockets and pipes in the home have short names only.
    root = Path(tempfile.mkdtemp(prefix="mlr-"))
    here = prefect_place.Place(root)
    # Runners ask for runs every 10 s; keepers live where a host's would, also where these tests run in a container.
    here.env |= {
        "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "MLINFRA_KEEPER_PLACE": "process",
    }
    (root / "project").mkdir()
    (root / "project" / "pyproject.toml").write_text('[project]\nname = "light"\nversion = "0"\n')
    shutil.copy(HERE / FLOW, root / "project")
    left: list[str] = []
    try:
        here.start_server()
        yield here
    finally:
        left = here.end()
        shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def served(place: Any) -> str:
    """`python light_flow.py serve`; returns the deployment's id."""
    place._start("served", str(place.root / "project" / FLOW), "serve")
    place.wait(lambda: has(place, "light/served"), prefect_place.START_SECONDS, "nothing is served")
    return str(place.deployment("light/served")["id"])


@pytest.fixture(scope="module")
def pooled(place: Any) -> str:
    """A deployment on a process pool, with a worker; returns its id."""
    place.posted("/work_pools/", name=prefect_place.POOL, type="process")
    flow = place.posted("/flows/", name="light")["id"]
    project = {"directory": str(place.root / "project")}
    deployment = place.posted(
        "/deployments/", name="pooled", flow_id=flow, entrypoint=f"{FLOW}:light", work_pool_name=prefect_place.POOL,
        pull_steps=[{"prefect.deployments.steps.set_working_directory": project}],
    )  # fmt: skip
    place.start_worker(asks_every=1.0)
    return str(deployment["id"])


@pytest.fixture(params=["served", "pooled"])
def deployment(request: pytest.FixtureRequest) -> str:
    """The flow under `flow.serve`, and on a process worker."""
    return str(request.getfixturevalue(request.param))


def has(place: Any, name: str) -> bool:
    return bool(place.answer("GET", f"/deployments/name/{name}").is_success)


def started(place: Any, deployment: str, **parameters: Any) -> str:
    return str(place.posted(f"/deployments/{deployment}/create_flow_run", parameters=parameters)["id"])


def leases_of(place: Any, run: str) -> list[Record]:
    return [record for record in judge.records(place.home) if record["owner"]["flow_run_id"] == run]


def assert_given_back(lease: Record) -> None:
    """Released, all that was created was destroyed, and the last two looks found nothing."""
    assert lease["state"] == "released"
    receipt = lease["receipt"]
    assert receipt["created"] == receipt["destroyed"] == ["1/terraform_data.node"]
    looks = [look["found"] for look in receipt["searches"]]
    assert len(looks) >= 2
    assert not any(looks[-2:])


def test_a_run_leaves_a_clean_receipt_and_nothing_else(place: Any, deployment: str) -> None:
    """Started through the API, in a process of the runner's or the worker's."""
    run = started(place, deployment)
    ended = place.over(run, seconds=RUN_SECONDS)
    assert ended["state_type"] == "COMPLETED", f"{ended['state']}\n{place.logs()}"
    (lease,) = leases_of(place, run)
    assert_given_back(lease)
    assert [job["state"] for job in lease["jobs"]] == ["succeeded"]
    judge.wait_gone(place.home)


def test_cancelled_the_lease_begins_to_go_before_prefect_kills_anything(place: Any, deployment: str) -> None:
    """*Cancel* in the UI is this call: the flow marks its lease at once, and the keeper does the rest."""
    run = started(place, deployment, seconds=LONG)
    place.wait(lambda: trains(place, run), RUN_SECONDS, "nothing trains")
    began = time.monotonic()
    place.posted(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    place.wait(lambda: leases_of(place, run)[0]["state"] != "ready", CANCEL_SECONDS, "the lease is not marked")
    marked = time.monotonic() - began
    judge.wait_gone(place.home)
    (lease,) = leases_of(place, run)
    assert_given_back(lease)
    assert TERMINATED in lease["receipt"]["reason"]
    assert place.over(run, seconds=CANCEL_SECONDS)["state_type"] == "CANCELLED"
    assert marked < 30, f"{marked:.1f} s: Prefect would have killed the flow before"


def trains(place: Any, run: str) -> bool:
    """Whether the run's training has written its first file, which goes with the lease."""
    state = place.run(run)["state"]
    assert state["type"] not in prefect_place.OVER, state
    return any(list((place.home / "work" / lease["id"]).rglob("model.json")) for lease in leases_of(place, run))


@pytest.mark.parametrize(("flow", "server"), [("in_threads", False), ("in_processes", True)])
def test_plain_python_with_each_task_runner(place: Any, flow: str, server: bool) -> None:
    """`python flow.py`; where no API is configured, Prefect's temporary server comes and goes, and so do the leases."""
    env = dict(place.env)
    if not server:
        del env["PREFECT_API_URL"]
        env["PREFECT_HOME"] = str(place.root / "alone")
    before = {record["id"] for record in judge.records(place.home)}
    ended = subprocess.run(
        [sys.executable, FLOW, flow], cwd=place.root / "project", env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_SECONDS, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-4000:]
    assert ("temporary server" not in ended.stdout) is server
    assert "Completed()" in ended.stdout
    made = [record for record in judge.records(place.home) if record["id"] not in before]
    assert len(made) == 2
    for lease in made:
        assert_given_back(lease)
    judge.wait_gone(place.home)
    assert server or not carrying(f"PREFECT_HOME={env['PREFECT_HOME']}"), "the temporary server is left"


def carrying(mark: str) -> list[int]:
    """Living processes with a variable in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found
