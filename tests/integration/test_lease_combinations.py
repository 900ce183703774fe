"""Every row of the combination table that begins with ``lease``, but for what happens at the end of runs."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from pathlib import Path

import node_work
import pytest
from integration_harness import Asked, eventually, row
from prefect import flow, task
from prefect.exceptions import TerminationSignal

from mlinfra_prefect import Infra, TrainingRequest, attach, lease, provision, release
from mlinfra_prefect.errors import LeaseAmbiguous, LeaseLost, UnsupportedHere
from mlinfra_prefect.integration.lease import lease as lease_itself
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.model.lease import State


@row("lease-with")
def test_a_block_has_a_node_and_leaves_none(asked: Asked) -> None:
    """`with lease(...)`: ready inside, released outside, and every process carries the four variables."""

    @flow
    def run() -> dict[str, str]:
        with lease("cpu", max_minutes=5) as infra:
            assert infra.state is State.READY
            return infra.run(node_work.whoami)

    seen = run()
    record = asked.one
    assert asked.all_released(1)
    assert seen["MLINFRA_LEDGER_ID"] == record.ledger_id
    assert seen["MLINFRA_LEASE_ID"] == record.id
    assert seen["MLINFRA_ATTEMPT"] == "1"
    assert float(seen["MLINFRA_DEADLINE"]) == pytest.approx(record.deadline.timestamp())
    assert record.owner.flow == "run"


@row("lease-async-with")
def test_async_with_and_arun(asked: Asked) -> None:
    """`async with lease(...)` and `await infra.arun(...)`: the loop turns while the lease comes, works and goes."""
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    @flow
    async def run() -> list[int]:
        turning = asyncio.ensure_future(turn())
        seen = [turns]
        try:
            async with lease("cpu", max_minutes=5) as infra:
                seen.append(turns)
                values = await asyncio.gather(*(infra.arun(node_work.add_later, n) for n in range(3)))
                seen.append(turns)
        finally:
            seen.append(turns)
            turning.cancel()
        assert all(after - before > 5 for before, after in pairwise(seen)), seen
        return values

    assert asyncio.run(run()) == [1, 2, 3]
    assert asked.all_released(1)


@row("lease-outside-a-flow")
def test_a_block_outside_of_a_flow(asked: Asked) -> None:
    """Without Prefect around it a block works the same, and tells its receipt."""
    held = lease("cpu", max_minutes=5)
    with held as infra:
        assert infra.run(node_work.add, 1) == 2
    assert held.receipt is not None
    assert held.receipt.id == asked.one.id
    assert asked.all_released(1)


@row("lease-decorator")
def test_as_a_decorator_it_goes_under_flow_and_hides_infra(asked: Asked) -> None:
    """`@flow @lease(...)`: the form has no `infra`, the other parameters are validated, positional and keyword."""

    @flow
    @lease("cpu", max_minutes=5)
    def run(infra: Infra, a: int, b: int = 1) -> int:
        """Add on a node."""
        return infra.run(node_work.add, a, b)

    assert list(run.parameters.properties) == ["a", "b"]
    assert run.parameters.required == ["a"]
    assert run.name == "run"
    assert run.description == "Add on a node."
    assert [run(1), run(2, b=3), run("4", 5)] == [2, 5, 9]  # type: ignore[arg-type]
    with pytest.raises(Exception, match="valid integer"):
        run("four")  # type: ignore[arg-type]
    assert asked.all_released(3)


@row("lease-decorator-async")
def test_as_a_decorator_of_an_async_flow(asked: Asked) -> None:
    """`@flow @lease(...)` over `async def`; `infra` may stand anywhere among the parameters."""

    @flow
    @lease("cpu", max_minutes=5)
    async def run(a: int, *rest: int, infra: Infra, **more: int) -> int:
        return await infra.arun(node_work.add, a, sum(rest) + more["c"])

    assert asyncio.run(run(1, 2, 3, c=4)) == 10
    assert asked.all_released(1)


@row("lease-under-task")
def test_as_a_decorator_under_task(asked: Asked) -> None:
    """`@task @lease(...)`: one lease for each call of the task."""

    @task
    @lease("cpu", max_minutes=5)
    def work(infra: Infra, a: int) -> list[int]:
        return [infra.run(node_work.add, a), infra.run(node_work.add, a, 2)]

    @flow
    def run() -> list[list[int]]:
        return [future.result() for future in work.map([1, 2])]

    assert run() == [[2, 3], [3, 4]]
    assert asked.all_released(2)


@row("lease-over-flow")
def test_as_a_decorator_over_flow_or_task_it_is_refused() -> None:
    """`@lease` over `@flow` or `@task` says in which order to write them; so it does without a parameter `infra`."""
    with pytest.raises(UnsupportedHere, match="under @flow"):
        lease("cpu")(flow(node_work.add))
    with pytest.raises(UnsupportedHere, match="under @task"):
        lease("cpu")(task(node_work.add))
    with pytest.raises(UnsupportedHere, match="'infra'"):
        lease("cpu")(node_work.add)


@row("lease-generator")
def test_as_a_decorator_of_a_generator_it_is_refused() -> None:
    """A generator would hold the lease open for as long as nobody asks it."""

    def numbers(infra: Infra):
        yield 1

    with pytest.raises(UnsupportedHere, match="generator"):
        lease("cpu")(numbers)


@row("lease-request")
def test_a_request_is_an_accelerator_a_request_a_mapping_or_a_file_and_overrides_merge(tmp_path: Path) -> None:
    """Whatever a request is given as, overrides replace single fields and leave the others."""
    file = tmp_path / "request.yaml"
    file.write_text("accelerator: cpu\nname: churn\nmax_minutes: 7\n")
    given = [TrainingRequest(name="churn", max_minutes=7), {"name": "churn", "max_minutes": 7}, file, str(file)]
    requests = [lease(item, max_minutes=9)._request for item in given]  # type: ignore[arg-type]
    assert {(r.name, r.max_minutes, str(r.accelerator)) for r in requests} == {("churn", 9, "cpu")}


@row("lease-no-wait")
def test_without_waiting_the_block_begins_before_the_node_is_there(asked: Asked) -> None:
    """`wait=False`: the block begins at once, the keeper provisions meanwhile, and the first work waits for it."""

    @flow
    def run() -> tuple[State, int]:
        with lease("cpu", max_minutes=5, wait=False) as infra:
            early = infra.state
            return early, infra.run(node_work.add, 1)

    early, value = run()
    assert early is not State.READY
    assert value == 2
    assert asked.all_released(1)


@row("lease-nested")
def test_blocks_nest(asked: Asked) -> None:
    """A block in a block is a second lease; the inner one goes first."""

    @flow
    def run() -> None:
        with lease("cpu", max_minutes=5) as outer:
            with lease("cpu", max_minutes=5, name="inner") as inner:
                assert inner.id != outer.id
                assert outer.state is inner.state is State.READY
            assert inner.state is State.RELEASED
            assert outer.state is State.READY

    run()
    assert asked.all_released(2)


@row("lease-loop")
def test_blocks_in_a_loop_never_share_an_id(asked: Asked) -> None:
    """Each turn of a loop is a lease of its own, with a key of its own, also for one object that is used again."""
    again = lease("cpu", max_minutes=5)

    @flow
    def run() -> None:
        for _ in range(2):
            with lease("cpu", max_minutes=5):
                pass
        for _ in range(2):
            with again:
                pass

    run()
    assert len({record.base for record in asked.leases}) == 4
    assert asked.all_released(4)


@row("lease-reused")
def test_one_object_holds_one_lease_at_a_time(asked: Asked) -> None:
    """Entering a `lease(...)` that is in use is refused; the block that it serves is not disturbed."""
    held = lease("cpu", max_minutes=5)
    with held as infra:
        with pytest.raises(UnsupportedHere, match="in use"), held:
            pass
        assert infra.run(node_work.add, 1) == 2
    assert asked.all_released(1)


@row("lease-concurrent")
def test_concurrent_blocks_without_a_key_are_ambiguous(asked: Asked) -> None:
    """Two concurrent blocks of one flow run that only chance tells apart: the second is refused, naming `key=`."""

    @flow
    async def run() -> list[object]:
        first_is_in, go = asyncio.Event(), asyncio.Event()

        async def first() -> int:
            async with lease("cpu", max_minutes=5) as infra:
                first_is_in.set()
                await go.wait()
                return await infra.arun(node_work.add, 1)

        async def second() -> None:
            await first_is_in.wait()
            try:
                async with lease("cpu", max_minutes=5):
                    pass
            finally:
                go.set()

        return await asyncio.gather(first(), second(), return_exceptions=True)

    value, error = asyncio.run(run())
    assert value == 2
    assert isinstance(error, LeaseAmbiguous)
    assert "key=" in str(error)
    assert asked.all_released(1)


@row("lease-key")
def test_concurrent_blocks_with_keys_are_told_apart(asked: Asked) -> None:
    """With `key=` concurrent blocks are leases of their own; one key at a time."""

    async def use(key: str) -> int:
        async with lease("cpu", max_minutes=5, key=key) as infra:
            with pytest.raises(LeaseAmbiguous, match="in use"):
                async with lease("cpu", max_minutes=5, key=key):
                    pass
            return await infra.arun(node_work.add, len(key))

    @flow
    async def run() -> list[int]:
        return await asyncio.gather(use("a"), use("bb"))

    assert asyncio.run(run()) == [2, 3]
    assert len({record.base for record in asked.leases}) == 2
    assert asked.all_released(2)


@row("lease-exception")
def test_an_exception_drains_releases_and_comes_out(asked: Asked, tmp_path: Path) -> None:
    """An exception in the block: *checkpoint now*, wait the grace, release, re-raise the very exception."""
    mine = ValueError("mine")

    @flow
    def run() -> None:
        with lease("cpu", max_minutes=5) as infra:
            infra.with_options(resume="drain-{started}").submit(node_work.checkpoints_when_told, str(tmp_path / "on"))
            assert eventually((tmp_path / "on").exists)
            raise mine

    with pytest.raises(ValueError, match="mine") as caught:
        run()
    assert caught.value is mine
    assert asked.all_released(1)
    assert "ValueError" in asked.one.reason or any(
        "ValueError" in step.reason for step in context().ledger.history(asked.one.id)
    )
    committed = list(context().home.checkpoints.rglob("step.txt"))
    assert [path.read_text() for path in committed] == ["7"]


@row("lease-dying")
@pytest.mark.parametrize("kind", [KeyboardInterrupt, TerminationSignal])
@pytest.mark.parametrize("place", ["process", "foreground"])
def test_a_dying_process_only_marks_and_the_keeper_releases(kind, place: str, asked: Asked, monkeypatch) -> None:
    """Ctrl-C, or Prefect's cancellation: one small write, and no call of Prefect; the keeper releases.

    In a container the keeper would die with this process, so there the block waits for it.
    """
    from mlinfra_prefect.integration import lease as module

    def never(*args: object, **kwargs: object) -> None:
        pytest.fail("a dying run did more than to mark its lease")

    held = lease("cpu", max_minutes=5)
    error = TerminationSignal(15) if kind is TerminationSignal else KeyboardInterrupt()
    infra = held.__enter__()
    with monkeypatch.context() as patch:
        patch.setenv("MLINFRA_KEEPER_PLACE", place)
        patch.setattr(module.phases, "phase", never)
        patch.setattr(module, "say", never)
        if place == "process":
            patch.setattr(module.keeper, "wait_released", never)
        held.__exit__(kind, error, None)
        assert infra.state in ({State.RELEASED} if place == "foreground" else {State.RELEASING, State.RELEASED})
    assert eventually(lambda: asked.all_released(1))


@row("lease-cancelled-asyncio")
def test_a_cancelled_block_gives_back_what_is_still_on_its_way(asked: Asked) -> None:
    """Cancelled while the lease is provisioned, or in the block: the process lives on, and the lease is given back."""

    async def use(into: asyncio.Event) -> None:
        async with lease("cpu", max_minutes=5):
            into.set()
            await asyncio.sleep(60)

    async def run() -> None:
        early = asyncio.ensure_future(use(asyncio.Event()))
        while not asked.leases:  # noqa: ASYNC110 (a ledger has no events)
            await asyncio.sleep(0.01)
        early.cancel()
        with pytest.raises(asyncio.CancelledError):
            await early
        inside = asyncio.Event()
        late = asyncio.ensure_future(use(inside))
        await inside.wait()
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late

    asyncio.run(run())
    assert eventually(lambda: asked.all_released(2))


@row("lease-submit")
def test_the_block_waits_for_what_was_started_through_infra(asked: Asked, tmp_path: Path) -> None:
    """`infra.submit`: the block ends after it, and raises its error unless somebody asked the future."""
    go = tmp_path / "go"

    @flow
    def run() -> tuple[str, str]:
        with lease("cpu", max_minutes=5) as infra:
            future = infra.submit(node_work.waits_for, str(go))
            handled = infra.submit(node_work.raises, "builtin")
            threading.Timer(0.3, go.touch).start()
            with pytest.raises(ValueError, match="a"):
                handled.result()
        assert future.done()
        return future.result(), str(go)

    got, expected = run()
    assert got == expected
    with pytest.raises(ValueError, match="a"), lease("cpu", max_minutes=5) as infra:
        infra.submit(node_work.raises, "builtin")
    assert asked.all_released(2)


@row("lease-foreign-future")
def test_a_prefect_future_that_outlives_the_block_raises(asked: Asked, tmp_path: Path) -> None:
    """A task that runs on the lease and was not started through `infra`: leaving the block without it is an error."""
    go = tmp_path / "never"

    @task
    def outlives(infra: Infra) -> str:
        return infra.run(node_work.waits_for, str(go))

    @flow
    def run() -> None:
        held = lease("cpu", max_minutes=5, grace_seconds=0.2)
        with pytest.raises(UnsupportedHere, match=r"1 task\(s\) still ran.*infra\.submit"), held as infra:
            future = outlives.submit(infra)
            assert eventually(lambda: bool(infra.record.jobs))
        with pytest.raises(Exception, match=r"stopped|released|releasing"):
            future.result()

    run()
    assert asked.all_released(1)


@row("lease-after-block")
def test_a_handle_is_dead_after_its_block(asked: Asked) -> None:
    """After the block nothing runs through its handle, also where a task got it; what was found out stays readable."""
    with lease("cpu", max_minutes=5) as infra:
        pass
    for use in (lambda: infra.run(node_work.add, 1), lambda: infra.submit(node_work.add, 1), lambda: attach(infra.id)):
        with pytest.raises(LeaseLost):
            use()
    assert infra.state is State.RELEASED
    assert asked.all_released(1)


@row("lease-released-inside")
def test_releasing_inside_the_block_is_no_error(asked: Asked) -> None:
    """`release(infra)` inside the block: nothing more runs, and leaving the block finds nothing to do."""
    held = lease("cpu", max_minutes=5)
    with held as infra:
        receipt = release.fn(infra)
        with pytest.raises(LeaseLost):
            infra.run(node_work.add, 1)
    assert held.receipt == receipt
    assert asked.all_released(1)


@row("attach")
def test_attach_detaches_and_never_releases(asked: Asked) -> None:
    """`attach(id)` gives a handle of a live lease; leaving it, even by an error, leaves the lease alone."""
    infra = provision.fn("cpu", max_minutes=5)
    with pytest.raises(ValueError, match="mine"), attach(infra.id) as again:
        assert again.run(node_work.add, 1) == 2
        raise ValueError("mine")
    assert infra.state is State.READY
    assert release.fn(infra.id).clean
    assert release.fn(infra.id).id == infra.id  # a safe no-op when it is gone
    assert asked.all_released(1)


def test_on_a_node_a_lease_is_refused_and_the_decorator_steps_aside(
    monkeypatch: pytest.MonkeyPatch, asked: Asked
) -> None:
    """On a node nothing can be leased, and a module with `@lease` imports without its request's file."""

    def work(infra: Infra) -> int:
        return 1

    monkeypatch.setenv("MLINFRA_ON_NODE", "1")
    assert lease_itself("no-such-file.yaml")(work) is work
    with pytest.raises(UnsupportedHere, match="node"), lease("cpu"):
        pass
    with pytest.raises(UnsupportedHere, match="node"):
        provision.fn("cpu")
    assert asked.leases == []
