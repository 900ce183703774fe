"""The benchmarks run and print every line; no time is asserted, because a busy machine is no defect."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
QUESTIONS = (
    "import mlinfra_prefect / import prefect",
    "from mlinfra_prefect import lease / import prefect",
    "from mlinfra_prefect import lease / from prefect import flow, task",
    "mlinfra-prefect ps / python -c pass",
    "embedded, first: lease to ready - the same saved plan by hand",
    "embedded, first: lease to ready / init && apply by hand from nothing",
    "embedded, later: lease to ready - the same saved plan by hand",
    "embedded, later: lease to ready / init && apply by hand from nothing",
    "lease to ready inside a flow run (Prefect's temporary server)",
    "training finished to node's process gone",
    "training finished to destroyed in the ledger",
    "SIGKILL of the client to release begun",
    "SIGKILL of the client to release begun, p95",
    "client and keeper killed: start of a reaper to taken over, p95",
    "4 releases at once: begun to the last meter stopped",
    "watcher's resident memory with 1 lease",
    "promote to first request on the new version",
    "requests lost over the version changes",
    "request through the router / to the server direct, p50",
    "request through the router / to the server direct, p99",
    "router: start to the first answer",
    "router: resident memory",
    "a pass of the reaper, 200 released and 100 live: SQLite",
    "a pass of the reaper, 200 released and 100 live: S3 (moto)",
    "a pass of the reaper, 200 released and 100 live: calls of S3",
)
SECONDS = 1800.0
"""A busy machine is no defect; what hangs is."""


@dataclass(frozen=True)
class Ran:
    """A run of the benchmarks: its lines by their questions, and what it printed."""

    lines: dict[str, dict[str, Any]]
    out: str
    err: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One round of everything."""
    told = tmp_path_factory.mktemp("bench") / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", "--quick", "--json", str(told)],
        cwd=CHECKOUT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return Ran({line["question"]: line for line in json.loads(told.read_text())["lines"]}, done.stdout, done.stderr)


@pytest.mark.slow
def test_every_line_of_the_benchmarks_is_measured_and_printed(ran: Ran) -> None:
    """`make bench` answers every question of its list, with the single measurements in the JSON, and exits 0."""
    for question in QUESTIONS:
        assert ran.lines[question]["values"]
        assert question in ran.out
    assert any(question.startswith("watcher's resident memory per further lease") for question in ran.lines)
    for question in ("keeper's watcher: resident memory", "keeper's processor time for each minute"):
        assert any(line.startswith(f"{question} (of 10 leases at rest)") for line in ran.lines)
    assert all((line["met"] is None) == (line["aim"] is None) for line in ran.lines.values())
