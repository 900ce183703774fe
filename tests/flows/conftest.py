"""One Prefect server for these tests, and a fresh home for each."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[str]:
    """The address of a Prefect server that lives as long as the session."""
    with prefect_test_harness(server_startup_timeout=120):
        url = get_current_settings().api.url
        assert url
        yield str(url)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty ``MLINFRA_HOME`` with a short path, beside the shared cache."""
    place = Path(tempfile.mkdtemp(prefix="mlf-"))
    cache = os.environ.get("MLINFRA_TEST_CACHE") or str(CHECKOUT / ".cache")
    monkeypatch.setenv("MLINFRA_HOME", str(place))
    monkeypatch.setenv("MLINFRA_CACHE", cache)
    yield place
    shutil.rmtree(place, ignore_errors=True)
