"""Rules of kill points: a leaked variable does nothing, each point kills once, and each stands in the code."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlinfra_prefect import killpoints
from mlinfra_prefect.keeper.starting import watcher_env
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.home import Home

PACKAGE = Path(killpoints.__file__).parent
PASS_TWICE = """
import sys
from pathlib import Path
from mlinfra_prefect.killpoints import killpoint
for _ in range(2):
    killpoint("before-apply", Path(sys.argv[1]))
    print("passed", flush=True)
"""


def passes(home: Path, at: str) -> tuple[int, int]:
    """How often a process came by a point, and how it ended."""
    env = {**os.environ, killpoints.VARIABLE: at}
    ended = subprocess.run(
        [sys.executable, "-c", PASS_TWICE, str(home)], env=env, capture_output=True, text=True, check=False
    )
    assert not ended.stderr
    return ended.stdout.count("passed"), ended.returncode


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("before-apply", (0, -signal.SIGKILL)),
        ("before-apply:2", (1, -signal.SIGKILL)),
        ("before-apply:3", (2, 0)),
        ("after-apply", (2, 0)),
        ("after-apply,before-apply", (0, -signal.SIGKILL)),
        ("before-apply:x", (2, 0)),
        ("nonsense", (2, 0)),
    ],
)
def test_in_the_home_of_a_fault_test_a_point_kills_the_process_that_comes_by(
    tmp_path: Path, at: str, expected: tuple[int, int]
) -> None:
    (tmp_path / killpoints.MARK).touch()
    assert passes(tmp_path, at) == expected


def test_each_point_kills_once_in_a_home(tmp_path: Path) -> None:
    """What is killed there is started again, and must come past."""
    (tmp_path / killpoints.MARK).touch()
    assert passes(tmp_path, "before-apply") == (0, -signal.SIGKILL)
    assert passes(tmp_path, "before-apply") == (2, 0)


def test_a_variable_that_leaked_does_nothing(tmp_path: Path) -> None:
    """In a home that no fault test made it kills nobody, leaves no trace, and reaches no keeper."""
    assert passes(tmp_path, "before-apply") == (2, 0)
    assert list(tmp_path.iterdir()) == []


def test_only_a_fault_tests_keeper_gets_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is on no allow-list: neither keepers elsewhere nor any Terraform or training see it."""
    monkeypatch.setenv(killpoints.VARIABLE, "before-apply")
    context = Context(Home(tmp_path / "home"))
    assert killpoints.VARIABLE not in watcher_env(context)
    (context.home.root / killpoints.MARK).touch()
    assert watcher_env(context)[killpoints.VARIABLE] == "before-apply"
    context.ledger.close()


def test_every_point_stands_in_the_code_once_and_no_other() -> None:
    """A name in the list that nobody passes would be a fault that is never injected."""
    text = "".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "killpoints.py")
    assert sorted(re.findall(r'killpoint\("([a-z-]+)", context\.home\.root\)', text)) == sorted(killpoints.POINTS)
