"""A house for each test, and the verdict at its end: nothing of its ledger runs, and every record is released."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

# pytest's importlib mode imports no siblings; the harness is one, shared by this area's tests.
sys.path.insert(0, str(Path(__file__).parent))

from keeper_harness import CACHE, House

from mlinfra_prefect.terraform import find_engine


@pytest.fixture(scope="session")
def engine() -> str:
    """The real Terraform of this host."""
    CACHE.mkdir(exist_ok=True)
    return str(find_engine(None, cache_dir=CACHE).path)


@pytest.fixture
def house(request: pytest.FixtureRequest, engine: str) -> Iterator[House]:
    """A fresh home; at the end of the test the judge must find nothing left of it."""
    made = House(Path(tempfile.mkdtemp(prefix="mlk-")), CACHE, engine)
    failed = request.session.testsfailed
    yield made
    problems = made.close(strict=request.session.testsfailed == failed)
    assert not problems, "\n".join(problems)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An upload of a small real model, as a node leaves it."""
    return upload(tmp_path_factory.mktemp("model"), lambda labels: labels)


@pytest.fixture(scope="session")
def contrary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, trained to say something else to everything."""
    return upload(tmp_path_factory.mktemp("contrary"), lambda labels: (labels + 1) % 3)


def upload(place: Path, relabelled: Callable[[Any], Any]) -> Path:
    import hashlib

    import skops.io
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    (place / "files").mkdir()
    path = place / "files" / "model.skops"
    rows, labels = load_iris(return_X_y=True)
    skops.io.dump(LogisticRegression(max_iter=200).fit(rows, relabelled(labels)), path)
    content = path.read_bytes()
    entry = {"path": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    draft = {"format": "sklearn-skops"}
    (place / "manifest.json").write_text(json.dumps({"files": [entry], "metrics": {}, "draft": draft}))
    named = ("numpy", "scikit-learn", "scipy", "skops")
    (place / "versions.json").write_text(json.dumps({name: metadata.version(name) for name in named}))
    return place


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory for what a training waits for."""
    place = Path(tempfile.mkdtemp(prefix="mls-"))
    yield place
    shutil.rmtree(place, ignore_errors=True)
