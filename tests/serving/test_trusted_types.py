"""What a model is made of is known before anything is created for it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier

from mlinfra_prefect.artifacts import hash_file
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.local.serving import check_trusted
from mlinfra_prefect.model.artifact import ArtifactFile, ModelArtifact

TREE = "sklearn.tree._tree.Tree"


def artifact(directory: Path, kind: str = "sklearn-skops") -> ModelArtifact:
    """A forest, saved and described."""
    path = directory / "model.skops"
    skops.io.dump(RandomForestClassifier(2).fit([[0], [1]], [0, 1]), path)
    entry = ArtifactFile(path=path.name, sha256=hash_file(path), size=path.stat().st_size)
    return ModelArtifact(
        id="a1", name="forest", format=kind, uri=f"file://{directory}", sha256=entry.sha256, files=(entry,),
        lease_id="l1", environment="dev", code_hash="c", request_hash="r", environment_hash="e",
        created_at=datetime.now(UTC),
    )  # fmt: skip


def test_types_that_skops_does_not_trust_are_named(tmp_path: Path) -> None:
    """The error names the type, the field, and what to write."""
    with pytest.raises(InvalidInput, match=f"serving.trusted_types: model.skops .*{TREE}") as refused:
        check_trusted(artifact(tmp_path), ())
    assert f"trusted_types=['{TREE}']" in str(refused.value)


def test_types_that_were_named_are_trusted(tmp_path: Path) -> None:
    """Exactly those, and others are still refused."""
    model = artifact(tmp_path)
    check_trusted(model, (TREE,))
    with pytest.raises(InvalidInput, match=TREE):
        check_trusted(model, ("sklearn.tree._tree.Other",))


def test_trusted_types_are_for_skops_only(tmp_path: Path) -> None:
    """A predictor of one's own loads what it likes: trusting a type there would mean nothing."""
    check_trusted(artifact(tmp_path, "python"), ())
    with pytest.raises(InvalidInput, match="serving.trusted_types: goes with models of format 'sklearn-skops'"):
        check_trusted(artifact(tmp_path, "python"), (TREE,))
