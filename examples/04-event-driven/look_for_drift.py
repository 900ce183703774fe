"""Compare what is asked today with what was trained on, and tell Prefect when they differ too much."""

from __future__ import annotations

import numpy as np
from learn_from_events import NAME
from sklearn.datasets import load_digits

from mlinfra_prefect import drift_detected

THRESHOLD = 0.2
BINS = np.linspace(0, 16, 9)


def population_stability_index(before: np.ndarray, now: np.ndarray) -> float:
    """Return the PSI of the images' mean brightness: above 0.2 is usually called drift."""
    shares = [np.histogram(images.mean(axis=1), BINS)[0] / len(images) + 1e-4 for images in (before, now)]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


if __name__ == "__main__":
    trained_on, _ = load_digits(return_X_y=True)
    asked_today = np.clip(trained_on * 1.4, 0, 16)  # a new scanner, with more contrast
    psi = population_stability_index(trained_on, asked_today)
    print(f"psi {psi:.2f}, {'above' if psi > THRESHOLD else 'below'} {THRESHOLD}")
    if psi > THRESHOLD:
        # One event for a day, however often it is looked.
        event = drift_detected(NAME, metric="psi", value=psi, threshold=THRESHOLD, key="2026-11-22")
        print(f"drift of {NAME}, {'told' if event else 'and nobody to tell'}")
