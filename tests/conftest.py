"""What every test file leaves behind it for the next one in the same process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LONGEST_FIRST = (
    "docs/test_readmes.py", "keeper/test_keeper_rollouts.py", "aws/test_aws_lease.py", "aws/test_init.py",
    "benchmarks/test_benchmarks.py", "terraform_modules/test_modules_hcl.py", "browser/test_ui_path.py",
    "flows/test_register.py", "keeper/test_keeper_deploy.py", "keeper/test_keeper_under_load.py", "wheel/test_wheel.py",
)  # fmt: skip
"""A file runs in one worker, so one of these that begins last would be waited for alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, all others in their order (with xdist's ``--no-loadscope-reorder``)."""

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


@pytest.fixture(autouse=True, scope="module")
def no_events_for_a_server_that_is_gone() -> Iterator[None]:
    """Prefect keeps one sender of events a process, whatever server it began with: the next file may have another."""
    yield
    module = sys.modules.get("prefect.events.worker")
    if module is not None:
        module.EventsWorker.drain_all(timeout=5, at_exit=False)
