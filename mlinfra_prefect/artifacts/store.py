"""The artifact store on a file system.

A node *uploads* into ``incoming``; nothing there is trusted. *Committing* recomputes every hash, compares it with the
node's manifest, and moves the files into place with a record written last: a crash at any moment leaves either no
artifact or a whole one. Release never touches this store.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.agent.transfer import copy_tree
from mlinfra_prefect.agent.wire import sync_directory
from mlinfra_prefect.errors import ArtifactCorrupted, BadMetrics, NoModel, NotFound, OperationTimedOut
from mlinfra_prefect.model.artifact import ArtifactFile, ModelArtifact
from mlinfra_prefect.model.names import digest, is_id
from mlinfra_prefect.model.record import parsed

COMMIT_SECONDS = 600.0
"""How long a commit waits for another process that commits the same upload."""
_RECORD = "artifact.json"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where an artifact comes from: what the client knows and the node must not be asked."""

    name: str
    lease_id: str
    environment: str
    code_hash: str
    request_hash: str
    environment_hash: str
    params: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    resumed_from: str | None = None
    resumed_across_code: bool = False


class ArtifactStore:
    """Artifacts below one directory; safe to use from several processes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def incoming(self, lease_id: str, job_id: str) -> Path:
        """The directory into which the node of a lease uploads one job's outputs."""
        return self._directory / ".incoming" / lease_id / job_id

    def commit(self, incoming: Path, lineage: Lineage) -> ModelArtifact:
        """Verify what a node uploaded and keep it. Idempotent: a second call returns the same artifact.

        Raises:
            NoModel: the upload holds no file.
            ArtifactCorrupted: a file is missing, or differs from the node's manifest.
            BadMetrics: a metric is not a finite number.
        """
        artifact_id = self.id_of(incoming)
        # The client and the keeper may both want to keep it, at the same moment.
        with self._committing(artifact_id):
            return self.kept(incoming) or self._commit(incoming, lineage, artifact_id)

    def kept(self, incoming: Path) -> ModelArtifact | None:
        """Return what was committed from an upload before, or None."""
        artifact_id = self.id_of(incoming)
        return self.read(artifact_id) if (self._directory / artifact_id / _RECORD).exists() else None

    def id_of(self, incoming: Path) -> str:
        """Return the id that an upload has, or will have, as an artifact. Pure."""
        return f"a{digest('artifact', str(incoming.relative_to(self._directory)))}"

    @contextmanager
    def _committing(self, artifact_id: str) -> Iterator[None]:
        staging = self._directory / ".staged"
        private_folder(staging)
        lock = os.open(staging / f"{artifact_id}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for(lock, artifact_id)
            yield
        finally:
            os.close(lock)

    def _wait_for(self, lock: int, artifact_id: str) -> None:
        until = time.monotonic() + COMMIT_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= until:  # it may have been stopped: whoever waits has other things to do
                    raise OperationTimedOut(
                        f"Another process has been committing artifact {artifact_id} for {COMMIT_SECONDS:.0f} s.",
                        "The upload is kept, and is committed by the next try.",
                    ) from None
                time.sleep(0.05)
            else:
                return

    def _commit(self, incoming: Path, lineage: Lineage, artifact_id: str) -> ModelArtifact:
        final = self._directory / artifact_id
        try:
            manifest = json.loads((incoming / "manifest.json").read_bytes())
            files = tuple(ArtifactFile.model_validate(entry) for entry in manifest["files"])
            metrics = dict(manifest.get("metrics") or {})
            draft = dict(manifest.get("draft") or {})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactCorrupted(f"The upload of {lineage.name} has no readable manifest ({error}).") from error
        if not files:
            raise NoModel(
                f"{lineage.name} finished but wrote no file to its output directory.",
                "Write the model's files to node().output_dir (MLINFRA_OUTPUT_DIR).",
            )
        metrics |= dict(draft.pop("metrics", None) or {})
        check_metrics(metrics)
        verify_files(incoming / "files", files)
        staged = self._directory / ".staged" / artifact_id
        shutil.rmtree(staged, ignore_errors=True)
        private_folder(staged)
        # Durably, as the upload was written: it is removed below, and then this is the only copy.
        copy_tree(incoming / "files", staged / "files", [each.path for each in files])
        verify_files(staged / "files", files)
        artifact = parsed(
            ModelArtifact,
            {
                "id": artifact_id,
                "name": draft.pop("name", None) or lineage.name,
                "format": draft.pop("format", None) or "files",
                "uri": f"file://{final / 'files'}",
                "sha256": hash_files(files),
                "files": files,
                "metrics": metrics,
                "params": dict(lineage.params),
                "metadata": dict(draft.pop("metadata", None) or {}),
                "versions": {**lineage.versions, **dict(draft.pop("versions", None) or {})},
                "lease_id": lineage.lease_id,
                "environment": lineage.environment,
                "code_hash": lineage.code_hash,
                "request_hash": lineage.request_hash,
                "environment_hash": lineage.environment_hash,
                "resumed_from": lineage.resumed_from,
                "resumed_across_code": lineage.resumed_across_code,
                "created_at": datetime.now(UTC),
            },
            prefix="artifact",
        )
        _write_durably(staged / _RECORD, artifact.model_dump_json(indent=1).encode())
        sync_directory(staged)
        staged.rename(final)
        sync_directory(self._directory)
        shutil.rmtree(incoming, ignore_errors=True)
        return self.read(artifact_id)

    def read(self, artifact_id: str) -> ModelArtifact:
        """Return an artifact's record, with its `uri` where this store lies now.

        Raises:
            NotFound: there is none of that id.
            ArtifactCorrupted: its record cannot be read.
        """
        path = self._directory / artifact_id / _RECORD
        if not is_id(artifact_id) or not path.exists():
            raise NotFound(f"Artifact {artifact_id!r} is not in {self._directory}.")
        try:
            found = ModelArtifact.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactCorrupted(f"The record of artifact {artifact_id} cannot be read ({error}).") from error
        return found.revised(uri=f"file://{path.parent / 'files'}")

    def verified(self, artifact_id: str) -> ModelArtifact:
        """Return an artifact after checking every file against its sha256.

        Raises:
            NotFound, ArtifactCorrupted: as said.
        """
        found = self.read(artifact_id)
        verify_files(found.path, found.files)
        return found

    def all(self) -> list[ModelArtifact]:
        """Return every artifact, oldest first."""
        found = [self.read(path.parent.name) for path in self._directory.glob(f"*/{_RECORD}")]
        return sorted(found, key=lambda artifact: artifact.created_at)


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Refuse metrics that are no finite numbers.

    Raises:
        BadMetrics: naming the metric.
    """
    for name, value in metrics.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(float(value)) < float("inf")
        if not good:
            raise BadMetrics(f"The metric {name!r} is {value}, not a finite number.", "Look at the loss and the data.")


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal, reading it in pieces."""
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def hash_files(files: Iterable[ArtifactFile]) -> str:
    """Return the sha256 over the sorted (path, sha256) pairs."""
    lines = "".join(f"{entry.sha256}  {entry.path}\n" for entry in sorted(files, key=lambda entry: entry.path))
    return hashlib.sha256(lines.encode()).hexdigest()


def verify_files(directory: Path, files: Iterable[ArtifactFile]) -> None:
    """Check that each file is there, is a plain file, and has its sha256.

    Raises:
        ArtifactCorrupted: naming the first that does not.
    """
    for entry in files:
        path = directory / entry.path
        if path.is_symlink() or not path.is_file():
            raise ArtifactCorrupted(f"{entry.path} is missing from {directory}.", "Train again, or restore the file.")
        if path.stat().st_size != entry.size or hash_file(path) != entry.sha256:
            raise ArtifactCorrupted(
                f"{entry.path} in {directory} does not have the sha256 that was recorded for it.",
                "It changed after it was stored: train again, or restore the file.",
            )


def _write_durably(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
