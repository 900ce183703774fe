"""The launcher's part in checkpoints: bring the last one before the training starts, take each commit while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from . import checkpoints
from .specs import CheckpointRef
from .transfer import TransferError
from .wire import CHECKPOINT, CHECKPOINT_ACK, write_json


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
            checkpoints.store(place, found, self._ref.store, tick)
        except (TransferError, OSError) as error:
            stored, reason = False, str(error)
            self._say(f"the checkpoint of step {found.step} was not stored, the one before it stays: {error}")
        with contextlib.suppress(OSError):
            write_json(self._dir / CHECKPOINT_ACK, {"id": found.id, "stored": stored, "reason": reason})
        return True
