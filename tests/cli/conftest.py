"""The command line as its users have it: a process of its own, in a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.agent.identity import is_alive
from mlinfra_prefect.keeper.desk import watcher_identity
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.model.endpoint import KeptRecord
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.testing.records import path_to, sample_endpoint, sample_lease, sample_rollout

CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
SECONDS = 60
MAKE: dict[str, Callable[..., KeptRecord]] = {
    "lease": sample_lease, "endpoint": sample_endpoint, "rollout": sample_rollout,
}  # fmt: skip


@dataclass
class Cli:
    """Runs verbs in one home."""

    home: Home
    env: dict[str, str] = field(default_factory=dict)

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "mlinfra_prefect", *words]

    def environment(self, **env: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}}
        return kept | {"MLINFRA_HOME": str(self.home.root), "MLINFRA_CACHE": str(CACHE)} | self.env | env

    def __call__(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*words), check=False, capture_output=True, text=True, env=self.environment(**env),
            timeout=SECONDS, cwd=self.home.root.parent,
        )  # fmt: skip


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """The command line in a home that is not there yet."""
    return Cli(Home(tmp_path / "home"))


@pytest.fixture
def write(cli: Cli) -> Iterator[Callable[..., str]]:
    """Writes records into the home's ledger, in any state, and returns their ids."""
    ledger = SqliteLedger(cli.home.ensure().ledger)

    def write(kind: str, name: str, state: State = State.READY, **changes: Any) -> str:
        shape = {"ledger_id": ledger.ledger_id, "client": Client(kind="none"), "keeper": None}
        record = MAKE[kind](name, **shape | changes)
        holds = [f"endpoint:{record.environment}:{name}"] if kind == "endpoint" and state is not State.RELEASED else []
        seen = ledger.create(record, actor="test", reason="written by a test", holds=holds)
        for step in path_to(state):
            seen = ledger.replace(
                seen, seen.record.revised(state=step, reason=f"it is {step}"), actor="test", reason="on"
            )
        return record.id

    yield write
    ledger.close()
    # What a test wrote may stand for hours, and a verb may have started a keeper for it.
    watcher = watcher_identity(cli.home)
    if watcher is not None and is_alive(*watcher):
        os.kill(watcher[0], signal.SIGKILL)


@pytest.fixture(scope="session")
def leased(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, str]]:
    """A real lease without a client, made by ``up``; given back at the end of the session."""
    cli = Cli(Home(tmp_path_factory.mktemp("cli") / "home"))
    done = cli("up", "cpu", "--max-minutes", "15", "--name", "shared", "--json")
    assert done.returncode == 0, done.stderr
    import json

    lease = json.loads(done.stdout)["id"]
    yield cli, lease
    done = cli("release", lease)
    assert done.returncode == 0, done.stderr
