"""What Prefect does to a run (log lines that end it, pauses, time-outs, two engines) never loses or doubles a lease."""

from __future__ import annotations

import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import node_work
import pytest
from integration_harness import PROJECT, Asked, eventually, records, row
from prefect import flow, get_run_logger, pause_flow_run, task
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, Running

from mlinfra_prefect import lease, provision, release, release_on_end
from mlinfra_prefect.errors import LeaseHeld
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.model.lease import LIVE, LeaseRecord


class Ends(logging.Handler):
    """As Prefect's own handler in an orphaned flow: the next log line raises `SystemExit`."""

    def emit(self, entry: logging.LogRecord) -> None:
        raise SystemExit(1)


@contextmanager
def every_line_ends_the_process() -> Iterator[None]:
    """Each line that goes through Prefect's loggers, ours or the root's raises `SystemExit`."""
    handler = Ends(level=0)
    names = {"", "prefect", "prefect.flow_runs", "prefect.task_runs", "prefect.task_engine", "mlinfra_prefect"}
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.addHandler(handler)
        each.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.removeHandler(handler)
            each.setLevel(level)


@pytest.mark.parametrize("kind", [None, ValueError, KeyboardInterrupt])
def test_a_log_line_that_ends_the_process_comes_after_the_mark(kind: type[BaseException] | None, asked: Asked) -> None:
    """However a block is left, its first write logs nothing: by the first line, the lease is marked."""

    @flow
    def run() -> tuple[Any, BaseException | None]:
        held = lease("cpu", max_minutes=5)
        infra = held.__enter__()
        error = None if kind is None else kind("mine")
        try:
            with every_line_ends_the_process():
                with pytest.raises(SystemExit):
                    get_run_logger().info("the handler does what it says")
                held.__exit__(kind, error, None)
        except SystemExit as ended:
            return infra.state, ended
        return infra.state, None

    state, ended = run()
    assert state not in LIVE
    if kind is KeyboardInterrupt:
        assert ended is None, "a dying run says nothing at all"
    assert eventually(lambda: asked.all_released(1))


def test_beginning_a_release_logs_nothing(asked: Asked) -> None:
    """The critical section itself: the ledger's write, the note for the keeper, and the keeper's start."""
    with lease("cpu", max_minutes=5) as infra, every_line_ends_the_process():
        begin_release(context(), infra.id, reason="a test", drain=False)
        keeper.release(context(), infra.id, reason="a test")
    assert asked.all_released(1)


# --- hooks


def test_the_hook_has_the_signature_that_runners_call() -> None:
    """With keywords, in the runner's process: other names raise `TypeError` there."""
    assert list(inspect.signature(release_on_end).parameters) == ["flow", "flow_run", "state"]


def test_the_hook_only_starts_a_release_and_leaves_a_live_client_alone(asked: Asked, monkeypatch: Any) -> None:
    """Beside a live client it does nothing. Of a dead one it marks, and waits for nothing; twice is once."""
    ours: list[Any] = []

    @flow
    def run() -> None:
        from prefect.context import FlowRunContext

        running = FlowRunContext.get()
        assert running is not None
        ours.append(running.flow_run)
        infra = provision("cpu", max_minutes=5)
        release_on_end(flow=running.flow, flow_run=running.flow_run, state=Crashed())
        assert infra.state in LIVE
        # The same lease, as a runner sees it whose flow is gone: its client is a process that has ended.
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        record = infra.record
        assert record.client.process is not None
        dead = record.client.revised(process=record.client.process.revised(pid=gone.pid, start_time="1"))
        monkeypatch.setattr("mlinfra_prefect.keeper.client.wait_released", _never_waits)
        _rewrite(record, client=dead)
        for _ in range(2):
            release_on_end(flow=running.flow, flow_run=running.flow_run, state=Crashed())
        assert infra.state not in LIVE

    run()
    monkeypatch.undo()
    assert eventually(lambda: asked.all_released(1))
    release_on_end(flow=run, flow_run=ours[0], state=Crashed())  # and of what is gone: nothing


def _never_waits(context: Any, record_id: str, *, timeout: float | None = None) -> Any:
    from mlinfra_prefect.errors import NotYetDestroyed

    assert timeout == 0.0, "a hook that waits holds the runner"
    raise NotYetDestroyed(f"{record_id} is going.")


