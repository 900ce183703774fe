"""Types survive: a decorated task is the same typed task, and what runs on a node returns what its function returns."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAMPLE = Path(__file__).with_name("typing_sample.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_mypy_strict_passes_over_the_sample() -> None:
    """`mypy --strict` over the sample: every `assert_type` holds and every wrong call in it is an error."""
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file", str(ROOT / "pyproject.toml"), str(SAMPLE)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
