"""A flow that says where it is and can be killed there; run as a script by the tests."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow

from mlinfra_prefect import ModelArtifact, deploy, lease, node

MODEL = "model.skops"


def slow_fit(seconds: float) -> ModelArtifact:
    import skops.io
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    model = LogisticRegression(max_iter=20).fit(images / 16, labels)
    skops.io.dump(model, node().output_dir / MODEL)
    end = time.monotonic() + seconds
    (node().checkpoint_dir / "step.txt").write_text("1")
    node().commit_checkpoint(step=1)
    node().progress(0.5)
    while time.monotonic() < end and not node().should_stop:
        time.sleep(0.05)
    return node().artifact(format="sklearn-skops")


@flow
def doomed(seconds: float, said: str) -> None:
    """Lease, train, deploy, release; what it reaches is written to a file."""
    place = Path(said)
    with lease("cpu", max_minutes=5, grace_seconds=5) as infra:
        place.write_text("ready")
        model = infra.run(slow_fit, seconds)
        place.write_text("trained")
    place.write_text("deploying")
    endpoint = deploy(model, serving="doomed", expires_minutes=5)
    place.write_text("serving")
    endpoint.release()
    place.write_text("done")


if __name__ == "__main__":
    doomed(float(sys.argv[1]), sys.argv[2])
