"""Fixtures of the modules' tests; what they do is in `modules_harness`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# pytest's importlib mode imports no siblings; the harness is one, shared by this area's tests.
sys.path.insert(0, str(Path(__file__).parent))

from modules_harness import NO_PROVIDER, REQUIRED, Modules, NoProvider, environment_variables

from mlinfra_prefect.errors import EngineMissing
from mlinfra_prefect.terraform import find_engine
from mlinfra_prefect.testing.emulator import MotoServer


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """AWS on a loopback port."""
    with MotoServer() as server:
        yield server


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory, moto: MotoServer) -> Modules:
    """The modules in a copy, with a provider and an account for them."""
    place = tmp_path_factory.mktemp("modules")
    try:
        engine = find_engine(None, cache_dir=tmp_path_factory.mktemp("engine"))
    except EngineMissing as error:
        pytest.skip(str(error))
    found = Modules(engine, place, moto.environment)
    try:
        found.provider()
    except NoProvider as error:
        if os.environ.get(REQUIRED):
            raise
        pytest.skip(f"{NO_PROVIDER}: {str(error).strip().splitlines()[-1]}")
    return found


@pytest.fixture(scope="session")
def shared_plan(modules: Modules) -> Callable[..., dict[str, Any]]:
    """Plans stack aws-shared in a profile, once for each."""
    root = modules.place / "terraform" / "stacks" / "aws-shared"
    known: dict[str, dict[str, Any]] = {}

    def plan(profile: str = "default", egress: str = "internet", **changed: Any) -> dict[str, Any]:
        key = repr((profile, egress, changed))
        if not known:
            modules.init(root)
        if key not in known:
            known[key] = modules.plan(root, environment_variables(profile=profile, egress=egress, **changed))
        return known[key]

    return plan
