"""How people see what happens: log lines in a Prefect run, a live line in a terminal, nothing in a pipe.

A training may print thousands of lines a minute, and each one in Prefect is a row in its database: so at most 60 lines
a minute go there, and the last 200 when it fails. The whole log is kept: ``mlinfra-prefect logs``.
"""

from __future__ import annotations

import collections
import logging
import sys
import time
from types import TracebackType
from typing import Any

from prefect.logging import get_run_logger
from rich.console import Console
from rich.status import Status

from mlinfra_prefect.integration.runs import in_run
from mlinfra_prefect.lifecycle.training import Progress

LINES_PER_MINUTE = 60
LAST_LINES = 200


def say(message: str, *, level: int = logging.INFO) -> None:
    """Say one line: to the run's log inside a run, else to this package's logger."""
    logger: Any = get_run_logger() if in_run() else logging.getLogger("mlinfra_prefect")
    logger.log(level, message)


class Reporter:
    """Tells the progress of one job as it comes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._logger: Any = get_run_logger() if in_run() else None
        self._status: Status | None = None
        self._window = time.monotonic()
        self._in_window = 0
        self._held_back = 0
        self._last: collections.deque[str] = collections.deque(maxlen=LAST_LINES)
        self._metrics: dict[str, float] = {}
        self._fraction: float | None = None

    def __enter__(self) -> Reporter:
        if self._logger is None and sys.stderr.isatty():
            self._status = Console(stderr=True).status(f"{self._label}: waiting for the node")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._status is not None:
            self._status.stop()
        if self._logger is not None and self._held_back:
            self._logger.info("%s: %d more lines are in the whole log", self._label, self._held_back)
        if isinstance(error, Exception) and self._held_back and self._logger is not None:
            self._logger.error("the last %d lines of %s:\n%s", len(self._last), self._label, "\n".join(self._last))

    def __call__(self, news: Progress) -> None:
        """Take one piece of news."""
        if news.log:
            self._line(news.log)
        if news.metrics:
            self._metrics |= news.metrics
        if news.fraction is not None:
            self._fraction = news.fraction
        if news.fraction is not None or news.metrics or news.message:
            text = self._summary(news.message)
            if self._status is not None:
                self._status.update(text)
            elif self._logger is not None:
                self._limited(text)

    def _summary(self, message: str) -> str:
        parts = [self._label]
        if self._fraction is not None:
            parts.append(f"{100 * self._fraction:.0f} %")
        parts += [f"{name}={value:.4g}" for name, value in self._metrics.items()]
        return "  ".join([*parts, message] if message else parts)

    def _line(self, text: str) -> None:
        self._last.append(text)
        if self._logger is not None:
            self._limited(text)

    def _limited(self, text: str) -> None:
        now = time.monotonic()
        if now - self._window > 60:
            self._window, self._in_window = now, 0
        if self._in_window >= LINES_PER_MINUTE:
            self._held_back += 1
            return
        self._in_window += 1
        self._logger.info("%s", text)
