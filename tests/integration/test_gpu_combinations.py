"""Every row of the combination table that begins with ``@gpu``."""

from __future__ import annotations

import asyncio
import sys

import node_work
import pytest
from integration_harness import Asked, row
from prefect import flow, task
from prefect.cache_policies import INPUTS

from mlinfra_prefect import gpu
from mlinfra_prefect.errors import InvalidInput, UnsupportedHere
from mlinfra_prefect.integration.gpu import gpu as gpu_itself
from mlinfra_prefect.model.lease import State

node = gpu("cpu", max_minutes=5)


@row("gpu-under-task")
def test_gpu_under_task_runs_the_body_on_a_node_and_gives_the_node_back(asked: Asked) -> None:
    """`@task @gpu` is a task whose call leases, runs and releases, and returns what the function returned."""
    add = task(node(node_work.add))

    @flow
    def run() -> int:
        return add(2, b=3)

    assert run() == 5
    assert asked.all_released(1)
    assert [job.state for job in asked.one.jobs] == ["succeeded"]
    assert asked.one.receipt is not None
    assert asked.one.receipt.clean


@row("gpu-over-task")
def test_gpu_over_task_leaves_the_task_a_task(asked: Asked) -> None:
    """`@gpu` over `@task` keeps name, tags, key and retries of the task, and runs its body on a node."""
    plain = task(name="adder", tags=["one"], retries=2)(node_work.add)
    add = node(plain)

    @flow
    def run() -> int:
        return add(2, 3)

    assert (add.name, add.tags, add.task_key, add.retries) == ("adder", {"one"}, plain.task_key, 2)
    assert plain.fn is node_work.add
    assert run() == 5
    assert asked.all_released(1)


@row("gpu-async")
def test_an_async_task_keeps_the_event_loop_free(asked: Asked) -> None:
    """`async def` under `@gpu`: the coroutine runs on the node, and the flow's loop goes on meanwhile."""
    add = task(node(node_work.add_later))
    over = node(task(node_work.add_later))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    @flow
    async def run() -> list[int]:
        turning = asyncio.ensure_future(turn())
        try:
            return [await add(1), *await asyncio.gather(over(2), over(3))]
        finally:
            turning.cancel()

    assert asyncio.run(run()) == [2, 3, 4]
    assert turns > 5
    assert asked.all_released(3)


@row("gpu-map")
def test_a_map_over_eight_leases_eight_nodes(asked: Asked) -> None:
    """`.map` over eight: eight leases with eight ids, eight results in order, eight receipts."""
    add = task(node(node_work.add))

    @flow
    def run() -> list[int]:
        return [future.result() for future in add.map(range(8), b=10)]

    assert run() == list(range(10, 18))
    assert len({record.base for record in asked.leases}) == 8
    assert asked.all_released(8)


@row("gpu-submit")
def test_two_equal_submits_are_two_leases(asked: Asked) -> None:
    """`.submit` twice with the same arguments: nothing but Prefect's task run tells them apart, and that is enough."""
    add = task(node(node_work.add)).with_options(cache_policy=None)

    @flow
    def run() -> list[int]:
        return [future.result() for future in [add.submit(1, 1), add.submit(1, 1)]]

    assert run() == [2, 2]
    assert len({record.base for record in asked.leases}) == 2
    assert asked.all_released(2)


@row("gpu-retries")
def test_a_retried_task_opens_the_next_round(asked: Asked, tmp_path) -> None:
    """`retries=1`: the error of the user's code is retried on a new round; the first round is released."""
    marker = tmp_path / "marker"
    flaky = task(retries=1)(node(node_work.fails_until))

    @flow
    def run() -> int:
        return flaky(str(marker))

    assert run() == 1
    first, second = asked.leases
    assert (first.base, first.round, second.round) == (second.base, 1, 2)
    assert first.jobs[0].state == "failed"
    assert asked.all_released(2)


@row("gpu-cache")
def test_a_cache_hit_provisions_nothing(asked: Asked, tmp_path) -> None:
    """A cache policy works as on any task: the second call is answered by Prefect, and no lease is asked for."""
    from prefect.filesystems import LocalFileSystem

    storage = LocalFileSystem(basepath=str(tmp_path))
    storage.save("gpu-cache", overwrite=True)
    add = task(cache_policy=INPUTS, result_storage="local-file-system/gpu-cache")(node(node_work.add))

    @flow
    def run() -> int:
        return add(20, 1)

    assert [run(), run()] == [21, 21]
    assert asked.all_released(1)


@row("gpu-with-options")
def test_with_options_keeps_the_node(asked: Asked) -> None:
    """`with_options` of a task under or over `@gpu` still runs its body on a node."""
    under = task(node(node_work.add)).with_options(name="renamed", retries=1)
    over = node(task(node_work.add)).with_options(name="renamed too")

    @flow
    def run() -> list[int]:
        return [under(1), over(2)]

    assert run() == [2, 3]
    assert asked.all_released(2)
    assert [record.owner.task_run is not None for record in asked.leases] == [True, True]


