"""``pull``: the files of an artifact, out of the store and verified once more where they arrive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from mlinfra_prefect.artifacts import hash_file
from mlinfra_prefect.artifacts.store import verify_files
from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.screen import screen
from mlinfra_prefect.errors import InvalidInput, NotFound
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord


def pull(what: str, destination: str, *, as_json: bool) -> int:
    """Copy what is meant; one artifact goes straight into the destination, several into a directory each.

    Nothing that is there already is overwritten, unless it is the very same file.

    Raises:
        NotFound: nothing of that id, or a lease that made nothing.
        ArtifactCorrupted: a file is not what was recorded, before or after it was copied.
        InvalidInput: something else is in the way.
    """
    context = opened()
    found = _artifacts(context, what)
    place = Path(destination).expanduser().absolute()
    copied = [(each, place if len(found) == 1 else place / each.id) for each in found]
    for artifact, target in copied:
        _refuse_clashes(artifact, target)
    for artifact, target in copied:
        _copy(artifact, target)
    if as_json:
        print(json.dumps({"artifacts": [_told(artifact, target) for artifact, target in copied]}, indent=1))
        return DONE
    out = screen()
    for artifact, target in copied:
        size = sum(entry.size for entry in artifact.files)
        out.print(f"{artifact.id}: {len(artifact.files)} file(s), {size} bytes, verified, in {target}")
    return DONE


def _artifacts(context: Context, what: str) -> list[ModelArtifact]:
    try:
        return [context.artifacts.verified(what)]
    except NotFound:
        pass
    record = meant(context, what)
    if isinstance(record, EndpointRecord):
        current = record.current or (record.versions[-1] if record.versions else None)
        if current is None:
            raise NotFound(f"Endpoint {record.name!r} never had a version.")
        return [context.artifacts.verified(current.artifact.id)]
    if isinstance(record, RolloutRecord):
        return [context.artifacts.verified(record.artifact.id)]
    made = [each for each in context.artifacts.all() if each.lease_id == record.id]
    if not made:
        raise NotFound(
            f"Lease {record.id} has left no artifact.", f"`mlinfra-prefect logs {record.id}` tells what ran."
        )
    return [context.artifacts.verified(each.id) for each in made]


def _refuse_clashes(artifact: ModelArtifact, target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidInput("destination", f"{target} is not a directory")
    for entry in artifact.files:
        path = target / entry.path
        same = path.is_file() and not path.is_symlink() and hash_file(path) == entry.sha256
        if (path.exists() or path.is_symlink()) and not same:
            raise InvalidInput("destination", f"{path} is there and differs", "Pull into an empty directory.")


def _copy(artifact: ModelArtifact, target: Path) -> None:
    for entry in artifact.files:
        path = target / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            # Under another name first: a copy that is cut short must not look like the file.
            scratch = path.with_name(f".{path.name}.part")
            shutil.copyfile(artifact.path / entry.path, scratch)
            scratch.replace(path)
    verify_files(target, artifact.files)


def _told(artifact: ModelArtifact, target: Path) -> dict[str, object]:
    return {
        "id": artifact.id,
        "lease_id": artifact.lease_id,
        "sha256": artifact.sha256,
        "path": str(target),
        "files": [entry.model_dump(mode="json") for entry in artifact.files],
    }
