"""The modules' own tests (`terraform test`, with a provider that is a mock), and their format."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from modules_harness import AWS_MODULES, AWS_STACKS, SOURCES, Modules, examples

EVERY = (*AWS_MODULES, *AWS_STACKS)
KEEPER = """
import subprocess, sys
provider = subprocess.Popen([sys.argv[1], "-debug"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
sys.stdin.read()
provider.terminate()
"""
"""Ends the provider when its standard input closes, which it does however the tests end."""


@pytest.fixture(scope="module")
def one_provider(modules: Modules) -> Iterator[dict[str, str]]:
    """One provider process for all of them: a mock asks it for its schema only, which takes it two seconds a start."""
    program = next(modules.provider().glob("*/*/*/*/*/terraform-provider-aws*"))
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TF_LOG": "off"},
    ) as keeper:  # fmt: skip
        assert keeper.stdout is not None
        assert keeper.stdin is not None
        found, until = None, time.monotonic() + 60
        while found is None and time.monotonic() < until:
            found = re.search(r"TF_REATTACH_PROVIDERS='(.*)'", keeper.stdout.readline())
        assert found, "the provider did not say how to reach it"
        yield {"TF_REATTACH_PROVIDERS": found[1]}
        keeper.stdin.close()


@pytest.mark.parametrize("name", EVERY)
def test_the_modules_own_tests_pass(name: str, modules: Modules, one_provider: dict[str, str]) -> None:
    """Each has some, and each of them passes."""
    root = modules.place / "terraform" / name
    modules.init(root)
    done = modules.run(root, "test", "-json", env=one_provider)
    lines = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    wrong = [each for each in lines if each["@level"] == "error"]
    assert not wrong, [(each["diagnostic"]["detail"], each["diagnostic"].get("snippet")) for each in wrong]
    runs = [each["test_run"] for each in lines if each.get("type") == "test_run" and each["test_run"].get("status")]
    assert runs
    assert ({run["status"] for run in runs}, done.returncode) == ({"pass"}, 0)


def test_everything_is_formatted(modules: Modules) -> None:
    """As `terraform fmt` writes it, the examples of the READMEs included."""
    written = modules.place / "written"
    written.mkdir()
    for name, text in examples().items():
        (written / f"{name.replace('/', '-')}.tf").write_text(text)
    for place in (SOURCES, written):
        said = modules.run(place, "fmt", "-check", "-recursive", "-list=true", "-no-color")
        assert (said.returncode, said.out.strip()) == (0, "")


def test_no_lock_file_and_no_state_is_committed() -> None:
    """A lock file made from a mirror names one platform's checksum and would stop every other (ADR 22)."""
    strange = [path for pattern in (".terraform*", "*.tfstate*", "*.tfvars*") for path in SOURCES.rglob(pattern)]
    assert not strange