@row("gpu-in-subflow")
def test_a_gpu_task_in_a_subflow(asked: Asked) -> None:
    """A subflow has a flow run of its own, and the lease belongs to it."""
    add = task(node(node_work.add))
    ids: list[str] = []

    @flow
    def inner() -> int:
        from prefect.runtime import flow_run

        ids.append(flow_run.id)
        return add(1)

    @flow
    def outer() -> int:
        return inner()

    assert outer() == 2
    assert asked.one.owner.flow_run_id == ids[0]
    assert asked.all_released(1)


@row("gpu-outside-a-flow")
def test_outside_a_flow_a_gpu_task_and_a_plain_gpu_function_work(asked: Asked) -> None:
    """A task called outside of a flow, and a function with `@gpu` alone: both lease, run and release."""
    assert task(node(node_work.add))(1) == 2
    assert node(node_work.add)(2) == 3
    assert asyncio.run(node(node_work.add_later)(3)) == 4
    assert asked.all_released(3)
    assert [record.owner.flow_run_id for record in asked.leases] == [None] * 3


@row("gpu-generator")
@pytest.mark.parametrize("function", [node_work.gives_numbers, node_work.gives_numbers_later])
def test_generators_are_refused_where_they_are_decorated(function, asked: Asked) -> None:
    """A node returns one result, so a generator is refused before anything is asked for, over and under `@task`."""
    with pytest.raises(UnsupportedHere, match="generator"):
        node(function)
    with pytest.raises(UnsupportedHere, match="generator"):
        node(task(function))
    assert asked.leases == []


@row("gpu-over-flow")
def test_gpu_over_flow_is_refused_with_a_sentence() -> None:
    """`@gpu` over `@flow` is refused where it stands, and says what to write."""
    with pytest.raises(UnsupportedHere, match=r"not on a flow.*@lease"):
        node(flow(node_work.add))


@row("gpu-under-flow")
def test_gpu_under_flow_is_refused_when_it_is_called(asked: Asked) -> None:
    """`@flow @gpu` would send the flow's own body to a node: refused when called, before anything is asked for."""
    run = flow(node(node_work.add))
    with pytest.raises(UnsupportedHere, match=r"under @flow.*Put @gpu on a task"):
        run(1)
    assert asked.leases == []


def test_secrets_for_a_platform_that_cannot_give_them_are_refused_before_anything_is_rented(asked: Asked) -> None:
    """A variable of the flow's process would travel to AWS, and a secret of AWS is its nodes' to read."""
    with pytest.raises(InvalidInput, match=r"secrets\.TOKEN.*platform aws.*aws-sm:NAME or ssm:/NAME"):
        gpu("cpu", platform="aws", secrets={"TOKEN": "env:PATH"})(node_work.add)(1)
    with pytest.raises(InvalidInput, match=r"secrets\.TOKEN: aws-sm: is read by nodes on platform aws.*env:NAME"):
        gpu("cpu", secrets={"TOKEN": "aws-sm:hf-token"})(node_work.add)(1)
    with pytest.raises(InvalidInput, match=r"secrets\.TOKEN: the environment variable MLINFRA_TEST_UNSET is not set"):
        gpu("cpu", secrets={"TOKEN": "env:MLINFRA_TEST_UNSET"})(node_work.add)(1)
    assert asked.leases == []


def test_a_function_by_value_for_another_python_is_refused_before_anything_is_rented(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default images' Python is known: both versions and what to do are in the sentence."""
    from mlinfra_prefect.aws import images

    monkeypatch.setattr(images, "PYTHON", "3.99")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    sends = gpu("cpu", platform="aws", by_value=True)(lambda: 1)
    with pytest.raises(InvalidInput, match=rf"by_value: .* from Python {here}, .* platform aws have Python 3\.99"):
        sends()
    assert asked.leases == []


@row("gpu-resume-options")
def test_options_of_gpu_are_checked_where_they_are_written() -> None:
    """A wrong option of `@gpu` is an error at decoration, with the field's name."""
    with pytest.raises(ValueError, match="secrets"):
        gpu("cpu", secrets={"TOKEN": "plain text"})
    with pytest.raises(ValueError, match="max_minutes"):
        gpu("cpu", max_minutes=0)
    with pytest.raises(ValueError, match="accelerator"):
        gpu("A1000:1")


def test_on_a_node_the_decorator_steps_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node `@gpu` is the function itself, and does not even read the request's file, which need not be there."""
    monkeypatch.setenv("MLINFRA_ON_NODE", "1")
    assert gpu_itself("no-such-file.yaml")(node_work.add) is node_work.add


@row("gpu-error")
def test_an_error_of_the_function_comes_back_and_the_node_is_gone(asked: Asked) -> None:
    """A builtin exception comes back as itself with its arguments; the lease is released before it is raised."""
    fails = task(node(node_work.raises))

    @flow
    def run() -> None:
        with pytest.raises(ValueError, match="a") as caught:
            fails("builtin")
        assert caught.value.args == ("a", 1)
        assert asked.one.state is State.RELEASED

    run()
