"""What runs on nodes in the integration tests. Imports nothing heavy, so that a job costs little more than Python."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path

from mlinfra_prefect.agent.node import node
from mlinfra_prefect.model.artifact import ModelArtifact


class Refused(Exception):
    """An error class of the user's."""


class Opaque:
    """A class that no codec knows."""

    __slots__ = ("lock",)


def add(a: int, b: int = 1) -> int:
    return a + b


async def add_later(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


def whoami() -> dict[str, str]:
    names = ("MLINFRA_LEDGER_ID", "MLINFRA_LEASE_ID", "MLINFRA_ATTEMPT", "MLINFRA_DEADLINE", "MLINFRA_PARAMS")
    return {name: os.environ[name] for name in names}


def fails_until(marker: str) -> int:
    """Fail as long as a file is not there, and make it."""
    path = Path(marker)
    if path.exists():
        return 1
    path.write_text("seen")
    raise ValueError("not yet")


def raises(kind: str) -> None:
    if kind == "custom":
        raise Refused("by hand")
    raise ValueError("a", 1)


def fit(weight: float = 1.0) -> ModelArtifact:
    (node().output_dir / "model.json").write_text(json.dumps({"weight": weight}))
    node().progress(0.5, "half")
    return node().artifact(format="json", metrics={"loss": 1.0 - weight})  # type: ignore[return-value]


def fit_badly() -> ModelArtifact:
    (node().output_dir / "model.json").write_text("{}")
    node().metrics(step=1, loss=float("nan"))
    return node().artifact(format="json")  # type: ignore[return-value]


def fit_nothing() -> ModelArtifact:
    return node().artifact(format="json")  # type: ignore[return-value]


def fit_classifier() -> ModelArtifact:
    import skops.io
    from sklearn.dummy import DummyClassifier

    skops.io.dump(DummyClassifier().fit([[0.0], [1.0], [2.0]], [3, 3, 4]), node().output_dir / "model.skops")
    return node().artifact(format="sklearn-skops")  # type: ignore[return-value]


def score(weight: float) -> dict[str, float]:
    return {"auc": weight}


def weight_of(model: Path) -> float:
    return float(json.loads((model / "model.json").read_text())["weight"])


def score_words() -> dict[str, str]:
    return {"auc": "good"}


def write_command(place: str) -> None:
    """`python -m node_work`: a training as a command."""
    Path(place, "weights.txt").write_text(os.environ["MLINFRA_PARAMS"])


def checkpoints_when_told(started: str) -> int:
    """Train for ever; told to stop, commit a checkpoint and return."""
    there = node()
    Path(started).write_text("")
    while not there.should_stop:
        time.sleep(0.02)
    (there.checkpoint_dir / "step.txt").write_text("7")
    there.commit_checkpoint(step=7)
    return 7


def never_stops(started: str) -> None:
    """Ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(started).write_text("")
    while True:
        time.sleep(0.02)


def waits_for(path: str) -> str:
    """Runs until a file is there."""
    while not Path(path).exists():
        time.sleep(0.02)
    return path


def chatters(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")
    print("first\rsecond\rthird")
    raise ValueError("after much talk")


def takes_opaque(thing: Opaque) -> int:
    return 1


def gives_opaque() -> Opaque:
    return Opaque()


def gives_numbers():
    yield 1


async def gives_numbers_later():
    yield 1


if __name__ == "__main__":
    write_command(os.environ["MLINFRA_OUTPUT_DIR"])
