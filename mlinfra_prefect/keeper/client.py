"""The client's side: ask for a lease, hold its pipe, notice a dead keeper, and say when the client has ended.

A live client whose keeper died starts a new one itself. One thread of the process does all of it, for every lease, and
it logs nothing through Prefect: a log line of an orphaned run raises `SystemExit` (RELIABILITY 5).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mlinfra_prefect import errors
from mlinfra_prefect.errors import InvalidInput, LeaseLost, MlinfraError, NotYetDestroyed, OperationTimedOut
from mlinfra_prefect.keeper.desk import ensure_watcher, fifo_of, lay, wake
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.releasing import begin_release
from mlinfra_prefect.model.lease import EndpointRecord, Kept, State
from mlinfra_prefect.model.receipt import Receipt

_log = logging.getLogger("mlinfra_prefect.keeper")
LOOK_SECONDS = 0.25
READY_POLL_SECONDS = 0.01
PIPE_SECONDS = 10.0


@dataclass
class Hold:
    """One lease or endpoint that this process is the client of."""

    context: Context
    record_id: str
    ended: Callable[[], bool]
    pipe: int | None = None
    over: bool = field(default=False)


class ClientSide:
    """All holds of this process, and the thread that looks after them."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def hold(self, context: Context, record_id: str, ended: Callable[[], bool]) -> None:
        """Open the pipe of a record and look after it until it is let go."""
        hold = Hold(context, record_id, ended)
        self._open(hold)
        with self._lock:
            self._holds[record_id] = hold
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="mlinfra-client", daemon=True)
                self._thread.start()

    def let_go(self, record_id: str) -> None:
        """Close the pipe of a record that goes or has gone. Idempotent."""
        with self._lock:
            hold = self._holds.pop(record_id, None)
        if hold is not None:
            hold.over = True
            _close(hold)

    def end(self, record_id: str) -> None:
        """Say that the client of a record has ended, though its process lives on. Idempotent."""
        with self._lock:
            hold = self._holds.get(record_id)
        if hold is None:
            return

        def change(record: KeptRecord) -> KeptRecord | None:
            if not record.live or record.client.ended_at is not None:
                return None
            return record.revised(client=record.client.revised(ended_at=hold.context.ledger.now()))

        with contextlib.suppress(MlinfraError):  # pid and pipe tell the keeper the same a little later
            revise(hold.context.ledger, record_id, change, actor=hold.context.actor, reason="the client has ended")
            ensure_watcher(hold.context, record_id)
        self.let_go(record_id)

    def held(self) -> list[str]:
        """The ids of what this process is the client of."""
        with self._lock:
            return list(self._holds)

    def _open(self, hold: Hold) -> None:
        path = fifo_of(hold.context.home, hold.record_id)
        until = time.monotonic() + PIPE_SECONDS
        while time.monotonic() < until:
            try:
                hold.pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                # No reader yet: the watcher has not taken up the card. It may also be gone again already.
                seen = hold.context.ledger.read(hold.record_id)
                if seen is None or not seen.record.live:
                    return
                time.sleep(0.005)
            else:
                return

    def _look(self) -> None:
        while True:
            with self._lock:
                holds = list(self._holds.values())
                if not holds or os.getpid() != self._pid:
                    self._thread = None
                    return
            poll = select.poll()
            for hold in holds:
                if hold.pipe is not None:
                    poll.register(hold.pipe, 0)  # POLLERR is always told: the reader, the watcher, is gone
            told = {descriptor for descriptor, _ in poll.poll(1000 * LOOK_SECONDS)}
            for hold in holds:
                if hold.over:
                    continue
                if hold.pipe in told:
                    self._replace_watcher(hold)
                elif hold.ended():
                    self.end(hold.record_id)

    def _replace_watcher(self, hold: Hold) -> None:
        _close(hold)
        try:
            seen = hold.context.ledger.read(hold.record_id)
            if seen is None or not seen.record.live or hold.over:
                return
            if isinstance(seen.record, EndpointRecord) and seen.record.state is State.READY:
                return
            _log.debug("the keeper of %s died; starting a new one", hold.record_id)
            lay(hold.context, seen.record)
            ensure_watcher(hold.context, hold.record_id)
            self._open(hold)
        except (MlinfraError, OSError) as error:
            _log.warning("the keeper of %s died and cannot be replaced yet: %s", hold.record_id, error)
            time.sleep(LOOK_SECONDS)
            hold.pipe = None


