"""A home of its own for each benchmark, given back whole: nothing that was leased here may outlive it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import psutil

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.keeper.client import release
from mlinfra_prefect.keeper.desk import has_work, watcher_alive
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import State
from tests.benchmarks.side_by_side import clean_environment

CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).resolve().parents[2] / ".cache")
"""Engines and archives that can be made again; the same for every home, as a user's would be warm."""
QUIET_SECONDS = 60.0
TALK_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A home, the context that opens it from this process, and a small project whose flow leases in it."""

    context: Context
    project: Path
    env: dict[str, str]
    holders: list[Holder] = field(default_factory=list)

    @property
    def home(self) -> Home:
        return self.context.home

    def wait_until_quiet(self) -> None:
        """Wait until the keeper has gone, so that whoever leases next has to start one."""
        until = time.monotonic() + QUIET_SECONDS
        while has_work(self.home) or watcher_alive(self.home):
            if time.monotonic() > until:
                raise RuntimeError(f"the keeper of {self.home.root} does not go")
            time.sleep(0.02)

    def holder(self, *arguments: str) -> Holder:
        """Start the project's program."""
        self.holders.append(Holder([sys.executable, "holder.py", *arguments], self.project, self.env))
        return self.holders[-1]


class Holder:
    """A running `holder`, and what it says: one JSON object per line."""

    def __init__(self, argv: list[str], cwd: Path, env: dict[str, str]) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (read when the program has ended)
        self.process = subprocess.Popen(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, text=True
        )
        self._said: SimpleQueue[str] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line)
        self._said.put("")

    def says(self) -> dict[str, Any]:
        """Wait for the next thing that it says.

        Raises:
            RuntimeError: it ended without saying it, or says nothing.
        """
        try:
            while (line := self._said.get(timeout=TALK_SECONDS)) and not line.startswith("{"):
                pass  # Prefect may print before us
        except Empty:
            line = ""
        if not line:
            self.end()
            self._errors.seek(0)
            raise RuntimeError(f"the holder said nothing more: {self._errors.read().decode(errors='replace')[-3000:]}")
        return json.loads(line)

    def end(self, *, within: float = 30) -> None:
        """Wait for its end; killed if it does not come `within` seconds."""
        try:
            self.process.wait(timeout=within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def bench(*, engine: Path | None = None) -> Iterator[Bench]:
    """Make a home and a project, and give everything back at the end, also after a failure."""
    place = Path(tempfile.mkdtemp(prefix="mlb-"))
    home = Home(place / "home")
    project = place / "project"
    project.mkdir()
    shutil.copy(Path(__file__).with_name("holder.py"), project)
    (project / "pyproject.toml").write_text('[project]\nname = "bench"\nversion = "0"\n')
    settings = {
        "MLINFRA_HOME": str(home.root),
        "MLINFRA_CACHE": str(CACHE),
        "PREFECT_HOME": str(place / "prefect"),
    }
    if engine is not None:
        settings["MLINFRA_TERRAFORM"] = str(engine)
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        made = Bench(Context(home), project, clean_environment(**settings))
        try:
            yield made
        finally:
            _give_back(made)
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(place, ignore_errors=True)


def _give_back(made: Bench) -> None:
    for holder in made.holders:
        holder.end(within=0)
    for seen in made.context.ledger.records(states=[state for state in State if state is not State.RELEASED]):
        with suppress(MlinfraError):
            release(made.context, seen.record.id, reason="the benchmark is over", drain=False)
    made.wait_until_quiet()
    if left := processes(made.context.ledger.ledger_id):
        raise RuntimeError(f"processes of {made.home.root} are left: {left}")


def processes(ledger_id: str) -> list[int]:
    """The pids of live processes that carry a ledger's id."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("MLINFRA_LEDGER_ID") == ledger_id and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found
