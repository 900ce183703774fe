"""SIGKILL of a real flow, anywhere: what it leased is gone without help."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("mlinfra_flow_judge", HERE / "judge.py")
assert _spec
assert _spec.loader
judge = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(judge)


@pytest.fixture
def start(
    prefect_api: str, home: Path, tmp_path: Path
) -> Iterator[Callable[[float], tuple[subprocess.Popen[bytes], Path]]]:
    """Start the doomed flow in a process of its own; it is killed at the end in any case."""
    started: list[subprocess.Popen[bytes]] = []

    def run(seconds: float) -> tuple[subprocess.Popen[bytes], Path]:
        said = tmp_path / "said"
        with (tmp_path / "flow.log").open("wb") as log:
            flow = subprocess.Popen(
                [sys.executable, str(HERE / "killed_flow.py"), str(seconds), str(said)],
                env={**os.environ, "PREFECT_API_URL": prefect_api, "PREFECT_LOGGING_LEVEL": "WARNING"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(flow)
        return flow, said

    yield run
    for flow in started:
        if flow.poll() is None:
            flow.kill()
        flow.wait()


def wait_for(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.005)


def kill(flow: subprocess.Popen[bytes]) -> None:
    flow.send_signal(signal.SIGKILL)
    flow.wait()


def test_sigkill_during_provisioning_leaves_nothing(start, home) -> None:
    """A flow killed while Terraform applies: the operation finishes, and the keeper gives it back."""
    flow, _ = start(30)
    wait_for(lambda: any(r["state"] in {"requested", "provisioning"} for r in judge.records(home)))
    kill(flow)
    judge.wait_gone(home)
    (record,) = judge.records(home)
    assert record["receipt"]["reason"]


def test_sigkill_during_training_drains_and_keeps_the_checkpoint(start, home) -> None:
    """A flow killed while it trains: checkpoint now, release, and the committed checkpoint outlives the lease."""
    flow, said = start(60)
    wait_for(lambda: said.exists() and said.read_text() == "ready")
    wait_for(lambda: any((home / "checkpoints").rglob("step.txt")))
    kill(flow)
    judge.wait_gone(home)
    (record,) = judge.records(home)
    assert "client was lost" in record["receipt"]["reason"]
    assert record["receipt"]["created"] == record["receipt"]["destroyed"] == ["1/terraform_data.node"]
    assert any((home / "checkpoints").rglob("step.txt"))
    # The training saw the stop, returned its model, and the keeper stored it in the flow's stead.
    assert [job["state"] for job in record["jobs"]] == ["succeeded"]
    assert (home / "artifacts" / record["jobs"][0]["artifact_id"] / "artifact.json").exists()


def test_sigkill_during_deploy_rolls_back(start, home) -> None:
    """A flow killed before its first version serves: router and server are given back, name and ports are free."""
    flow, said = start(0)
    wait_for(lambda: said.exists() and said.read_text() == "deploying", 90)
    wait_for(lambda: any(r["kind"] == "rollout" and r["state"] == "provisioning" for r in judge.records(home)))
    kill(flow)
    judge.wait_gone(home)
    _, endpoint, rollout = judge.records(home)
    assert (endpoint["kind"], rollout["kind"]) == ("endpoint", "rollout")
    assert [(each["version"], each["state"]) for each in endpoint["versions"]] == [(1, "rolled-back")]


def test_sigkill_during_release_finishes_it(start, home) -> None:
    """A flow killed while its lease is released: the keeper finishes."""
    flow, said = start(0)
    wait_for(lambda: said.exists() and said.read_text() == "trained", 90)
    wait_for(lambda: any(r["state"] == "releasing" for r in judge.records(home)))
    kill(flow)
    judge.wait_gone(home)
    assert judge.records(home)[0]["receipt"]["destroyed"] == ["1/terraform_data.node"]


def test_sigterm_gives_everything_back(start, home) -> None:
    """SIGTERM, as a worker sends it on cancel: one small write, and the keeper does the rest."""
    flow, said = start(60)
    wait_for(lambda: said.exists() and said.read_text() == "ready")
    flow.send_signal(signal.SIGTERM)
    flow.wait(60)
    judge.wait_gone(home)
