"""Artifacts: made in every kind of run, never outside of one, and never at a run's expense."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any
from uuid import UUID

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from mlinfra_prefect.integration import artifacts
from mlinfra_prefect.integration.artifacts import (
    artifact_key,
    show_endpoint,
    show_plan,
    show_receipt,
    show_rollout,
    show_timeline,
    show_verdict,
)
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.model.offer import Plan, PlannedResource
from mlinfra_prefect.model.receipt import Receipt, Search
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest
from mlinfra_prefect.model.verdict import Check, Verdict
from mlinfra_prefect.testing.records import MOMENT, sample_artifact, sample_endpoint, sample_lease, sample_offer

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # a coroutine that nobody awaited

PASSED = Verdict(kind="gate", ok=True, reason="auc 0.91", checks=(Check(name="auc", ok=True, detail="0.91"),))


@pytest.fixture(autouse=True)
def fresh_warnings() -> Iterator[None]:
    """Each test is a process that has warned of nothing yet."""
    artifacts._warned.clear()
    yield
    artifacts._warned.clear()


def plan(name: str = "training") -> Plan:
    return Plan(
        request=TrainingRequest(name=name, platform="local"), platform="local", offers=(sample_offer(),),
        offer=sample_offer(), stack="local-node", engine="terraform 1.11.4",
        resources=(PlannedResource(address="terraform_data.node", type="terraform_data", action="create"),),
        max_minutes=90, estimate_usd=0.75, made_at=MOMENT,
    )  # fmt: skip


def receipt() -> Receipt:
    look = Search(what="processes of it", where="laptop", at=MOMENT)
    return Receipt(
        kind="lease", id=sample_lease().id, ledger_id="7f0c", reason="its block ended", attempts=1, created=("1/a",),
        destroyed=("1/a",), searches=(look, look), requested_at=MOMENT, released_at=MOMENT, up_seconds=1,
        trained_seconds=1, idle_seconds=0, cost_usd=0,
    )  # fmt: skip


def rollout() -> RolloutRecord:
    return RolloutRecord(
        id="r0f3c5d7e9b1a2c4d6e8f-2", ledger_id="7f0c", name="churn", environment="dev", platform="local",
        owner=sample_lease().owner, client=Client(kind="none"), created_at=MOMENT, renewed_until=MOMENT,
        endpoint=sample_endpoint().id, version=2, serving=ServingRequest(name="churn"), artifact=sample_artifact(),
        ports=(9001,), until=MOMENT,
    )  # fmt: skip


def stored(key: str) -> list[Artifact]:
    """What Prefect has under a key."""
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "mlinfra_prefect"]


def test_each_artifact_is_there_under_its_key() -> None:
    """Markdown of the run that made it, with a key that says what it is of; an endpoint's has its environment too."""
    lease = sample_lease(state=State.RELEASED, ready_at=MOMENT, releasing_at=MOMENT, released_at=MOMENT)

    @flow
    def run() -> tuple[list[UUID | None], UUID]:
        made = [
            show_plan(plan()),
            show_receipt(receipt(), lease),
            show_endpoint(sample_endpoint()),
            show_timeline(lease, sample_endpoint()),
            show_verdict(PASSED, "Churn model!"),
            show_rollout(rollout(), sample_endpoint()),
        ]
        return made, FlowRunContext.get().flow_run.id

    made, run_id = run()
    keys = ("plan-training", "receipt-training", "endpoint-dev-churn", "timeline-training", "gate-churn-model",
            "rollout-dev-churn")  # fmt: skip
    begins = ("## Plan for training", "## Receipt of lease", "## [churn](", "![lease training, endpoint churn](data:",
              "## Gate of Churn model\\!: passed", "## Rollout of churn, version 2")  # fmt: skip
    for artifact_id, key, begin in zip(made, keys, begins, strict=True):
        (found,) = [each for each in stored(f"mlinfra-{key}") if each.id == artifact_id]
        assert (found.type, found.flow_run_id, found.task_run_id) == ("markdown", run_id, None)
        assert found.data.startswith(begin), found.data[:80]
        assert found.description