def _rewrite(record: LeaseRecord, **changes: Any) -> None:
    from mlinfra_prefect.ledger import revise

    revise(context().ledger, record.id, lambda now: now.revised(**changes), actor="test", reason="a test")


# --- pauses and time-outs


@row("pause")
def test_a_pause_keeps_the_lease_and_its_time_out_releases_it(asked: Asked) -> None:
    """The process waits, so the client lives. When nobody resumes in time, the block ends with Prefect's error."""
    seen: list[Any] = []

    @flow
    def run() -> None:
        with lease("cpu", max_minutes=5) as infra:
            try:
                pause_flow_run(timeout=2, poll_interval=1)
            finally:
                seen.append(infra.state)

    with pytest.raises(FlowPauseTimeout):
        run()
    assert seen[0] in LIVE
    assert asked.all_released(1)


@row("task-timeout")
@pytest.mark.parametrize("submitted", [False, True], ids=["direct", "submitted"])
def test_a_task_that_times_out_gives_its_lease_back_and_its_retry_is_the_next_round(
    submitted: bool, asked: Asked, tmp_path: Path  # noqa: FBT001
) -> None:  # fmt: skip
    """`timeout_seconds` ends a task while its node trains. Each try has a lease, a state and a Terraform of its own."""

    @task(timeout_seconds=6.0, retries=1)
    def late() -> str:
        with lease("cpu", max_minutes=5, grace_seconds=1) as infra:
            return infra.run(node_work.waits_for, str(tmp_path / "never"))

    @flow
    def run() -> None:
        (late.submit().result if submitted else late)()

    with pytest.raises(Exception, match=r"(?i)timed? ?out|exceeded"):
        run()
    assert eventually(lambda: all(record.state == "released" for record in asked.leases))
    leases = asked.leases
    assert len(leases) == 2
    assert len({record.id for record in leases}) == len(leases)
    directories = [attempt.directory for record in leases for attempt in record.attempts]
    assert len(set(directories)) == len(directories), "two attempts, one Terraform state"
    for record in leases:
        assert record.receipt is not None
        assert record.receipt.created == record.receipt.destroyed
        assert len(record.attempts) <= 1


# --- two engines

ENGINE = """
import sys
from pathlib import Path
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow
from mlinfra_prefect import lease

@flow
def doubled(go: str) -> None:
    with lease("cpu", max_minutes=5):
        Path(go + ".ready").touch()
        while not Path(go).exists():
            __import__("time").sleep(0.05)

if __name__ == "__main__":
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(sys.argv[1])
    run_flow(doubled, flow_run=run, parameters={"go": sys.argv[2]})
"""


@row("two-engines")
def test_two_engines_with_one_flow_run_make_one_lease(asked: Asked, home: Path, tmp_path: Path) -> None:
    """Prefect takes Running after Running. The second one gets `LeaseHeld`, and the first is not disturbed."""
    go, script = tmp_path / "go", home / "doubled.py"
    script.write_text(ENGINE)

    @flow(name="doubled")
    def doubled(go: str) -> None: ...

    with get_client(sync_client=True) as client:
        run = client.create_flow_run(doubled, parameters={"go": str(go)}, state=Running())
    argv = [sys.executable, str(script), str(run.id), str(go)]
    env = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT)}
    first = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert eventually(go.with_name("go.ready").exists)
        second = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert second.returncode != 0
        assert LeaseHeld.__name__ in second.stderr + second.stdout
        assert asked.one.state in LIVE
        go.touch()
        assert first.wait(90) == 0, first.stderr
    finally:
        with suppress(ProcessLookupError):
            first.kill()
        first.wait()
        assert first.stderr is not None
        first.stderr.close()
    assert eventually(lambda: asked.all_released(1))
    assert asked.one.receipt is not None
    assert asked.one.receipt.created == ("1/terraform_data.node",)


def test_a_retried_flow_never_gets_the_handle_of_what_is_gone(asked: Asked) -> None:
    """The second try asks again, and what it gets is looked up in the ledger: live, and of another round."""
    tries: list[str] = []

    @flow(retries=1, persist_result=True)
    def run() -> int:
        infra = provision("cpu", max_minutes=5, key="one")
        tries.append(infra.id)
        if len(tries) == 1:
            release(infra)
            raise ValueError("mine")
        value = infra.run(node_work.add, 1)
        release(infra)
        return value

    assert run() == 2
    assert tries[0] != tries[1]
    assert asked.all_released(2)
    assert [record.round for record in records() if record.id in tries] == [1, 2]
