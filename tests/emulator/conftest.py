"""An emulator of the test's own, its clients, and user data that counts as ours."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.testing.aws import Emulator, user_data

# pytest's importlib mode imports no siblings; a spawned process gets this path from its parent.
sys.path.insert(0, str(Path(__file__).parent))

from emulated_cloud import Cloud

MINUTE_SECONDS = 0.5
"""A minute of ``shutdown -P +N`` in these tests."""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return user data, in base64, that runs a text as the boot script: the packaged one is replaced by it."""
    held = {"text": b""}
    monkeypatch.setattr(user_data, "boot_script", lambda: held["text"])

    def rendered(text: str, minutes: int = 120) -> str:
        held["text"] = text.encode()
        boot = base64.b64encode(b"{}").decode()
        return base64.b64encode(f"#!/bin/bash\nshutdown -P +{minutes}\nMLINFRA_BOOT={boot}\n{text}".encode()).decode()

    return rendered


@pytest.fixture
def aws() -> Iterator[Emulator]:
    """An emulator in which a minute until powering off is half a second."""
    with Emulator(minute_seconds=MINUTE_SECONDS) as emulator:
        yield emulator


@pytest.fixture
def cloud(aws: Emulator) -> Cloud:
    """The emulator's clients."""
    return Cloud(aws)
