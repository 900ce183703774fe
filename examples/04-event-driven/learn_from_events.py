"""Retrain when somebody says that the data changed, or that it drifts.

`python learn_from_events.py` serves the flow and waits for events. `new_data.py` and `look_for_drift.py` tell them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.events import DeploymentEventTrigger

from mlinfra_prefect import ModelArtifact, current, deploy, evaluate, gate, gate_refused, lease, node

NAME = "digits-events"


def train_digits() -> ModelArtifact:
    """Train on the node, on the data that the run was given."""
    import skops.io
    from sklearn.linear_model import LogisticRegression

    images, _, labels, _ = split(node().inputs.get("data"))
    model = LogisticRegression(C=0.1, max_iter=200).fit(images, labels)
    here = node()
    skops.io.dump(model, here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits")


def score_both(candidate: ModelArtifact, served: ModelArtifact | None) -> dict[str, float]:
    """Score the candidate and the model that is served now on the same images, on the node."""
    import skops.io

    _, images, _, labels = split(node().inputs.get("data"))
    models = {"candidate.accuracy": candidate, "current.accuracy": served}
    return {
        name: float(skops.io.load(model.path / "model.skops").score(images, labels))
        for name, model in models.items()
        if model is not None
    }


def split(data: Path | None) -> tuple[Any, Any, Any, Any]:
    """Return training images, held-out images and the labels of both: of a file, or of what scikit-learn ships."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    if data is None:
        images, labels = load_digits(return_X_y=True)
    else:
        with np.load(data, allow_pickle=False) as found:
            images, labels = found["images"], found["labels"]
    return tuple(train_test_split(images / 16, labels, random_state=0, stratify=labels))


@flow(log_prints=True)
def learn_from_events(data: str = "", reason: str = "started by hand") -> Any:
    """Train on some data, compare, and roll out what is not worse.

    Args:
        data: A .npz file as file:// URI. Empty: what scikit-learn ships.
        reason: Why; events fill it in.
    """
    print(f"because: {reason}")
    with lease("cpu", name="digits", max_minutes=10) as infra:
        with_data = infra.with_options(inputs={"data": data} if data else {})
        model = with_data.run(train_digits)
        scores = evaluate(with_data, score_both, model, current(NAME))
    verdict = gate(scores, by=-0.01, floors={"accuracy": 0.9})
    if not verdict:
        return gate_refused(verdict)
    endpoint = deploy(model, serving=NAME, canary=[10, 50, 100], expires_minutes=60)
    print(f"served at {endpoint.url}: {verdict.reason}")
    return endpoint.url


DATA_CHANGED = DeploymentEventTrigger(
    name="the digits changed",
    expect={"mlinfra-prefect.dataset.updated"},
    match={"prefect.resource.id": "mlinfra-prefect.dataset.digits"},  # of this data only
    parameters={"data": "{{ event.payload.uri }}", "reason": "version {{ event.payload.version }} of the data"},
)
DATA_DRIFTS = DeploymentEventTrigger(
    name="the digits drift",
    expect={"mlinfra-prefect.drift.detected"},
    match={"prefect.resource.id": f"mlinfra-prefect.endpoint.dev.{NAME}"},
    parameters={"reason": "drift: {{ event.payload.metric }} is {{ event.payload.value }}"},
)

if __name__ == "__main__":
    learn_from_events.serve(name="on-events", triggers=[DATA_CHANGED, DATA_DRIFTS], limit=1)