def test_in_every_kind_of_run() -> None:
    """Sync and async flows and tasks, threads of task runners and of users: always an id, never a coroutine."""

    @task
    def in_task() -> tuple[UUID | None, UUID]:
        return show_plan(plan("in-task")), TaskRunContext.get().task_run.id

    @task
    async def in_async_task() -> tuple[UUID | None, UUID]:
        return show_plan(plan("in-async-task")), TaskRunContext.get().task_run.id

    def in_thread() -> UUID | None:
        found: list[UUID | None] = []
        thread = threading.Thread(target=copy_context().run, args=(lambda: found.append(show_plan(plan("thread"))),))
        thread.start()
        thread.join()
        return found[0]

    @flow
    def sync_flow() -> list[Any]:
        return [in_task(), in_task.submit().result(), in_thread()]

    @flow
    async def async_flow() -> list[Any]:
        return [
            show_plan(plan("async-flow")),
            await in_async_task(),
            await asyncio.to_thread(show_plan, plan("to-thread")),
        ]

    called, submitted, threaded = sync_flow()
    direct, awaited, to_thread = asyncio.run(async_flow())
    for made, task_run in (called, submitted, awaited):
        assert isinstance(made, UUID)
        (found,) = [
            each for each in (*stored("mlinfra-plan-in-task"), *stored("mlinfra-plan-in-async-task")) if each.id == made
        ]
        assert found.task_run_id == task_run
    assert all(isinstance(each, UUID) for each in (threaded, direct, to_thread))


def test_the_same_key_keeps_a_history() -> None:
    """A second run of the same lease name adds to the first, and replaces nothing."""

    @flow
    def run() -> UUID | None:
        return show_verdict(PASSED, "history")

    assert {run(), run()} == {each.id for each in stored("mlinfra-gate-history")}


def test_outside_of_a_run_nothing_is_asked_of_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    """No artifact, no client, and so no server that would be started for one."""
    monkeypatch.setattr(artifacts, "get_client", lambda **_: pytest.fail("a client was made"))
    assert show_plan(plan()) is None
    assert not artifacts._warned.is_set()


def test_switched_off_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """`PREFECT_INTEGRATIONS_MLINFRA_ARTIFACTS_ENABLED=false`."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_MLINFRA_ARTIFACTS_ENABLED", "false")

    @flow
    def run() -> UUID | None:
        return show_verdict(PASSED, "switched off")

    assert run() is None
    assert stored("mlinfra-gate-switched-off") == []


def refusing(**_: object) -> Any:
    raise RuntimeError("no artifacts today")


def broken(_: object) -> Plan:
    raise ZeroDivisionError


@pytest.mark.parametrize("trouble", ["refuses", "unreachable", "cannot be rendered"])
def test_without_the_api_the_run_goes_on(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It completes, and one warning says what is missing, however many artifacts are."""

    @flow
    def run() -> list[UUID | None]:
        if trouble == "unreachable":
            with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
                return [show_plan(plan()), show_verdict(PASSED, "x")]
        if trouble == "refuses":
            monkeypatch.setattr(artifacts, "get_client", refusing)
        else:
            monkeypatch.setattr(artifacts, "plan_markdown", broken)
            monkeypatch.setattr(artifacts, "verdict_markdown", lambda *_, **__: 1 / 0)
        return [show_plan(plan()), show_verdict(PASSED, "x")]

    with caplog.at_level(logging.WARNING, "mlinfra_prefect"):
        assert run() == [None, None]
    (warning,) = heard(caplog)
    assert "Artifacts are missing" in warning


def test_a_hanging_api_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The run does not wait for an answer that does not come."""
    over = threading.Event()
    monkeypatch.setattr(artifacts, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(artifacts, "get_client", lambda **_: over.wait(60))

    @flow
    def run() -> UUID | None:
        return show_verdict(PASSED, "hanging")

    with caplog.at_level(logging.WARNING, "mlinfra_prefect"):
        assert run() is None
        over.set()
    assert "no answer" in heard(caplog)[0]


@pytest.mark.parametrize("subject", ["Ünï cöde", "a" * 63, "--", "", "A|B\n`c`"])
def test_any_subject_makes_a_key_that_prefect_takes(subject: str) -> None:
    """Lower case letters, digits and dashes, whatever a person wrote."""
    made: Callable[[], UUID | None] = flow(name="keys")(lambda: show_verdict(PASSED, subject))
    assert set(artifact_key("gate", subject)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert isinstance(made(), UUID)
