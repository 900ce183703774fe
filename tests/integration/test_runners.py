"""Rows about where tasks run: threads and processes of this host, and the places that are refused."""

from __future__ import annotations

import asyncio
import os
import sys
import types

import node_work
import pool_work
import pytest
from integration_harness import Asked, eventually, row
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import hydrated_context, serialize_context
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from mlinfra_prefect import attach, gpu, lease, provision, release
from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.model.lease import State


@row("runner-threads")
def test_thread_pool(asked: Asked) -> None:
    """Tasks in threads: the flow's process is the client of each lease."""
    add = task(gpu("cpu", max_minutes=5)(node_work.add))

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
    def run() -> list[int]:
        return [future.result() for future in add.map([1, 2, 3])]

    assert run() == [2, 3, 4]
    assert {record.client.process.pid for record in asked.leases if record.client.process} == {os.getpid()}
    assert asked.all_released(3)


@row("runner-processes")
def test_process_pool(asked: Asked) -> None:
    """Tasks in child processes: the client is the flow's process all the same, and `infra` reaches a child.

    A bare `provision` of a child goes with the run.
    """

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
    def run() -> tuple[list[int], int, int, str]:
        sums = [future.result() for future in pool_work.add.map([1, 2])]
        with lease("cpu", max_minutes=5) as infra:
            value, pid = pool_work.use.submit(infra, 3).result()
        return sums, value, pid, pool_work.bare.submit().result().id

    sums, value, pid, _bare = run()
    assert (sums, value) == ([2, 3], 4)
    assert pid != os.getpid()
    assert len({record.base for record in asked.leases}) == 4
    assert {record.client.process.pid for record in asked.leases if record.client.process} == {os.getpid()}
    assert eventually(lambda: asked.all_released(4))


@row("runner-process-killed")
def test_the_death_of_a_pool_child_is_not_the_death_of_the_client(asked: Asked) -> None:
    """SIGKILL of the child that asked: the flow's process lives, so the lease does, for whoever picks it up."""

    @flow(task_runner=ProcessPoolTaskRunner(max_workers=1))
    def run() -> None:
        pool_work.dies.submit().result()

    assert not run(return_state=True).is_completed()
    assert asked.one.state is State.READY
    with attach(asked.one.id) as infra:
        assert infra.run(node_work.add, 1) == 2
    assert asked.one.client.lost_at is None
    release.fn(asked.one.id)
    assert asked.all_released(1)


@row("runner-task-worker")
def test_a_task_worker_leases_for_its_run(asked: Asked) -> None:
    """`task.delay()`: the task's run is the client, it beats, and its end is the client's end; the worker lives on.

    A bare `provision` is refused there with a sentence: no block would give it back with the run.
    """
    from prefect.task_worker import TaskWorker

    seen: list[object] = []

    @task
    def works() -> None:
        with lease("cpu", max_minutes=5) as infra:
            seen.append(infra.record.client)
            seen.append(infra.run(node_work.add, 1, 2))

    @task
    def forgets() -> None:
        infra = lease("cpu", max_minutes=5, key="forgotten").__enter__()  # a block that is never left
        seen.append(infra.id)

    @task
    def bare() -> None:
        with pytest.raises(UnsupportedHere, match=r"A task worker .* use lease"):
            provision("cpu", max_minutes=5)
        seen.append("refused")

    async def serve(tasks: list, run_ids: list) -> None:
        async with TaskWorker(*tasks) as worker, get_client() as client:
            for run_id in run_ids:
                await worker._safe_submit_scheduled_task_run(await client.read_task_run(run_id))

    tasks = [works, forgets, bare]
    asyncio.run(serve(tasks, [each.delay().task_run_id for each in tasks]))
    client, value, forgotten, refused = seen
    assert (client.kind, client.process.pid, value, refused) == ("flow_run", os.getpid(), 3, "refused")
    assert client.heartbeat_at is not None
    assert eventually(lambda: asked.all_released(2))
    (told,) = [each for each in asked.leases if each.id == forgotten]
    assert told.client.ended_at is not None


@row("runner-dask-ray")
@pytest.mark.parametrize(("module", "named"), [("distributed", "Dask"), ("ray", "Ray"), ("", "task runner")])
def test_dask_ray_and_remote_task_runners_are_refused(module: str, named: str, asked: Asked, monkeypatch) -> None:
    """A run's context that arrived by network, in a process that is no child of the flow's: refused with a sentence."""
    if module:
        fake = types.ModuleType(module)
        fake.get_worker = lambda: "a worker"  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, fake)

    @flow
    def run() -> None:
        with hydrated_context(serialize_context()):
            with pytest.raises(UnsupportedHere, match=named), lease("cpu"):
                pass
            with pytest.raises(UnsupportedHere, match=named):
                gpu("cpu")(node_work.add)(1)

    run()
    assert asked.leases == []
