"""What Prefect does to a flow against what we promise: a release slower than its SIGKILL, a hook, the end of all.

A real server and a real ``serve``; what is left is read from outside (`judge` imports none of our code). The tests
stand in the order in which they run: the last one kills everything that the others need.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent
FLOW = "lines_flow.py"
SECONDS = 120.0
PREFECT_KILLS_AFTER = 30.0
EVENTS_LOST_AT_MOST = 3
"""A server on SQLite drops events now and then; not of three runs in a row."""

WRAPPER = """#!{python}
import subprocess, sys, time
from pathlib import Path
place = Path({place!r})
done = subprocess.run([{engine!r}, *sys.argv[1:]]).returncode
if "apply" in sys.argv and (place / "hang").exists():
    (place / "hangs").touch()  # executed, and never answered
    time.sleep(600)
sys.exit(done)
"""

pytestmark = [pytest.mark.slow]


def sibling(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"prefect_lines_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


judge = sibling(HERE / "judge.py")
prefect_place = sibling(HERE.parent / "browser" / "prefect_place.py")


@pytest.fixture(scope="module")
def place() -> Iterator[Any]:
    """A server, a runner that serves, an empty home, and a Terraform that can be made to hang."""
    engine = shutil.which("terraform") or shutil.which("tofu")
    if engine is None:
        pytest.skip("no terraform or tofu on PATH")
    root = Path(tempfile.mkdtemp(prefix="mlp-"))
    here = prefect_place.Place(root)
    (root / "project").mkdir()
    (root / "project" / "pyproject.toml").write_text('[project]\nname = "lines"\nversion = "0"\n')
    shutil.copy(HERE / FLOW, root / "project")
    wrapper = root / "terraform"
    wrapper.write_text(WRAPPER.format(python=sys.executable, place=str(root), engine=engine))
    wrapper.chmod(0o700)
    here.env |= {
        "PREFECT_RUNNER_POLL_FREQUENCY": "1", "MLINFRA_KEEPER_PLACE": "process", "MLINFRA_TERRAFORM": str(wrapper),
    }  # fmt: skip
    left: list[str] = []
    try:
        here.start_server()
        here._start("served", str(root / "project" / FLOW), "serve")
        here.wait(
            lambda: all(has(here, each) for each in ("stubborn", "hooked", "suspended", "doomed")),
            SECONDS,
            "nothing served",
        )
        yield here
    finally:
        left = here.end()
        shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left behind: {left}"


def has(place: Any, flow: str) -> bool:
    return bool(place.answer("GET", f"/deployments/name/{flow}/served").is_success)


def started(place: Any, flow: str, said: Path) -> str:
    deployment = place.deployment(f"{flow}/served")["id"]
    return str(place.posted(f"/deployments/{deployment}/create_flow_run", parameters={"said": str(said)})["id"])


def lease_of(place: Any, run: str) -> dict[str, Any] | None:
    found = [record for record in judge.records(place.home) if record["owner"]["flow_run_id"] == run]
    return found[0] if found else None


def went_to(place: Any, lease: str, state: str) -> float:
    """When a record went to a state, as the ledger has it."""
    with sqlite3.connect(place.home / "ledger.sqlite", timeout=30) as db:
        db.row_factory = sqlite3.Row
        rows = [dict(row) for row in db.execute("SELECT * FROM history WHERE id = ?", (lease,))]
    return min(datetime.fromisoformat(row["time"]).timestamp() for row in rows if row["state"] == state)


def until(holds: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return found


def keepers_of(place: Any) -> list[int]:
    """The watcher, and the operations that it has started."""
    return [pid for pid, told in place.processes().items() if "watch.py" in told or "mlinfra_prefect.keeper" in told]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def assert_clean(lease: dict[str, Any]) -> None:
    assert lease["state"] == "released"
    assert lease["receipt"]["created"] == lease["receipt"]["destroyed"] == ["1/terraform_data.node"]
    looks = [look["found"] for look in lease["receipt"]["searches"]]
    assert len(looks) >= 2
    assert not any(looks[-2:])


def test_a_release_that_takes_longer_than_prefect_waits_outlives_the_killed_flow(place: Any) -> None:
    """*Cancel*, and a drain of 38 s: marked at once; at 30 s Prefect kills the flow; the keeper goes on."""
    said = place.root / "stubborn"
    run = started(place, "stubborn", said)
    until(lambda: list((place.home / "work").rglob("deaf")), "the training is deaf")
    place.posted(f"/flow_runs/{run}/set_state", state={"type": "CANCELLING", "name": "Cancelling"})
    pid, signalled, moment = until(lambda: said.exists() and said.read_text().split(), "the flow is told")
    assert signalled == "TerminationSignal"
    lease = until(lambda: (it := lease_of(place, run)) and it["state"] == "releasing" and it, "it is marked")
    marked = went_to(place, lease["id"], "releasing") - float(moment)
    assert marked < 2, f"{marked:.1f} s after the signal"
    until(lambda: not alive(int(pid)), "Prefect has killed the flow", 2 * PREFECT_KILLS_AFTER)
    killed = time.time()
    assert not said.with_suffix(".ended").exists()
    assert killed - float(moment) > PREFECT_KILLS_AFTER - 5, "it was SIGKILLed, and did not end by itself"
    assert (lease_of(place, run) or {})["state"] == "releasing", "the release takes longer than that"
    judge.wait_gone(place.home)
    done = lease_of(place, run)
    assert done is not None
    assert_clean(done)
    assert "TerminationSignal" in done["receipt"]["reason"]
    assert went_to(place, done["id"], "released") > killed
    assert place.over(run, seconds=SECONDS)["state_type"] == "CANCELLED"


def test_the_hook_starts_a_release_where_flow_and_keeper_died_together(place: Any) -> None:
    """Prefect's runner calls it in its own process, with its keywords; nobody else looks at this home."""
    said = place.root / "hooked"
    run = started(place, "hooked", said)
    flow = int(until(lambda: said.exists() and said.read_text(), "it leases"))
    keepers = keepers_of(place)
    assert keepers
    kill([*keepers, flow])
    until(lambda: (it := lease_of(place, run)) and it["state"] == "released", "the hook has started a release")
    judge.wait_gone(place.home)
    done = lease_of(place, run)
    assert done is not None
    assert_clean(done)
    assert place.over(run, seconds=SECONDS)["state_type"] == "CRASHED"