CLIENT = ClientSide()
"""The client side of this process."""


def _close(hold: Hold) -> None:
    if hold.pipe is not None:
        os.close(hold.pipe)
        hold.pipe = None


def _after_fork() -> None:
    # A forked child is not the client: it must neither hold the pipes open nor answer for the leases.
    for hold in list(CLIENT._holds.values()):  # noqa: SLF001
        _close(hold)
    CLIENT.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)


def entrust(context: Context, record: KeptRecord, *, ended: Callable[[], bool] = lambda: False) -> None:
    """Give a durable record to the keeper; this process becomes its client unless the record says nobody.

    Raises:
        KeeperUnavailable: no keeper could be started; nothing was created, and the reaper finds the record.
    """
    lay(context, record)
    ensure_watcher(context, record.id)
    process = record.client.process
    if record.client.kind == "process" and process is not None and process.pid == os.getpid():
        CLIENT.hold(context, record.id, ended)


def wait_ready(context: Context, record_id: str, *, timeout: float | None = None) -> KeptRecord:
    """Wait until a record is ready.

    Raises:
        MlinfraError: the class that the keeper recorded, with its reason: the record is going or gone.
        OperationTimedOut: it is neither after `timeout` seconds.
    """
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        record = context.record(record_id)
        if record.state is State.READY:
            return record
        if not record.live:
            raise why(record)
        if until is not None and time.monotonic() > until:
            raise OperationTimedOut(f"{record_id} is still {record.state} after {timeout:.0f} seconds.")
        time.sleep(READY_POLL_SECONDS)


def why(record: Kept) -> MlinfraError:
    """Turn what a record says about its end into the error that its client gets."""
    kind = getattr(errors, record.error, None) if record.error else None
    text = record.reason or f"{record.id} is {record.state}"
    if isinstance(kind, type) and issubclass(kind, MlinfraError) and not issubclass(kind, InvalidInput):
        with contextlib.suppress(TypeError):
            return kind(text)
    return LeaseLost(f"{record.id} is {record.state}: {text}.")


def release(context: Context, record_id: str, *, reason: str, drain: bool = True) -> KeptRecord:
    """Begin the release of a record and have the keeper do it. Returns at once; a safe no-op when it is gone.

    Raises:
        NotFound: there is no such record.
    """
    record = begin_release(context, context.record(record_id).id, reason=reason, drain=drain)
    if record.state is not State.RELEASED:
        lay(context, record)
        ensure_watcher(context, record.id)
    CLIENT.let_go(record.id)
    return record


def wait_released(context: Context, record_id: str, *, timeout: float | None = None) -> Receipt:
    """Wait until a record is released, and return its receipt. A keeper that dies meanwhile is replaced.

    Raises:
        NotYetDestroyed: it is stuck, or not released after `timeout` seconds; the keeper goes on.
    """
    until = None if timeout is None else time.monotonic() + timeout
    next_look = time.monotonic() + LOOK_SECONDS
    while True:
        record = context.record(record_id)
        if record.state is State.RELEASED and record.receipt is not None:
            return record.receipt
        if record.state is State.STUCK:
            raise NotYetDestroyed(
                f"{record_id} is stuck: {record.reason}", "The keeper retries for ever; `mlinfra-prefect ps` shows it."
            )
        if until is not None and time.monotonic() > until:
            raise NotYetDestroyed(
                f"{record_id} is still {record.state} after {timeout:.0f} seconds.", "The keeper goes on with it."
            )
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + LOOK_SECONDS
            if not wake(context.home):
                lay(context, record)
                ensure_watcher(context, record_id)
        time.sleep(READY_POLL_SECONDS)
