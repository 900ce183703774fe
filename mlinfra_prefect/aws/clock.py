"""The clock of S3, read from the ``Date`` of its answers: two hosts that share a ledger agree on it (rule R5).

A date has whole seconds, so one answer says only within what second the store was when it answered. Each further
answer narrows that, and the earliest time that fits all of them is the time: never ahead of the store, and behind it
by the time that an answer travels. The host's clock only says how much time has passed since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

REFRESH_SECONDS = 60.0
"""How old the last answer may be; clocks of computers drift by less than 10 ms meanwhile."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def passing() -> float:
    """Seconds that pass, also while the host sleeps; from no known beginning."""
    # CLOCK_MONOTONIC stands still while a laptop sleeps on Linux, and leases would live longer by that.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class StoreClock:
    """What the answers of a store say of its time. Safe for threads."""

    def __init__(self, passing: Callable[[], float] = passing) -> None:
        self._passing = passing
        self._lock = threading.Lock()
        self._offset: float | None = None
        self._below = 0.0
        self._measured = 0.0

    def start(self) -> float:
        """Return when a call begins, for `learn`."""
        return self._passing()

    def learn(self, date: str | None, sent: float) -> None:
        """Take an answer's ``Date`` into account; what is no date says nothing."""
        received = self._passing()
        try:
            told = (parsedate_to_datetime(date or "").astimezone(UTC) - EPOCH).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return
        # The store's time lay in [told, told + 1) at some moment between sent and received.
        above, below = told - received, told + 1.0 - sent
        with self._lock:
            if self._offset is not None and above < self._below and self._offset < below:
                self._offset, self._below = max(self._offset, above), min(self._below, below)
            else:  # the first one; or this host's clock drifted away, or somebody set the store's: begin anew
                self._offset, self._below = above, below
            self._measured = received

    def now(self) -> datetime | None:
        """Return the store's time, or None when the last measurement is too old to say."""
        now = self._passing()
        with self._lock:
            if self._offset is None or now - self._measured >= REFRESH_SECONDS:
                return None
            return EPOCH + timedelta(seconds=now + self._offset)
