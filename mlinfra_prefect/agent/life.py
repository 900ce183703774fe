"""What lets an agent live: the one place that says why it must end.

Agent and launcher both ask here, each for itself: a launcher whose agent was killed must still see a revoked grant.
Nothing else ends them: not Terraform, not the keeper, not the flow.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from .wire import AGENT_LOCK

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from .specs import AgentSpec

_UNREADABLE_SECONDS = 10.0


class Life:
    """The right to live of one agent.

    Args:
        spec: what the agent was told.
        clock: epoch seconds; the deadline is compared with it.
        monotonic: seconds for waits.
    """

    def __init__(
        self,
        spec: AgentSpec,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._lock = spec.node_dir / AGENT_LOCK
        self._clock = clock
        self._monotonic = monotonic
        self._inode: tuple[int, int] | None = None
        self._unreadable_since: float | None = None
        self._deadline = spec.deadline

    def hold(self, status: os.stat_result) -> None:
        """Remember which lock file is ours, so that a replaced one is noticed."""
        self._inode = (status.st_dev, status.st_ino)

    def ended(self) -> str | None:
        """Why the agent must end now, in words, or None while it may live. Cheap: two system calls on files."""
        try:
            reason = self._lock_lost() or self._grant_lost()
        except OSError as error:
            return "the deadline passed" if self._past(self._deadline) else self._unreadable(error)
        if self._past(self._deadline):
            return "the deadline passed"
        self._unreadable_since = None
        return reason

    def _lock_lost(self) -> str | None:
        try:
            status = self._lock.stat()
        except (FileNotFoundError, NotADirectoryError):
            return "agent.lock is gone" if self._spec.node_dir.is_dir() else "the node directory is gone"
        if self._inode is not None and (status.st_dev, status.st_ino) != self._inode:
            return "agent.lock was replaced"
        return None

    def _grant_lost(self) -> str | None:
        try:
            token = self._spec.grant.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return "the grant was revoked"
        first, _, second = token.strip().partition(b"\n")
        if first.strip() != self._spec.grant_token.strip().encode():
            return "the grant was replaced"
        # A served model may be asked to go on: its grant then carries a deadline of its own.
        with contextlib.suppress(ValueError):
            self._deadline = float(second) if second else self._spec.deadline
        return None

    def _past(self, deadline: float | None) -> bool:
        return deadline is not None and self._clock() >= deadline

    def _unreadable(self, error: OSError) -> str | None:
        # A disk that hiccups once must not end a 20-hour training; one that stays silent must.
        now = self._monotonic()
        if self._unreadable_since is None:
            self._unreadable_since = now
        if now - self._unreadable_since < _UNREADABLE_SECONDS:
            return None
        return f"the grant could not be read for {_UNREADABLE_SECONDS:g} s ({error})"
