"""The launcher's part in checkpoints: bring the last one before the training starts, take each commit while it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from . import checkpoints
from .specs import CheckpointRef
from .transfer import TransferError
from .wire import CHECKPOINT, CHECKPOINT_ACK, write_json

FORWARDED = "FORWARDED"
"""In a store that is a stop on the way: the number of the last commit that is where it outlives the node (`outbox`)."""
FORWARD_SECONDS = 600.0
"""How long a commit may take from the node's own disk to where it outlives the node."""
FORWARD_POLL_SECONDS = 0.05


class CommitTaker:
    """Moves checkpoints between a job's directory and the store of its key.

    Args:
        job_dir: the job.
        ref: the key and its store; None keeps checkpoints on the node only.
        say: writes a line into the job's log.
    """

    def __init__(self, job_dir: Path, ref: CheckpointRef | None, say: Callable[[str], None]) -> None:
        self._dir = job_dir
        self._ref = ref
        self._say = say
        self._seen: str | None = None

    def bring(self, tick: Callable[[], None]) -> str | None:
        """Restore the newest intact commit; returns where it came from (``key/number``), or None."""
        if self._ref is None:
            return None
        number = checkpoints.restore(self._ref.store, self._dir / CHECKPOINT, self._say, tick)
        return None if number is None else f"{self._ref.key}/{number}"

    def take(self, tick: Callable[[], None]) -> bool:
        """Store a commit made since the last call and tell the training; returns whether there was one.

        A commit that cannot be stored is said in the log and in the answer, and the one before it stays: it is never
        a reason to end the training.
        """
        if self._ref is None:
            return False
        place = self._dir / CHECKPOINT
        try:
            found = checkpoints.read_commit(place)
        except TransferError as error:
            if str(error) != self._seen:  # once, not at every poll
                self._say(str(error))
                self._seen = str(error)
            return False
        if found is None or found.id == self._seen:
            return False
        self._seen = found.id
        stored, reason = True, ""
        try:
            number = checkpoints.store(place, found, self._ref.store, tick)
            stored = self._forwarded(number, tick)
            if not stored:
                reason = "it lies on this node only"
                self._say(f"the checkpoint of step {found.step} has not left this node within {FORWARD_SECONDS:g} s")
        except (TransferError, OSError) as error:
            stored, reason = False, str(error)
            self._say(f"the checkpoint of step {found.step} was not stored, the one before it stays: {error}")
        with contextlib.suppress(OSError):
            write_json(self._dir / CHECKPOINT_ACK, {"id": found.id, "stored": stored, "reason": reason})
        return True

    def _forwarded(self, number: int, tick: Callable[[], None]) -> bool:
        """Wait until a commit is where it outlives the node; at once where the store itself is such a place."""
        assert self._ref is not None
        told = self._ref.store / FORWARDED
        until = time.monotonic() + FORWARD_SECONDS
        while told.exists():
            with contextlib.suppress(OSError, ValueError):
                if int(told.read_text(encoding="ascii")) >= number:
                    return True
            if time.monotonic() >= until:
                return False
            tick()
            time.sleep(FORWARD_POLL_SECONDS)
        return True
