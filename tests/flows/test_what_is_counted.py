"""What a team with a plan of Prefect Cloud has to count: the page's table says what is told, and here it is told."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker

from mlinfra_prefect import deploy, evaluate, gate, lease, plan, release
from mlinfra_prefect.integration.deployments import shipped

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "prefect-setups.md"
HEARTBEAT_SECONDS = 180
OURS, TASK_RUN = "mlinfra-prefect.", "prefect.task-run."
Counts = tuple[int, int, int, int]
NIGHTLY = (
    "`plan`", "`lease` with one `infra.run`", "`evaluate`", "`evaluate`", "`gate`",
    "`deploy`, the next, canary 10, 50, 100",
)  # fmt: skip


def table() -> dict[str, Counts]:
    """The page's rows: what is done, and then task runs, artifacts, events and log lines."""
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    return {name: (int(a), int(b), int(c), int(d)) for name, a, b, c, d in rows}


class Tally(logging.Handler):
    """Counts what is told to Prefect, step by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._now: Counter[str] = Counter()
        self.steps: dict[str, Counter[str]] = {}
        send = EventsWorker.send

        def counted(worker: EventsWorker, event: Any) -> None:
            self._now["events"] += event.event.startswith(OURS)
            self._now["states"] += event.event.startswith(TASK_RUN)
            self._now["tasks"] += event.event == f"{TASK_RUN}Completed"
            send(worker, event)

        monkeypatch.setattr(EventsWorker, "send", counted)

    def emit(self, record: logging.LogRecord) -> None:
        self._now["lines"] += 1

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._now = self.steps[name] = Counter(artifacts=-artifacts())
        yield
        self._now["artifacts"] += artifacts()
        self._now = Counter()

    def counts(self, name: str) -> Counts:
        found = self.steps[name]
        return found["tasks"], found["artifacts"], found["events"], found["lines"]


def artifacts() -> int:
    """How many artifacts this run has made."""
    context = FlowRunContext.get()
    assert context
    assert context.flow_run
    mine = ArtifactFilterFlowRunId(any_=[context.flow_run.id])
    with get_client(sync_client=True) as client:
        return len(client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=mine)))


@pytest.fixture
def light(tmp_path: Path) -> ModuleType:
    """The flows, in a small project: what travels to a node is the project that a function lies in."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "light"\nversion = "0"\n')
    spec = importlib.util.spec_from_file_location("counted_light_flow", shutil.copy(HERE / "light_flow.py", tmp_path))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tally(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tally]:
    counting, logger = Tally(monkeypatch), logging.getLogger("prefect.task_runs")
    logger.addHandler(counting)
    yield counting
    logger.removeHandler(counting)


@pytest.mark.slow
def test_the_page_says_what_is_told_to_prefect(prefect_api: str, home: Path, light: ModuleType, tally: Tally) -> None:
    """Task runs, artifacts, events and log lines of each thing a flow does; Prefect adds three events a task run."""

    @flow
    def everything() -> None:
        with tally.step("`plan`"):
            plan("cpu")
        with tally.step("`lease` with one `infra.run`"), lease("cpu", max_minutes=5) as infra:
            model = infra.run(light.fit_classifier)
        with lease("cpu", max_minutes=5) as infra:
            with tally.step("one more `infra.run`"):
                infra.run(light.fit_classifier)
            with tally.step("`evaluate`"):
                evaluate(infra, light.score, model)
        with tally.step("`gate`"):
            gate({"accuracy": 0.9}, floors={"accuracy": 0.5})
        with tally.step("a task under `@gpu`"):
            light.fit_on_a_node(1)
        with tally.step("`deploy`, the first version"):
            endpoint = deploy(model, serving="counted", expires_minutes=10)
        with tally.step("`deploy`, the next, canary 10, 50, 100"):
            deploy(model, serving="counted", canary=[10, 50, 100])
        with tally.step("`release` of an endpoint with two versions"):
            release(endpoint)

    everything()
    said = table()
    nightly = said.pop("a run of `model-lifecycle/nightly`")
    assert {name: tally.counts(name) for name in tally.steps} == said
    assert all(step["states"] == 3 * step["tasks"] for step in tally.steps.values())
    assert nightly == tuple(sum(said[name][column] for name in NIGHTLY) for column in range(4))


def test_the_page_says_what_register_makes() -> None:
    """Deployments and automations on the server, and the runs that a schedule makes by itself."""
    page = PAGE.read_text("utf-8")
    made = shipped(heartbeat_seconds=HEARTBEAT_SECONDS)
    assert f"{len(made)} deployments and {sum(len(each.triggers) for each in made)} automations" in page
    assert [each.full_name for each in made if each.cron == "* * * * *"] == ["reap/every-minute"]
    assert f"{24 * 60:,} flow runs a day" in page
