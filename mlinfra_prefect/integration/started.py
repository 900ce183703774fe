"""Work that a lease's owner started in the background: what the block of the lease waits for, and answers for."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from contextvars import ContextVar
from typing import Any, TypeVar

from mlinfra_prefect.errors import LeaseLost

R = TypeVar("R")
started_through_infra: ContextVar[bool] = ContextVar("mlinfra_started_through_infra", default=False)


class Started(Future[R]):
    """A future that knows whether anybody asked how it ended: what nobody asked for, the block raises."""

    asked = False

    def result(self, timeout: float | None = None) -> R:
        """Return what the work returned, or raise what it raised."""
        try:
            return super().result(timeout)
        finally:
            self.asked = self.done()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the work raised, or None."""
        try:
            return super().exception(timeout)
        finally:
            self.asked = self.done()


class Block:
    """What all handles of one lease in this process share: what was started, and whether its block is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: list[Started[Any]] = []
        self._foreign = 0
        self._home_thread: int | None = None
        self._closed = False
        self.used: set[str] = set()
        """The ids of jobs that were run through this process."""

    def bind(self) -> None:
        """Remember the thread of the block: work from elsewhere must not outlive it."""
        self._home_thread = threading.get_ident()

    def start(self, lease_id: str) -> Started[Any]:
        """Return the future of work that is about to be started.

        Raises:
            LeaseLost: the block has ended.
        """
        future: Started[Any] = Started()
        with self._lock:
            self._check(lease_id)
            self._started.append(future)
        return future

    def begin(self, lease_id: str) -> bool:
        """Work begins in this thread; returns whether it is foreign, to be given to `end`.

        Raises:
            LeaseLost: the block has ended.
        """
        home = self._home_thread in {None, threading.get_ident()}
        foreign = not started_through_infra.get() and not home
        with self._lock:
            self._check(lease_id)
            self._foreign += foreign
        return foreign

    def end(self, *, foreign: bool) -> None:
        """Work of this thread has ended."""
        with self._lock:
            self._foreign -= foreign

    def close(self) -> int:
        """Refuse further work. Returns how many tasks run on it that were not started through it. Idempotent."""
        with self._lock:
            self._closed = True
            return self._foreign

    def settle(self) -> tuple[list[BaseException], int]:
        """Wait for what was started, then `close`. Returns what was raised and not asked for, and `close`'s number."""
        while True:
            with self._lock:
                running = [future for future in self._started if not future.done()]
                if not running:
                    self._closed = True
                    break
            wait(running)
        unasked = [future for future in self._started if not future.asked and not future.cancelled()]
        return [error for future in unasked if (error := future.exception()) is not None], self._foreign

    def _check(self, lease_id: str) -> None:
        if self._closed:
            raise LeaseLost(
                f"The block of lease {lease_id} has ended, so nothing more can run on it.", "Ask for a new lease."
            )
