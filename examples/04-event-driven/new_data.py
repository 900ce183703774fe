"""Write a new version of the data, and tell Prefect. The last step of an import, in a flow or outside of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from mlinfra_prefect import dataset_updated

VERSION = "2026-11-22"

if __name__ == "__main__":
    images, labels = load_digits(return_X_y=True)
    path = Path(__file__).resolve().with_name(f"digits-{VERSION}.npz")
    np.savez(path, images=images, labels=labels)
    # The same version is the same event: an import that is run again starts nothing again.
    event = dataset_updated("digits", path.as_uri(), version=VERSION, rows=len(labels))
    print(f"{len(labels)} rows of version {VERSION}, {'told' if event else 'and nobody to tell'}")
