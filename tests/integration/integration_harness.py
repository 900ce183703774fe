"""What the integration tests share: the rows of the combination table, and looking at leases."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import psutil

from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.model.lease import Kept, LeaseRecord, State

F = TypeVar("F")
R = TypeVar("R", bound=Kept)
PROJECT = Path(__file__).parent / "project"
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
QUIET_SECONDS = 60.0


def row(name: str):
    """Mark a test as the proof of one row of docs/combinations.md (`test_combination_docs` compares the names)."""
    assert name

    def same(test: F) -> F:
        return test

    return same


class Asked:
    """The leases that were written since a moment."""

    def __init__(self) -> None:
        self._before = {record.id for record in records()}

    @property
    def leases(self) -> list[LeaseRecord]:
        return [record for record in records() if record.id not in self._before]

    @property
    def one(self) -> LeaseRecord:
        (found,) = self.leases
        return found

    def all_released(self, number: int) -> bool:
        return len(self.leases) == number and all(record.state is State.RELEASED for record in self.leases)


def records(kind: type[R] = LeaseRecord) -> list[R]:
    """The records of a kind, oldest first."""
    return [seen.record for seen in context().ledger.records() if isinstance(seen.record, kind)]


def eventually(condition, seconds: float = QUIET_SECONDS) -> bool:
    """Whether something becomes true; the time only bounds a failure."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def processes_of(ledger_id: str) -> list[str]:
    """Every node and training of a ledger that lives, whoever started it."""

    def look() -> list[str]:
        found = []
        for process in psutil.process_iter():
            try:
                environ = process.environ()
            except (psutil.Error, OSError):
                continue
            if environ.get("MLINFRA_LEDGER_ID") == ledger_id and environ.get("MLINFRA_LEASE_ID"):
                found.append(f"{process.pid} {process.name()}")
        return found

    eventually(lambda: not look(), 10.0)
    return look()


def run_script(text: str, *, stdin: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the project in a process of its own, as a user would."""
    from prefect.settings import PREFECT_API_URL

    place = Path(os.environ["MLINFRA_HOME"]) / "script.py"
    place.write_text(text)
    return subprocess.run(
        [sys.executable, "-" if stdin else str(place)],
        input=text if stdin else None, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PYTHONPATH": str(PROJECT), **env},
    )  # fmt: skip
