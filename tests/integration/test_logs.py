"""What reaches Prefect of a training's log: bounded on the way, complete at the end of a failure."""

from __future__ import annotations

import logging

import node_work
import pytest
from integration_harness import Asked, row
from prefect import flow

from mlinfra_prefect import lease
from mlinfra_prefect.integration.saying import LAST_LINES, LINE_LENGTH, LINES_PER_MINUTE, Reporter
from mlinfra_prefect.lifecycle.training import Progress


class Ear(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def logger(ear: Ear) -> logging.Logger:
    made = logging.Logger("test")  # noqa: LOG001 (its own, so that nothing else is heard)
    made.addHandler(ear)
    return made


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_at_most_sixty_lines_in_any_minute(logger: logging.Logger, ear: Ear) -> None:
    """A sliding minute, not one that begins anew at each full minute."""
    clock = Clock()
    with Reporter("fit", logger=logger, clock=clock) as reporter:
        for second in range(0, 180, 1):
            clock.now = float(second)
            for _ in range(10):
                reporter(Progress(log=f"{second}"))
        said = [float(line) for line in ear.heard]
    assert all(sum(start <= at < start + 60 for at in said) <= LINES_PER_MINUTE for start in range(180))
    assert len(said) == 3 * LINES_PER_MINUTE


def test_a_failure_tells_the_last_lines(logger: logging.Logger, ear: Ear) -> None:
    """When lines were held back and it failed, the last 200 come as one message; when it went well, their number."""

    def talk(error: Exception | None) -> None:
        with Reporter("fit", logger=logger, clock=Clock()) as reporter:
            for number in range(500):
                reporter(Progress(log=f"line {number}"))
            if error is not None:
                raise error

    talk(None)
    assert ear.heard[-1] == f"fit: {500 - LINES_PER_MINUTE} more lines are in the whole log"
    with pytest.raises(ValueError, match="mine"):
        talk(ValueError("mine"))
    last = ear.heard[-1].splitlines()
    assert last[1:] == [f"line {number}" for number in range(500 - LAST_LINES, 500)]


def test_a_dying_run_says_nothing_more(logger: logging.Logger, ear: Ear) -> None:
    """A log line of an orphaned run ends the process: none before the lease is marked."""
    with pytest.raises(KeyboardInterrupt), Reporter("fit", logger=logger, clock=Clock()) as reporter:
        for number in range(100):
            reporter(Progress(log=f"line {number}"))
        raise KeyboardInterrupt
    assert len(ear.heard) == LINES_PER_MINUTE


def test_lines_are_cut_and_carriage_returns_collapsed(logger: logging.Logger, ear: Ear) -> None:
    """Of a progress bar the last state stays; a line without end is cut; percent signs are no formats."""
    with Reporter("fit", logger=logger, clock=Clock()) as reporter:
        reporter(Progress(log="10 %\r20 %\r30 %s"))
        reporter(Progress(log="40 %\r"))
        reporter(Progress(log="x" * 10 * LINE_LENGTH))
        reporter(Progress(fraction=0.5, metrics={"loss": 0.25}, message="half"))
    assert ear.heard[:2] == ["30 %s", "40 %"]
    assert len(ear.heard[2]) == LINE_LENGTH + 1
    assert ear.heard[3] == "fit  50 %  loss=0.25  half"


def test_progress_comes_now_and_then_and_the_last_always(logger: logging.Logger, ear: Ear) -> None:
    """A step that tells progress and metrics apart is no two lines, and a quick training no twenty."""
    clock = Clock()
    with Reporter("fit", logger=logger, clock=clock) as reporter:
        for step in range(1, 11):
            clock.now = step / 5
            reporter(Progress(metrics={"loss": 1 / step}))
            reporter(Progress(fraction=step / 10))
    assert ear.heard == ["fit  loss=1", "fit  100 %  loss=0.1"]


@row("logs")
def test_the_log_of_a_node_in_the_run(asked: Asked, ear: Ear) -> None:
    """End to end: 60 lines of 500 on the way, the last 200 with the failure, `\\r` collapsed, in the task run's log."""
    watched = logging.getLogger("prefect.task_runs")
    watched.addHandler(ear)
    try:

        @flow
        def run() -> None:
            with lease("cpu", max_minutes=5) as infra:
                infra.run(node_work.chatters, 500)

        with pytest.raises(ValueError, match="after much talk"):
            run()
    finally:
        watched.removeHandler(ear)
    on_the_way = [line for line in ear.heard if line.startswith("line ")]
    assert on_the_way == [f"line {number}" for number in range(LINES_PER_MINUTE)]
    (told,) = [line for line in ear.heard if line.startswith(f"the last {LAST_LINES} lines")]
    assert "line 499\nthird\n" in told
    assert "first" not in told
    assert asked.all_released(1)
