"""Rows about the end of runs: the process of these tests outlives every flow run, as a notebook does."""

from __future__ import annotations

import cloudpickle
import node_work
import pytest
from integration_harness import Asked, eventually, row
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Crashed, Failed, Paused, Running, Suspended

from mlinfra_prefect import (
    Infra,
    deploy,
    evaluate,
    lease,
    plan,
    probe,
    promote,
    provision,
    release,
    retire,
    rollback,
    train,
)
from mlinfra_prefect.errors import LeaseLost
from mlinfra_prefect.integration import phases, run_end, serving
from mlinfra_prefect.model.lease import State as LeaseState


@row("provision-and-release")
def test_bare_phases_are_tasks_of_the_run(asked: Asked) -> None:
    """`provision`, `train`, `evaluate`, `release` without a block: nodes of the run's graph, each with its name."""

    @flow
    def run() -> tuple[float, float]:
        made = plan("cpu", max_minutes=5, code=node_work.fit)
        assert made.resources
        assert not asked.leases
        infra = provision("cpu", max_minutes=5)
        model = train(infra, node_work.fit, 0.75)
        scores = evaluate(infra, node_work.score, 0.5)
        assert release(infra).clean
        return model.metrics["loss"], scores["auc"]

    state = run(return_state=True)
    assert state.result() == (0.25, 0.5)
    assert asked.all_released(1)
    assert {"plan", "provision", "train", "evaluate", "release"} <= {
        name.rpartition("-")[0] for name in task_run_names(state)
    }


@row("provision-forgotten")
@pytest.mark.parametrize("fails", [False, True])
def test_a_flow_that_forgets_to_release_leaks_nothing(asked: Asked, fails: bool) -> None:
    """A bare `provision` without `release`: the end of the run, good or bad, is the end of the client."""

    @flow
    def run() -> None:
        provision("cpu", max_minutes=5)
        if fails:
            raise ValueError("mine")

    run(return_state=True)
    assert eventually(lambda: asked.all_released(1))
    assert asked.one.client.ended_at is not None


@row("provision-in-subflow")
def test_the_end_of_a_subflow_is_the_end_of_its_client(asked: Asked) -> None:
    """A subflow's lease goes with the subflow, while the flow around it runs on."""

    @flow
    def inner() -> str:
        return provision("cpu", max_minutes=5).id

    @flow
    def outer() -> None:
        inner()
        assert eventually(lambda: asked.all_released(1))

    outer()


@row("provision-twice")
def test_two_provisions_are_two_leases_and_one_key_is_one(asked: Asked) -> None:
    """Bare calls never share an id, equal as they may be; the same `key=` is the same live lease."""

    @flow
    def run() -> list[str]:
        plain = [provision("cpu", max_minutes=5), provision("cpu", max_minutes=5)]
        keyed = [provision("cpu", max_minutes=5, key="k"), provision("cpu", max_minutes=5, key="k")]
        ids = [infra.id for infra in (*plain, *keyed)]
        for infra in (*plain, keyed[0]):
            release(infra)
        return ids

    first, second, third, fourth = run()
    assert len({first, second, third}) == 3
    assert third == fourth
    assert asked.all_released(3)


@row("retried-flow-adopts")
def test_a_retried_flow_run_adopts_its_live_lease(asked: Asked) -> None:
    """`@flow(retries=1)` around a bare `provision`: the second try finds the node of the first."""
    ids: list[str] = []

    @flow(retries=1)
    def run() -> int:
        infra = provision("cpu", max_minutes=5)
        ids.append(infra.id)
        if len(ids) == 1:
            raise ValueError("mine")
        value = infra.run(node_work.add, 1)
        release(infra)
        return value

    assert run() == 2
    assert ids[0] == ids[1]
    assert asked.all_released(1)


@row("retried-flow-next-round")
def test_a_retried_flow_run_opens_the_next_round_of_a_block(asked: Asked) -> None:
    """`@flow(retries=1)` around a block: the first round was released by the error, the second is the next round."""
    tries: list[str] = []

    @flow(retries=1)
    def run() -> None:
        with lease("cpu", max_minutes=5) as infra:
            tries.append(infra.id)
            if len(tries) == 1:
                raise ValueError("mine")

    run()
    first, second = asked.leases
    assert (first.base, first.round, second.round) == (second.base, 1, 2)
    assert asked.all_released(2)


