"""How people see what happens: log lines in a Prefect run, a live line in a terminal, nothing in a pipe.

A training may print thousands of lines a minute, and each one in Prefect is a row in its database: so at most 60 lines
a minute go there, and the last 200 when it fails. The whole log is kept: ``mlinfra-prefect logs``.
"""

from __future__ import annotations

import collections
import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from prefect.logging import get_run_logger
from rich.console import Console
from rich.markup import escape
from rich.status import Status

from mlinfra_prefect.integration.runs import in_run
from mlinfra_prefect.integration.settings import settings
from mlinfra_prefect.lifecycle.training import Progress

LINES_PER_MINUTE = 60
LAST_LINES = 200
SUMMARY_SECONDS = 2.0
"""Between two lines of progress and metrics; the last one is always told."""
LINE_LENGTH = 2000
"""Characters of one line that go into Prefect, which drops messages that are too large."""


def say(message: str, *, level: int = logging.INFO) -> None:
    """Say one line: to the run's log inside a run, else to this package's logger."""
    logger: Any = get_run_logger() if in_run() else logging.getLogger("mlinfra_prefect")
    logger.log(level, message)


class Reporter:
    """Tells the progress of one job as it comes.

    Args:
        label: what runs, for people.
        logger: where lines go; the run's by default, nowhere outside of a run.
        clock: seconds, monotonic.
    """

    def __init__(
        self, label: str, *, logger: logging.Logger | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._label = label
        self._clock = clock
        self._logger: Any = logger or (get_run_logger() if in_run() else None)
        self._status: Status | None = None
        self._said: collections.deque[float] = collections.deque(maxlen=settings().log_lines_per_minute)
        self._held_back = 0
        self._last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._metrics: dict[str, float] = {}
        self._fraction: float | None = None
        self._next_summary = float("-inf")
        self._untold: str | None = None

    def __enter__(self) -> Self:
        if self._logger is None and sys.stderr.isatty():
            self._status = Console(stderr=True).status(f"{self._label}: waiting for the node")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
        dying = error is not None and not isinstance(error, Exception)
        if self._logger is None or dying:
            return  # a line of a dying run can end the process (RELIABILITY 5), and its lease is to be given back first
        if self._untold is not None:
            self._limited(self._untold)
        if not self._held_back:
            return
        self._logger.info("%s: %d more lines are in the whole log", self._label, self._held_back)
        if error is not None:
            self._logger.error("the last %d lines of %s:\n%s", len(self._last), self._label, "\n".join(self._last))

    def __call__(self, news: Progress) -> None:
        """Take one piece of news."""
        if news.log:
            # What a progress bar overwrote was never meant to be read.
            self._line(news.log.rstrip("\r").rsplit("\r", 1)[-1])
        if news.metrics:
            self._metrics |= news.metrics
        if news.fraction is not None:
            self._fraction = news.fraction
        if news.fraction is not None or news.metrics or news.message:
            text = self._summary(news.message)
            if self._status is not None:
                self._status.update(escape(text))
            elif self._logger is not None:
                self._summarise(text, at_once=bool(news.message))

    def _summarise(self, text: str, *, at_once: bool) -> None:
        """Tell a summary now, or keep it until the next is due: a step often tells progress and metrics apart."""
        if not at_once and self._clock() < self._next_summary:
            self._untold = text
            return
        self._untold = None
        self._next_summary = self._clock() + SUMMARY_SECONDS
        self._limited(text)

    def _summary(self, message: str) -> str:
        parts = [self._label]
        if self._fraction is not None:
            parts.append(f"{100 * self._fraction:.0f} %")
        parts += [f"{name}={value:.4g}" for name, value in self._metrics.items()]
        return "  ".join([*parts, message] if message else parts)

    def _line(self, text: str) -> None:
        text = text if len(text) <= LINE_LENGTH else f"{text[:LINE_LENGTH]}…"
        self._last.append(text)
        if self._logger is not None:
            self._limited(text)

    def _limited(self, text: str) -> None:
        now = self._clock()
        if len(self._said) == self._said.maxlen and now - self._said[0] < 60:
            self._held_back += 1
            return
        self._said.append(now)
        self._logger.info("%s", text)
