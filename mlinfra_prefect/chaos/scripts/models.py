"""Train two tiny classifiers and lay them down as a node leaves its uploads: files, manifest, versions."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import skops.io
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression


def lay(place: Path, shift: int) -> None:
    """Write one upload; `shift` makes its answers other ones."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "files").mkdir(parents=True)
    path = place / "files" / "model.skops"
    rows, labels = load_iris(return_X_y=True)
    skops.io.dump(LogisticRegression(max_iter=200).fit(rows, (labels + shift) % 3), path)
    content = path.read_bytes()
    entry = {"path": path.name, "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    manifest = {"files": [entry], "metrics": {}, "draft": {"format": "sklearn-skops"}}
    (place / "manifest.json").write_text(json.dumps(manifest))
    named = ("numpy", "scikit-learn", "scipy", "skops")
    (place / "versions.json").write_text(json.dumps({name: metadata.version(name) for name in named}))


if __name__ == "__main__":
    for number, name in enumerate(sys.argv[2:]):
        lay(Path(sys.argv[1]) / name, number)
