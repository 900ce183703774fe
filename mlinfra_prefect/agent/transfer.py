"""Copying and hashing trees: what is copied is hashed while it is copied, so the hash is of what arrived.

Trees are closed: a link that leads out of the tree, or anything that is not a file, is refused instead of followed or
dropped. Long copies call ``tick`` between chunks, because whoever copies also has to keep watching its training.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .folders import private_folder
from .wire import sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CHUNK = 4 << 20


class TransferError(ValueError):
    """A tree cannot be copied, or is not what its manifest says; the message names the path."""


@dataclass(frozen=True)
class FileEntry:
    """One file of a tree: posix path relative to the tree, sha256 as hex, size in bytes."""

    path: str
    sha256: str
    size: int

    def to_payload(self) -> dict[str, Any]:
        """The entry as a JSON object."""
        return asdict(self)

    @classmethod
    def from_payload(cls, payload: Any) -> FileEntry:
        """Check and build; raises TransferError."""
        try:
            entry = cls(str(payload["path"]), str(payload["sha256"]), int(payload["size"]))
        except (KeyError, TypeError, ValueError) as error:
            raise TransferError(f"a file entry of a manifest cannot be read: {payload!r}") from error
        check_relative(entry.path)
        return entry


def no_tick() -> None:
    """Nobody has to be asked between chunks."""


def check_relative(path: str) -> PurePosixPath:
    """A path that stays inside its tree; raises TransferError for any other."""
    pure = PurePosixPath(path)
    if (
        pure.is_absolute()
        or ".." in pure.parts
        or not pure.parts
        or "\\" in path
        or "\0" in path
        or ":" in pure.parts[0]
    ):
        raise TransferError(f"the path {path!r} leads out of its directory")
    return pure


def tree(root: Path, *, skip: frozenset[str] = frozenset()) -> list[str]:
    """Posix paths of all files below ``root``, sorted; names in ``skip`` are left out at the top level.

    Raises:
        TransferError: a link out of the tree or into a directory, a socket, a pipe or a device.
    """
    found: list[str] = []
    real = root.resolve()
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if relative in skip:
                continue
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                target = path.resolve()
                if not target.is_file() or not target.is_relative_to(real):
                    raise TransferError(f"{relative} is a link that does not lead to a file in {root.name}/")
            elif not stat.S_ISREG(mode):
                if stat.S_ISDIR(mode):
                    continue
                raise TransferError(f"{relative} is not a file (a socket, a pipe or a device)")
            found.append(relative)
    return sorted(found)


def digest(path: Path, tick: Callable[[], None] = no_tick) -> tuple[str, int]:
    """The sha256 and size of a file."""
    total, size = hashlib.sha256(), 0
    with path.open("rb") as source:
        while chunk := source.read(_CHUNK):
            total.update(chunk)
            size += len(chunk)
            tick()
    return total.hexdigest(), size


def copy_file(source: Path, target: Path, tick: Callable[[], None] = no_tick) -> tuple[str, int]:
    """Copy one file durably (mode 0600, or 0700 where it was executable); returns sha256 and size of the copy."""
    private_folder(target.parent)
    total, size = hashlib.sha256(), 0
    with source.open("rb") as incoming:
        mode = 0o700 if os.fstat(incoming.fileno()).st_mode & stat.S_IXUSR else 0o600
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as outgoing:
            while chunk := incoming.read(_CHUNK):
                outgoing.write(chunk)
                total.update(chunk)
                size += len(chunk)
                tick()
            outgoing.flush()
            os.fsync(outgoing.fileno())
    return total.hexdigest(), size


def copy_tree(
    source: Path,
    target: Path,
    paths: Iterable[str],
    tick: Callable[[], None] = no_tick,
) -> list[FileEntry]:
    """Copy these files of a tree durably; returns what arrived."""
    entries: list[FileEntry] = []
    private_folder(target)
    folders = {target}
    for path in paths:
        sha256, size = copy_file(source / path, target / path, tick)
        entries.append(FileEntry(path, sha256, size))
        folders.update(parent for parent in (target / path).parents if parent.is_relative_to(target))
    for folder in folders:
        sync_directory(folder)
    return entries
