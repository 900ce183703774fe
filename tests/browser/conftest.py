"""One Prefect with a worker and one Chromium for all of these tests; a window of its own for each."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# pytest's importlib mode imports no siblings; these two are shared with the benchmarks.
sys.path.insert(0, str(Path(__file__).parent))

import prefect_screen
from prefect_place import Place, prefect_place
from prefect_screen import KNOWN_OUTSIDE, REQUIRED, Screen

SHOTS = "MLINFRA_SCREENSHOTS"
ASKS_EVERY_SECONDS = 1.0


@pytest.fixture(scope="module")
def window() -> Iterator[object]:
    """A Chromium. Tests are skipped where there is none, so whoever comes here without one requires it.

    For one module and no longer: Playwright keeps an event loop running in this thread, in which no other test can
    call `asyncio.run`.
    """
    if why := prefect_screen.missing():
        pytest.fail(f"{why} ({REQUIRED}=1)", pytrace=False)
    with prefect_screen.browser() as found:
        yield found


@pytest.fixture(scope="module")
def place(window: object) -> Iterator[Place]:
    """A Prefect with the shipped flows registered and a worker. Nothing of it outlives the tests, leases included."""
    with prefect_place(asks_every=ASKS_EVERY_SECONDS) as here:
        yield here


@pytest.fixture
def shots(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where pictures go: MLINFRA_SCREENSHOTS keeps them."""
    kept = os.environ.get(SHOTS)
    return (Path(kept) if kept else tmp_path) / re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))


@pytest.fixture
def screen(window: object, place: Place, shots: Path) -> Iterator[Screen]:
    """A window. However the test ends there is a picture of it, and it has asked nobody whom we do not know of."""
    shown = Screen(window, place.url, shots)  # type: ignore[arg-type]
    yield shown
    shown.shot("end")
    shown.close()
    assert shown.outside <= KNOWN_OUTSIDE, f"Prefect's UI asks {shown.outside - KNOWN_OUTSIDE}"


@pytest.fixture
def form(place: Place, screen: Screen) -> Screen:
    """The form of model-lifecycle/on-demand."""
    screen.open_form(place.deployment("model-lifecycle/on-demand")["id"])
    return screen
