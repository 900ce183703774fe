"""Retrain every night, and serve the new model only where it is not worse than the one that is served.

`python retrain_digits.py` serves the flow on a schedule, and stays. `retrain_now.py` runs it once, at once.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.schedules import Cron

from mlinfra_prefect import ModelArtifact, current, deploy, evaluate, gate, gate_refused, lease, node

NAME = "digits-nightly"
NIGHTLY = Cron("0 2 * * *", timezone="Europe/Berlin")


def train_digits(day: str) -> ModelArtifact:
    """Train on the node, on what was known that day."""
    import skops.io
    from sklearn.linear_model import LogisticRegression

    images, _, labels, _ = split(day)
    model = LogisticRegression(C=0.1, max_iter=200).fit(images, labels)
    here = node()
    skops.io.dump(model, here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits", day=day)


def score_both(candidate: ModelArtifact, served: ModelArtifact | None) -> dict[str, float]:
    """Score the candidate and the model that is served now on the same images, on the node."""
    import skops.io

    _, images, _, labels = split("")
    models = {"candidate.accuracy": candidate, "current.accuracy": served}
    return {
        name: float(skops.io.load(model.path / "model.skops").score(images, labels))
        for name, model in models.items()
        if model is not None
    }


def split(day: str) -> tuple[Any, Any, Any, Any]:
    """Return training images, held-out images and the labels of both.

    Each day has its own three quarters of the training images, as if data came and went. What is held out stays.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    known, held_out, known_labels, held_out_labels = train_test_split(
        images / 16, labels, random_state=0, stratify=labels
    )
    if day:
        known, _, known_labels, _ = train_test_split(
            known, known_labels, train_size=0.75, random_state=int(day.replace("-", ""))
        )
    return known, held_out, known_labels, held_out_labels


@flow(log_prints=True)
def retrain_digits(day: str = "", tolerance: float = 0.01) -> Any:
    """Train, compare, and roll out what is not worse.

    Args:
        day: Whose data is trained on, such as 2026-11-22. Empty: today.
        tolerance: By how much the accuracy may be below that of the model served now.
    """
    day = day or f"{datetime.now(UTC):%Y-%m-%d}"
    served = current(NAME)
    with lease("cpu", name="digits", max_minutes=10) as infra:
        model = infra.run(train_digits, day)
        scores = evaluate(infra, score_both, model, served)
    # The node is gone here: nothing below pays for it.
    verdict = gate(scores, by=-tolerance, floors={"accuracy": 0.9})
    print(f"{day}: {verdict}")
    if not verdict:
        return gate_refused(verdict)  # the run ends Completed, as GateRefused, and nobody is woken
    endpoint = deploy(model, serving=NAME, canary=[10, 50, 100], probe={"seconds": 1.0})
    print(f"{day}: served at {endpoint.url}, instead of {served.metadata['day'] if served else 'nothing'}")
    return endpoint.url


if __name__ == "__main__":
    # One run at a time: a night is late rather than beside another one.
    retrain_digits.serve(name="nightly", schedule=NIGHTLY, limit=1)
