"""A training that costs nothing, under leases, in every shape a set-up runs it; the tests copy it into a project."""

from __future__ import annotations

import sys
import time

from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner, ThreadPoolTaskRunner

from mlinfra_prefect import ModelArtifact, gpu, lease, node


def fit(seconds: float) -> ModelArtifact:
    (node().output_dir / "model.json").write_text("{}")
    node().progress(0.5, "half")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not node().should_stop:
        time.sleep(0.05)
    return node().artifact(format="json", metrics={"loss": 0.5})


def fit_classifier() -> ModelArtifact:
    """One that can be served."""
    import skops.io
    from sklearn.dummy import DummyClassifier

    skops.io.dump(DummyClassifier().fit([[0.0], [1.0], [2.0]], [3, 3, 4]), node().output_dir / "model.skops")
    return node().artifact(format="sklearn-skops", metrics={"accuracy": 0.9})


def score(model: ModelArtifact) -> dict[str, float]:
    return {"accuracy": model.metrics["accuracy"]}


@task
@gpu("cpu", max_minutes=5)
def fit_on_a_node(number: int) -> ModelArtifact:
    (node().output_dir / "model.json").write_text(f"{number}")
    return node().artifact(format="json", metrics={"loss": 1.0 / number})


@flow
def light(seconds: float = 0.0) -> str:
    """One lease for a block."""
    with lease("cpu", max_minutes=5, grace_seconds=5) as infra:
        return infra.run(fit, seconds).id


@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def in_threads() -> list[str]:
    """One lease for each of two tasks, in threads of this process."""
    return [future.result().id for future in fit_on_a_node.map([1, 2])]


@flow(task_runner=ProcessPoolTaskRunner(max_workers=2))
def in_processes() -> list[str]:
    """The same in child processes."""
    return [future.result().id for future in fit_on_a_node.map([1, 2])]


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        light.serve(name="served")
    else:
        {"light": light, "in_threads": in_threads, "in_processes": in_processes}[sys.argv[1]]()
