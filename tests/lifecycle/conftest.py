"""A home for each test of the story, in this process and without a keeper; at its end nothing of it runs any more."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "keeper"))

import keeper_judge as judge

from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.request import TrainingRequest

OWNER = Owner(user="tester", host="here")
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A fresh home."""
    root = Path(tempfile.mkdtemp(prefix="mll-"))
    for name in ("MLINFRA_TERRAFORM", "MLINFRA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLINFRA_CACHE", str(CACHE))
    monkeypatch.setenv("MLINFRA_HOME", str(root))
    monkeypatch.chdir(root)
    made = Context(Home(root))
    try:
        yield made
        left = [str(seen) for seen in judge.carriers(made.ledger.ledger_id)]
    finally:
        for seen in judge.carriers(made.ledger.ledger_id):
            judge.end(seen)
        made.ledger.close()
        shutil.rmtree(root, ignore_errors=True)
    assert not left


@pytest.fixture
def asked(context: Context) -> Callable[..., LeaseRecord]:
    """Ask for a lease; its client is this process unless another one is named."""

    def ask_for(key: str = "one", *, client: Client | None = None, **request: Any) -> LeaseRecord:
        return ask(
            context,
            TrainingRequest(**{"max_minutes": 5, **request}),
            key=Key("run", "training", key),
            owner=OWNER,
            client=client or Client(kind="process", process=identify()),
        ).record

    return ask_for


@pytest.fixture
def dead() -> Client:
    """A client that is certainly gone: the process that had this pid, at another time."""
    mine = identify()
    return Client(kind="process", process=mine.revised(start_time=str(int(mine.start_time or 0) - 1)))


@pytest.fixture
def elsewhere() -> Client:
    """A client on another host, of which nothing can be known here."""
    process = ProcessIdentity(host="another", boot="another-boot", pid=4711, start_time="1")
    return Client(kind="process", process=process)
