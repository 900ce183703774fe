"""Other processes open the stores of `sqlite_stores` too, so it is a module that they can import."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from mlinfra_prefect.testing.emulator import MotoServer

# pytest's importlib mode imports no siblings; a spawned process gets this path from its parent.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def moto() -> Iterator[MotoServer]:
    """AWS on a loopback port for this run of the tests; the variables lead to it and to nothing else."""
    with pytest.MonkeyPatch.context() as patch, MotoServer() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(moto: MotoServer) -> str:
    """A bucket of the test's own."""
    from mlinfra_prefect.aws.sdk import client

    moto.proxy.clear()
    name = f"ledger-{uuid4().hex[:12]}"
    client().create_bucket(Bucket=name)
    return name
