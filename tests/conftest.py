"""What every test file leaves behind it for the next one in the same process."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="module")
def no_events_for_a_server_that_is_gone() -> Iterator[None]:
    """Prefect keeps one sender of events a process, whatever server it began with: the next file may have another."""
    yield
    module = sys.modules.get("prefect.events.worker")
    if module is not None:
        module.EventsWorker.drain_all(timeout=5, at_exit=False)