def test_the_automation_gives_back_what_flow_and_keeper_left(place: Any) -> None:
    """No hook, keeper or reaper: the server sees a run that crashed, and has a worker of this machine release it."""
    place.does("-m", "mlinfra_prefect", "register", "--pool", prefect_place.POOL, "--create-pool")
    reaper = place.deployment("reap/every-minute")["id"]
    place.answer("PATCH", f"/deployments/{reaper}", json={"paused": True}).raise_for_status()
    releases = place.deployment("release/for-run")["id"]
    worker = place.start_worker(asks_every=1)
    runs: list[str] = []
    try:
        done = None
        while done is None and len(runs) < EVENTS_LOST_AT_MOST:
            said = place.root / f"left-{len(runs)}"
            runs.append(started(place, "doomed", said))
            until(
                lambda said=said: said.exists() and (lease_of(place, runs[-1]) or {}).get("state") == "ready",
                "it leases",
            )
            kill([*keepers_of(place), int(said.read_text())])
            with contextlib.suppress(AssertionError):  # its event may be one that the server has dropped
                until(lambda: is_released(place, runs[-1]), "the automation has started a release", seconds=30.0)
            # Only the newest: the start of its lease had the reaper look at those before.
            done = lease_of(place, runs[-1]) if is_released(place, runs[-1]) else None
        assert done is not None
        assert_clean(done)
        assert any(place.over(each, seconds=SECONDS)["state_type"] == "COMPLETED" for each in place.runs(releases))
    finally:
        # Asked to end, a worker may wait for its runs, or for nothing that one could see.
        prefect_place._ended(worker, prefect_place.WORKER_END_SECONDS)
        place._started.remove(worker)
        for left in runs:
            if not is_released(place, left):
                place.does("-m", "mlinfra_prefect", "release", lease_of(place, left)["id"])
    judge.wait_gone(place.home)


def is_released(place: Any, run: str) -> bool:
    return (lease_of(place, run) or {}).get("state") == "released"


def test_a_suspended_run_holds_nothing_and_resumes_on_a_node_of_its_own(place: Any) -> None:
    """Its lease goes with the process; after *resume* no stale handle comes back, though all results are persisted."""
    said = place.root / "suspended"
    run = started(place, "suspended", said)
    until(lambda: place.run(run)["state"]["name"] == "Suspended", "it suspends itself")
    first, state = said.read_text().split()
    assert state == "ready"
    until(lambda: (lease_of(place, run) or {})["state"] == "released", "a suspended run holds nothing")
    place.posted(f"/flow_runs/{run}/resume")
    assert place.over(run, seconds=SECONDS)["state_type"] == "COMPLETED"
    assert said.with_suffix(".done").read_text() == "84"
    again, *_ = said.read_text().splitlines()[1].split()
    assert again != first
    judge.wait_gone(place.home)
    leases = [record for record in judge.records(place.home) if record["owner"]["flow_run_id"] == run]
    assert [lease["id"] for lease in leases] == [first, again]
    for lease in leases:
        assert_clean(lease)


def test_everything_is_killed_at_once_and_one_reap_leaves_nothing(place: Any) -> None:
    """Flow, runner, server, keeper and Terraform, with its apply executed and unanswered: one `reap` closes it."""
    said = place.root / "doomed"
    (place.root / "hang").touch()
    run = started(place, "doomed", said)
    until((place.root / "hangs").exists, "the node is made, and Terraform hangs")
    (place.root / "hang").unlink()
    flow = int(said.read_text())
    ours = dict(judge.processes(place.home))
    terraforms = [pid for pid, told in ours.items() if "terraform" in told and "apply" in told]
    keepers = keepers_of(place)
    prefects = [process.pid for process in place._started]
    nodes = set(ours) - set(terraforms) - set(keepers)
    assert terraforms
    assert keepers
    assert nodes, "the node lives, and nobody is left who knows"
    kill([flow, *prefects, *keepers, *terraforms])
    for process in place._started:
        process.wait()
    until(lambda: not any(map(alive, [flow, *keepers, *terraforms])), "all are dead", 10)
    assert any(map(alive, nodes))
    assert (lease_of(place, run) or {})["state"] == "provisioning"
    told = json.loads(place.does("-m", "mlinfra_prefect", "reap", "--json"))
    lease = lease_of(place, run)
    assert lease is not None
    assert ([each["id"] for each in told["released"]], told["stuck"]) == ([lease["id"]], [])
    assert lease["state"] == "released"
    assert not any(map(alive, nodes))
    judge.wait_gone(place.home, 15)  # the keeper goes home
    assert not list(place.home.rglob("*.tfstate.lock.info"))
    assert lease["receipt"]["searches"][-1]["found"] == lease["receipt"]["searches"][-2]["found"] == []
