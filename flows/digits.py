"""What the ready-made flows train: handwritten digits.

They are those that scikit-learn ships (1,797 images of 8 by 8 pixels), or your own in the same shape.

These functions run on the node. They import scikit-learn inside, so that whoever only wants to call them needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlinfra_prefect import ModelArtifact, node

HELD_OUT = 0.25
SEED = 0
DATASET = "DATASET"
"""The input under which the data of a run reaches the node; without it, the digits that scikit-learn ships."""


def split(dataset: Path | None = None) -> tuple[Any, Any, Any, Any]:
    """Return (training images, held-out images, training labels, held-out labels); the same each time.

    Args:
        dataset: a NumPy archive (``.npz``) with ``images`` (n by 64, values from 0 to 16) and ``labels`` (n).

    Raises:
        ValueError: the file holds something else.
    """
    from sklearn.model_selection import train_test_split

    if dataset is None:
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
    else:
        images, labels = _read(dataset)
    return tuple(train_test_split(images, labels, test_size=HELD_OUT, random_state=SEED, stratify=labels))


def _read(dataset: Path) -> tuple[Any, Any]:
    import numpy as np

    with np.load(dataset, allow_pickle=False) as found:  # a data set is data: a pickle would be a program
        missing = {"images", "labels"} - set(found.files)
        if missing:
            raise ValueError(f"dataset: {dataset.name} has no {' and no '.join(sorted(missing))}")
        images, labels = found["images"], found["labels"]
    if images.ndim != 2 or images.shape[1] != 64 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"dataset: {dataset.name} has images of {images.shape} and labels of {labels.shape}, not (n, 64) and (n,)"
        )
    return images, labels


def train_digits(epochs: int = 10, regularisation: float = 0.1) -> ModelArtifact:
    """Train a softmax regression, telling its progress, and leave it as a model that can be served.

    Args:
        epochs: rounds of the optimiser (L-BFGS, four steps each), warm-started from the last.
        regularisation: C of scikit-learn, the inverse of the penalty's strength.
    """
    import warnings

    import skops.io
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    here = node()
    images, held_out, labels, held_out_labels = split(here.inputs.get(DATASET))
    scaler = StandardScaler().fit(images)
    scaled = scaler.transform(images)
    classifier = LogisticRegression(C=regularisation, max_iter=4, warm_start=True)
    for epoch in range(1, epochs + 1):
        with warnings.catch_warnings():
            # Each round stops after four steps by design; the loss below tells how far it has come.
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(scaled, labels)
        here.metrics(step=epoch, loss=float(log_loss(labels, classifier.predict_proba(scaled))))
        here.progress(epoch / epochs)
        if here.should_stop:
            break
    model = make_pipeline(scaler, classifier)
    skops.io.dump(model, here.output_dir / "model.skops")
    accuracy = float(model.score(held_out, held_out_labels))
    return here.artifact(format="sklearn-skops", name="digits", metrics={"accuracy": accuracy})


def score_digits(model: ModelArtifact) -> dict[str, float]:
    """Load a trained model from its files and score it on the held-out images of this run's data."""
    import skops.io
    from sklearn.metrics import accuracy_score, log_loss

    _, held_out, _, labels = split(node().inputs.get(DATASET))
    classifier = skops.io.load(model.path / "model.skops")
    return {
        "accuracy": float(accuracy_score(labels, classifier.predict(held_out))),
        "log_loss": float(log_loss(labels, classifier.predict_proba(held_out))),
    }
