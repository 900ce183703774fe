"""Starts: what importing the package costs beside Prefect, and what listing costs beside an empty interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.benchmarks.homes import bench
from tests.benchmarks.lines import Line, ratios
from tests.benchmarks.side_by_side import Effort, take_turns

AIM = 1.1


def imports(effort: Effort) -> list[Line]:
    """Whole interpreters, from start to exit."""
    statements = {
        "prefect": "import prefect",
        "ours": "import mlinfra_prefect",
        "lease": "from mlinfra_prefect import lease",
        "flow": "from prefect import flow, task",
    }
    with bench() as here:
        argv = {name: [sys.executable, "-c", text] for name, text in statements.items()}
        found = take_turns(argv, effort, cwd=here.project, env=here.env)

    def line(question: str, ours: str, theirs: str, aim: float | None) -> Line:
        return ratios(question, found[ours], found[theirs], aim=aim, names="ours | Prefect's")

    return [
        line("import mlinfra_prefect / import prefect", "ours", "prefect", AIM),
        line("from mlinfra_prefect import lease / import prefect", "lease", "prefect", None),
        line("from mlinfra_prefect import lease / from prefect import flow, task", "lease", "flow", AIM),
    ]


def listing(effort: Effort) -> list[Line]:
    """`mlinfra-prefect ps` in a home that has a ledger and nothing in it."""
    with bench() as here:
        assert here.context.ledger.ledger_id
        programs = {
            "ps": [Path(sys.executable).with_name("mlinfra-prefect"), "ps"],
            "pass": [sys.executable, "-c", "pass"],
        }
        found = take_turns(programs, effort, cwd=here.project, env=here.env)
    return [ratios("mlinfra-prefect ps / python -c pass", found["ps"], found["pass"], aim=10.0, names="ps | pass")]
