"""One Prefect server for all integration tests; for each module a home of its own that ends with nothing left in it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.testing.utilities import prefect_test_harness

HERE = Path(__file__).parent
PROJECT = HERE / "project"

sys.path[:0] = [str(HERE), str(PROJECT)]

from integration_harness import CACHE, QUIET_SECONDS, Asked, processes_of, records  # noqa: E402

from mlinfra_prefect.integration.phase import context  # noqa: E402
from mlinfra_prefect.keeper import client as keeper  # noqa: E402
from mlinfra_prefect.model.endpoint import EndpointRecord  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", autouse=True)
def prefect_server() -> Iterator[None]:
    # Tests reach nothing beyond this machine, and the server tells its makers nothing of them.
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    os.environ["DO_NOT_TRACK"] = "1"
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_heartbeats(prefect_server: None) -> Iterator[None]:
    """Without this every flow run waits for a sleeping heartbeat thread when it ends: a second for each of sixty runs.

    Of a module, not of the session: a worker's later tests elsewhere must not find heartbeats switched off.
    """
    with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


@pytest.fixture(scope="module", autouse=True)
def home() -> Iterator[Path]:
    """A fresh home in a short place (sockets and pipes have short names). At its end everything must be released."""
    root = Path(tempfile.mkdtemp(prefix="mlh-"))
    patch = pytest.MonkeyPatch()
    patch.setenv("MLINFRA_HOME", str(root))
    patch.setenv("MLINFRA_CACHE", str(CACHE))
    patch.setenv("MLINFRA_KEEPER_PLACE", "process")
    patch.chdir(PROJECT)
    try:
        yield root
        # An endpoint takes its rollouts with it.
        there = [*records(), *records(EndpointRecord)]
        left = [record.id for record in there if record.live]
        for record in there:
            keeper.release(context(), record.id, reason="the tests have ended", drain=False)
        for record in there:
            keeper.wait_released(context(), record.id, timeout=QUIET_SECONDS)
        assert not left, f"live at the end of the module: {left}"
        assert processes_of(context().ledger.ledger_id) == []
    finally:
        patch.undo()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def asked(home: Path) -> Asked:
    """What this test asks for."""
    return Asked()
