"""Checkpoints that survive the node: only what was committed is ever resumed.

A training writes files into ``MLINFRA_CHECKPOINT_DIR`` and commits them: `commit` writes ``manifest.json`` with the
sha256 of every file. The launcher sees the manifest and copies the files to the store, which outlives the lease::

    <store>/<n>/...          files and manifest.json of the n-th commit; appears by rename, complete or not at all
    <store>/LATEST           the text n

A copy that does not match its manifest (the training was already writing the next one) is thrown away; the commit
before it stays. The last `KEEP` are kept, so that a corrupted one can be stepped over.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .folders import private_folder
from .transfer import FileEntry, TransferError, copy_tree, digest, no_tick, tree
from .wire import CHECKPOINT_SCHEMA, MANIFEST, SpecError, read_json, sync_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEEP: Final = 3
LATEST: Final = "LATEST"


@dataclass(frozen=True)
class Commit:
    """One committed checkpoint: a unique id, the training's step (if it said one) and its files."""

    id: str
    step: int | None
    files: tuple[FileEntry, ...]

    def to_payload(self) -> dict[str, Any]:
        """The manifest as a JSON object."""
        files = [entry.to_payload() for entry in self.files]
        return {
            "schema": CHECKPOINT_SCHEMA,
            "id": self.id,
            "step": self.step,
            "committed_at": time.time(),
            "files": files,
        }


def read_commit(directory: Path) -> Commit | None:
    """The commit in a directory, or None when there is none; raises TransferError for one that cannot be read."""
    try:
        payload = read_json(directory / MANIFEST)
        entries = tuple(FileEntry.from_payload(entry) for entry in payload["files"])
        return Commit(str(payload["id"]), payload.get("step"), entries)
    except FileNotFoundError:
        return None
    except (OSError, SpecError, KeyError, TypeError) as error:
        raise TransferError(f"the manifest of the checkpoint cannot be read: {error}") from error


def commit(directory: Path, step: int | None = None) -> Commit:
    """Commit what is in the checkpoint directory; replaces the former commit atomically. Reads every file once.

    Raises:
        ValueError: the directory is empty: there is nothing to resume from.
        TransferError: it holds something that cannot be copied.
    """
    names = [name for name in tree(directory, skip=frozenset({MANIFEST})) if not name.startswith(f".{MANIFEST}.")]
    if not names:
        raise ValueError("the checkpoint directory is empty: write the checkpoint first, then commit it")
    files = tuple(FileEntry(name, *digest(directory / name)) for name in names)
    made = Commit(uuid.uuid4().hex, step, files)
    write_json(directory / MANIFEST, made.to_payload(), durable=True)
    return made


def store(directory: Path, commit: Commit, target: Path, tick: Callable[[], None] = no_tick) -> int:
    """Copy a commit to the store and return its number. On any error the store is as it was.

    Raises:
        TransferError: the files changed while they were copied.
        OSError: the store cannot be written.
    """
    private_folder(target)
    number = max(_numbers(target), default=0) + 1
    scratch = target / f".incoming-{uuid.uuid4().hex}"
    try:
        copied = copy_tree(directory, scratch, (entry.path for entry in commit.files), tick)
        if tuple(copied) != commit.files:
            raise TransferError("the checkpoint changed while it was stored")
        write_json(scratch / MANIFEST, commit.to_payload(), durable=True)
        scratch.rename(target / str(number))
        sync_directory(target)
    except FileNotFoundError as error:
        raise TransferError(f"the checkpoint changed while it was stored: {error.filename} is gone") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    _point_to(target, number)
    for old in sorted(_numbers(target))[:-KEEP]:
        shutil.rmtree(target / str(old), ignore_errors=True)
    return number


def restore(
    target: Path, directory: Path, say: Callable[[str], None], tick: Callable[[], None] = no_tick
) -> int | None:
    """Copy the newest intact commit of the store into the checkpoint directory; returns its number or None.

    Args:
        target: the store; absent or without ``LATEST`` means there is nothing to resume.
        directory: the checkpoint directory of the new training; what it held is replaced.
        say: told about every commit that was stepped over, and why.
        tick: called between chunks of the copy.
    """
    try:
        latest = int((target / LATEST).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    for number in sorted((found for found in _numbers(target) if found <= latest), reverse=True):
        _clear(directory)
        try:
            problem = _fetch(target / str(number), directory, tick)
        except (TransferError, OSError) as error:
            problem = str(error)
        if problem is None:
            return number
        say(f"checkpoint {number} is skipped: {problem}")
    _clear(directory)
    return None


def _fetch(source: Path, directory: Path, tick: Callable[[], None]) -> str | None:
    """Copy one commit; returns what is wrong with it, or None."""
    found = read_commit(source)
    if found is None:
        return "it has no manifest"
    copied = copy_tree(source, directory, (entry.path for entry in found.files), tick)
    return None if tuple(copied) == found.files else "its files do not have the sha256 of its manifest"


def _numbers(target: Path) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(path.name) for path in target.iterdir() if path.name.isdecimal()]
    return []


def _point_to(target: Path, number: int) -> None:
    scratch = target / f".{LATEST}.{uuid.uuid4().hex}"
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(str(number))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(target / LATEST)
    sync_directory(target)


def _clear(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    private_folder(directory)
