"""A project directory with a fresh home for what the pages do, and one Prefect server for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def docs_api() -> Iterator[str]:
    """The address of a Prefect server; the one of this session if it has one already."""
    if (running := get_current_settings().api.url) is not None:
        yield str(running)
        return
    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


class Reader:
    """Somebody who does what a page says, in a directory of theirs."""

    def __init__(self, project: Path, home: Path, api: str) -> None:
        self.project = project
        self.env = {
            **os.environ,
            "MLINFRA_HOME": str(home),
            "MLINFRA_CACHE": os.environ.get("MLINFRA_TEST_CACHE") or str(CHECKOUT / ".cache"),
            "PREFECT_API_URL": api,
            "COLUMNS": "100",
        }

    def does(self, *words: str, timeout: float = 240) -> str:
        """Run a command that must end with 0; returns what it printed."""
        if words[0] == "mlinfra-prefect":
            words = (sys.executable, "-m", "mlinfra_prefect", *words[1:])
        elif words[0] == "python":
            words = (sys.executable, *words[1:])
        done = subprocess.run(
            words, cwd=self.project, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout[-6000:]}"
        return done.stdout

    def live(self) -> list[str]:
        """The ids of what is not released."""
        told = subprocess.run(
            [sys.executable, "-m", "mlinfra_prefect", "ps", "--json"],
            cwd=self.project, env=self.env, capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return [item["id"] for item in json.loads(told.stdout)]


@pytest.fixture
def reader(docs_api: str, tmp_path: Path) -> Iterator[Reader]:
    """A reader with an empty project and an empty home; what they leave live is given back."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text('[project]\nname = "reader"\nversion = "0"\n')
    someone = Reader(project, tmp_path / "home", docs_api)
    yield someone
    for record in someone.live():
        someone.does("mlinfra-prefect", "release", record)
