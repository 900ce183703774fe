"""Artifacts: what a finished training leaves, with everything that says where it came from.

The hashes that are trusted are computed by us when the files are stored, never by the node (rule R15).
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field

from mlinfra_prefect.model.json_values import JsonObject
from mlinfra_prefect.model.names import Id, Line, Sha256
from mlinfra_prefect.model.record import Moment, Record


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    # "." has no parts: it is the artifact itself, not a file in it.
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in text or "\0" in text:
        raise ValueError("must be a path inside the artifact")
    return text


class ArtifactFile(Record):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_inside)] = Field(
        title="Path", description="Inside the artifact, with '/' between its parts.", examples=["model.skops"]
    )
    sha256: Sha256 = Field(title="sha256", description="Of its content, computed when it was stored.")
    size: int = Field(title="Size (bytes)", description="Of its content.", ge=0, examples=[48213])


class ModelArtifact(Record):
    """A trained model: files with their hashes, metrics, and its lineage.

    Where its files are on the machine that asks is `path`: the artifact store of the flow's host, or the node's copy.
    """

    id: Id = Field(title="Id", description="Its own, minted when it was stored.", examples=["a0f3c5d7e9b1a2c4d6e8f"])
    name: Line = Field(title="Name", description="The function or command that made it.", examples=["acme.churn:train"])
    format: Line = Field(
        default="files",
        title="Format",
        description="Says who can serve it; 'files' is served by nobody.",
        examples=["sklearn-skops", "python", "files"],
    )
    uri: Line = Field(
        title="URI",
        description="Where the files are stored.",
        examples=["file:///home/ada/.mlinfra-prefect/artifacts/a0f3"],
    )
    sha256: Sha256 = Field(title="sha256", description="Over the sorted (path, sha256) pairs of its files.")
    files: tuple[ArtifactFile, ...] = Field(title="Files", description="Every file of it, with its hash.")
    metrics: dict[str, float] = Field(
        default_factory=dict, title="Metrics", description="The last value of each.", examples=[{"auc": 0.91}]
    )
    params: JsonObject = Field(
        default_factory=dict, title="Parameters", description="What it was trained with.", examples=[{"depth": 3}]
    )
    metadata: JsonObject = Field(
        default_factory=dict, title="Metadata", description="What the training added.", examples=[{"classes": [0, 1]}]
    )
    versions: dict[str, str] = Field(
        default_factory=dict,
        title="Versions",
        description="Of Python and key packages on the node.",
        examples=[{"python": "3.12.3", "scikit-learn": "1.7.2"}],
    )
    lease_id: Id = Field(
        title="Lease", description="The lease on which it was trained.", examples=["l0f3c5d7e9b1a2c4d6e8f-1"]
    )
    environment: Id = Field(title="Environment", description="The lease's.", examples=["dev"])
    code_hash: str = Field(
        title="Code hash", description="Of the code package that trained it.", examples=["9f86d081884c7d659a2f"]
    )
    request_hash: str = Field(
        title="Request hash", description="Of the request it was trained under.", examples=["60303ae22b998861bce3"]
    )
    environment_hash: str = Field(
        title="Environment hash",
        description="Of interpreter and requirements on the node.",
        examples=["fd61a03af4f77d870fc2"],
    )
    resumed_from: Line | None = Field(
        default=None, title="Resumed from", description="The checkpoint, if any.", examples=["step-1200"]
    )
    resumed_across_code: bool = Field(
        default=False, title="Resumed across a code change", description="The checkpoint was made by other code."
    )
    created_at: Moment = Field(title="Stored at", description="When its files were stored and verified, in UTC.")

    @property
    def path(self) -> Path:
        """The directory that holds the files on this machine.

        On a node it is the copy that the agent verified (``MLINFRA_ARTIFACT_<id>``); elsewhere the artifact store.
        """
        on_node = os.environ.get(f"MLINFRA_ARTIFACT_{self.id.upper()}")
        return Path(on_node) if on_node else Path(self.uri.removeprefix("file://"))

    @property
    def __mlinfra_artifact__(self) -> dict[str, Any]:
        """What the codecs send to the node: the whole record, found again by its id."""
        return self.model_dump(mode="json")

    @classmethod
    def from_wire(cls, payload: dict[str, Any], path: Path | None) -> Self:
        """Make the artifact on the node from what the codecs sent; `path` is the node's copy of its files."""
        found = cls.model_validate(payload)
        return found if path is None else found.revised(uri=f"file://{path}")