@row("retried-flow-forgets")
def test_a_lease_that_the_second_try_does_not_ask_for_goes_with_the_run(asked: Asked, monkeypatch) -> None:
    """The second try has a run object of its own, so the end is asked for at the server."""
    monkeypatch.setattr(run_end, "ASK_SECONDS", 0.1)
    tries: list[int] = []

    @flow(retries=1)
    def run() -> LeaseState:
        tries.append(1)
        if len(tries) == 1:
            provision("cpu", max_minutes=5)
            raise ValueError("mine")
        return asked.one.state

    assert run() is LeaseState.READY
    assert eventually(lambda: asked.all_released(1))


def test_a_run_that_left_this_process_is_over_and_one_that_waits_here_is_not() -> None:
    """Final and suspended runs are over; a pause told by the server is a run that waits in this process."""
    for state in (Completed(), Failed(), Crashed(), Cancelled(), Suspended(timeout_seconds=60)):
        assert run_end._has_left(state)
        assert run_end._has_left(state, paused=False)
    assert not run_end._has_left(Running())
    assert not run_end._has_left(State(type=StateType.SCHEDULED, name="AwaitingRetry"))
    assert run_end._has_left(Paused(timeout_seconds=60))
    assert not run_end._has_left(Paused(timeout_seconds=60), paused=False)


@row("phases-never-cached")
def test_phases_are_never_cached_persisted_or_retried_by_prefect(asked: Asked, tmp_path) -> None:
    """A cached handle would be one to a destroyed machine: no phase has a cache or a stored result."""
    public = (plan, provision, train, evaluate, deploy, release, probe, promote, rollback, retire)
    for phase in (*public, phases.provision_for_lease, serving.deploy_noticed, phases.train_work):
        assert phase.cache_policy == NO_CACHE
        assert phase.persist_result is False
        assert phase.retries == 0

    @flow(persist_result=True, result_storage=None)
    def run() -> None:
        with lease("cpu", max_minutes=5) as infra:
            infra.run(node_work.add, 1)

    state = run(return_state=True)
    with get_client(sync_client=True) as client:
        runs = [item for item in read_task_runs(client, state) if item.state is not None]
    assert len(runs) == 3
    assert [item.state.data.storage_key for item in runs if getattr(item.state.data, "storage_key", None)] == []
    assert asked.all_released(1)


@row("handle-pickled")
def test_a_handle_travels_as_its_id_and_is_verified_when_it_arrives(asked: Asked) -> None:
    """A pickled handle is looked up again: it works, with its options, as long as the lease lives."""
    with lease("cpu", max_minutes=5) as infra:
        raw = cloudpickle.dumps(infra.with_options(grace_seconds=3.0))
        again: Infra = cloudpickle.loads(raw)
        assert again.run(node_work.add, 1) == 2
        assert again.options.grace_seconds == 3.0
    with pytest.raises(LeaseLost):
        cloudpickle.loads(raw)


@row("train-submit")
def test_a_phase_can_be_submitted(asked: Asked) -> None:
    """`train.submit(infra, job)`: a Prefect future inside the block, also for a callable and its arguments."""

    @flow
    def run() -> list[float]:
        with lease("cpu", max_minutes=5) as infra:
            futures = [
                train.submit(infra, {"target": "node_work:fit", "params": {"weight": 0.5}}),
                train.submit(infra, node_work.fit, 0.25),
            ]
            return [future.result().metrics["loss"] for future in futures]

    assert run() == [0.5, 0.75]
    assert asked.all_released(1)


@row("infra-to-task")
def test_a_task_can_get_the_lease(asked: Asked) -> None:
    """`infra` as a parameter of a task: the task's work runs on the lease of the flow."""

    @task
    def use(infra: Infra, a: int) -> int:
        return infra.run(node_work.add, a)

    @flow
    def run() -> list[int]:
        with lease("cpu", max_minutes=5) as infra:
            return [use(infra, 1), *(future.result() for future in use.map(infra, [2, 3]))]

    assert run() == [2, 3, 4]
    assert asked.all_released(1)


def task_run_names(state) -> list[str]:
    with get_client(sync_client=True) as client:
        return [item.name for item in read_task_runs(client, state)]


def read_task_runs(client, state):
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    found = []

    def look() -> bool:
        found[:] = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[state.state_details.flow_run_id]))
        )
        return bool(found) and all(item.state is not None and item.state.is_final() for item in found)

    assert eventually(look), found
    return found
