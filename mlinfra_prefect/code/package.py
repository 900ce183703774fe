"""The code package as a value: which files travel to the node, and the one hash that names them all.

The hash covers what Git would keep (paths, contents, whether a file may be run) and nothing else. Two checkouts of one
commit have the same package, so an unchanged project is packed, checked and uploaded once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class CodeFile:
    """One file of the code package.

    Args:
        path: relative to the project root, with forward slashes.
        size: bytes.
        sha256: of its content, in hexadecimal.
        executable: whether its owner may run it, for commands such as ``./train.sh``.
    """

    path: str
    size: int
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class CodePackage:
    """What travels: the files, sorted by path, and what they are together.

    Args:
        root: the project's root on this machine; it is not part of the hash.
        files: every file, those of `extra` included.
        sha256: over the sorted (path, sha256) list; runnable files are marked in it.
        size: bytes of all files together, uncompressed.
        extra: content of the files that we generate and that are not below `root` (a function sent by value).
        requirements: the file that the project names as what a node needs; empty: none. Not part of the hash.
    """

    root: Path
    files: tuple[CodeFile, ...]
    sha256: str
    size: int
    extra: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)
    requirements: str = ""

    @classmethod
    def of(
        cls, root: Path, files: Iterable[CodeFile], extra: Mapping[str, bytes] | None = None, *, requirements: str = ""
    ) -> CodePackage:
        """Return the package of these files plus `extra`, hashed. Pure; an extra replaces a file of the same path."""
        generated = dict(extra or {})
        listed = {file.path: file for file in files}
        listed.update(
            {path: CodeFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in generated.items()}
        )
        ordered = tuple(listed[path] for path in sorted(listed))
        digest = hashlib.sha256()
        for file in ordered:
            # NUL and newline cannot stand in a path that `collect` takes, so no two lists give one digest.
            digest.update(f"{file.path}\0{file.sha256}{'+x' if file.executable else ''}\n".encode())
        return cls(root, ordered, digest.hexdigest(), sum(file.size for file in ordered), generated, requirements)

    def holds(self, path: str) -> bool:
        """Say whether a file with this relative path is in the package."""
        return any(file.path == path for file in self.files)
