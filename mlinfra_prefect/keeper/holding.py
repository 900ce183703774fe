"""What this process is the client of: one thread looks after all of it.

Where a keeper may not see this process, or its life proves nothing, the thread also writes a heartbeat into the ledger.
It holds the named pipe of each record open, so that the watcher sees at once when the process ends, and sees at once
itself when the watcher does: a live client whose keeper died starts a new one. It logs nothing through Prefect: a log
line of an orphaned run raises `SystemExit` (RELIABILITY 5).
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

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.keeper.desk import fifo_of, stands, watcher_alive
from mlinfra_prefect.keeper.starting import have_kept
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import RENEW_SECONDS
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import Client

_log = logging.getLogger("mlinfra_prefect.keeper")
LOOK_SECONDS = 0.25
PIPE_SECONDS = 2.0
"""How long `hold` waits for the watcher to take up a card; after that the thread goes on trying."""
LONGEST_PAUSE_SECONDS = 30.0
"""Between two tries to start a keeper, when it cannot be started."""
BEAT_SECONDS = RENEW_SECONDS
"""Between two heartbeats in the ledger; the lease TTL is four of them."""
BEAT_AGAIN_SECONDS = 5.0
"""After one that could not be written."""


@dataclass(eq=False)
class Hold:
    """One lease or endpoint that this process is the client of."""

    context: Context
    record_id: str
    ended: Callable[[], bool]
    client: Client | None = None
    """Whose heartbeat is written; None: nobody's."""
    next_beat: float = 0.0
    pipe: int | None = None
    over: bool = False
    failures: int = 0
    not_before: float = 0.0
    """When the client's end may be told again, after it could not be."""
    mend_at: float = 0.0
    """When the pipe may be mended again, after it could not be."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self) -> bool:
        """Open the pipe; False when no watcher reads it yet."""
        with self.lock, contextlib.suppress(OSError):
            if self.pipe is None and not self.over:
                path = fifo_of(self.context.home, self.record_id)
                self.pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return self.pipe is not None

    def close(self) -> None:
        """Close the pipe. Idempotent."""
        with self.lock:
            pipe, self.pipe = self.pipe, None
            if pipe is not None:
                os.close(pipe)

    def kept(self) -> KeptRecord | None:
        """The record, while a keeper is needed for it on behalf of this client; else None."""
        seen = self.context.ledger.read(self.record_id)
        if seen is None or not seen.record.live:
            return None
        served = isinstance(seen.record, EndpointRecord | RolloutRecord) and stands(seen.record)
        return None if served else seen.record


class ClientSide:
    """All holds of this process, and the thread that looks after them."""

    def __init__(self) -> None:
        self._holds: dict[str, Hold] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def hold(self, context: Context, record: KeptRecord, ended: Callable[[], bool]) -> None:
        """Open the pipe of a record and look after it until it is let go."""
        record_id, beats = record.id, record.client.heartbeat_at is not None
        hold = Hold(context, record_id, ended, client=record.client if beats else None)
        hold.next_beat = time.monotonic() + BEAT_SECONDS
        until = time.monotonic() + PIPE_SECONDS
        while not hold.open() and time.monotonic() < until and hold.kept() is not None:
            if record.keeper_place == "service":
                break  # it may be on another host: nobody there reads this pipe
            time.sleep(0.005)
        with self._lock:
            before = self._holds.get(record_id)
            self._holds[record_id] = hold
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._look, name="mlinfra-client", daemon=True)
                self._thread.start()
        if before is not None:
            _drop(before)

    def let_go(self, record_id: str) -> None:
        """Close the pipe of a record that goes or has gone. Idempotent."""
        with self._lock:
            hold = self._holds.pop(record_id, None)
        if hold is not None:
            _drop(hold)

    def end(self, record_id: str) -> None:
        """Say that the client of a record has ended, though its process lives on. Idempotent."""
        with self._lock:
            hold = self._holds.get(record_id)
        if hold is None:
            return
        context = hold.context

        def change(record: KeptRecord) -> KeptRecord | None:
            if not record.live or record.client.ended_at is not None:
                return None
            return record.revised(client=record.client.revised(ended_at=context.ledger.now()))

        try:
            ended = revise(context.ledger, record_id, change, actor=context.actor, reason="the client has ended")
            have_kept(context, ended)
        except MlinfraError as error:
            _log.warning("the end of the client of %s cannot be told yet: %s", record_id, error)
            _pause(hold)
            return  # held on to, so that it is told again
        self.let_go(record_id)

    def held(self) -> list[str]:
        """The ids of what this process is the client of."""
        with self._lock:
            return list(self._holds)

    def _look(self) -> None:
        while True:
            with self._lock:
                holds = list(self._holds.values())
                if not holds or os.getpid() != self._pid:
                    self._thread = None
                    return
            told = _wait_for_a_dead_watcher(holds)
            for hold in holds:
                if hold.over:
                    continue
                try:
                    if hold.ended():
                        if time.monotonic() >= hold.not_before:
                            self.end(hold.record_id)
                        continue
                    _beat(hold)
                    if (hold.pipe is None or hold.pipe in told) and time.monotonic() >= hold.mend_at:
                        _mend(hold)
                except Exception:  # noqa: BLE001 (the thread looks after every other lease, too)
                    _log.exception("looking after %s failed", hold.record_id)
                    _pause(hold)


def _wait_for_a_dead_watcher(holds: list[Hold]) -> set[int]:
    """Wait a moment, or until a pipe has lost its reader; return the pipes that have."""
    poll = select.poll()
    for hold in holds:
        with hold.lock:
            if hold.pipe is not None and time.monotonic() >= hold.mend_at:
                poll.register(hold.pipe, 0)  # POLLERR is always told: the reader, the watcher, is gone
    return {descriptor for descriptor, _ in poll.poll(1000 * LOOK_SECONDS)}


def _mend(hold: Hold) -> None:
    """See that a watcher reads the pipe of a hold: there was none, or it died."""
    hold.close()
    try:
        record = hold.kept()
        if record is None:
            _pause(hold)  # it is going, or it stands by itself: nobody needs to be told of our end
            return
        if not watcher_alive(hold.context.home):
            _log.debug("the keeper of %s died; starting a new one", hold.record_id)
            have_kept(hold.context, record)
    except MlinfraError as error:
        _log.warning("the keeper of %s died and cannot be replaced yet: %s", hold.record_id, error)
        _pause(hold)
        return
    if hold.open():
        hold.failures = 0
    else:
        _pause(hold)


def _beat(hold: Hold) -> None:
    """Write the client's heartbeat, where it is time to. One that cannot be written is tried again soon."""
    mine = hold.client
    if mine is None or time.monotonic() < hold.next_beat:
        return
    hold.next_beat = time.monotonic() + BEAT_SECONDS
    ledger = hold.context.ledger

    def change(record: KeptRecord) -> KeptRecord | None:
        client = record.client
        if not record.live or client.process != mine.process or client.ended_at or client.lost_at:
            return None
        return record.revised(client=client.revised(heartbeat_at=ledger.now()))

    try:
        revise(ledger, hold.record_id, change, actor=hold.context.actor, reason="the client lives")
    except MlinfraError as error:
        _log.warning("the heartbeat of the client of %s cannot be written yet: %s", hold.record_id, error)
        hold.next_beat = time.monotonic() + min(BEAT_SECONDS, BEAT_AGAIN_SECONDS)


def _pause(hold: Hold) -> None:
    hold.not_before = hold.mend_at = time.monotonic() + min(LONGEST_PAUSE_SECONDS, LOOK_SECONDS * 2**hold.failures)
    hold.failures = min(hold.failures + 1, 10)


def _drop(hold: Hold) -> None:
    hold.over = True
    hold.close()


CLIENT = ClientSide()
"""The client side of this process."""


def _after_fork() -> None:
    # A forked child is not the client: it must neither hold the pipes open nor answer for the leases. Locks may be
    # held by threads that it does not have, so none is taken.
    for hold in list(CLIENT._holds.values()):  # noqa: SLF001
        if hold.pipe is not None:
            os.close(hold.pipe)
    CLIENT.__init__()  # type: ignore[misc]


os.register_at_fork(after_in_child=_after_fork)
