"""Where encoded values go and come from: the directory beside the JSON, and the names of things in errors.

Codecs share these two objects, so that every error names its field and type and says what to do, and every file is
written under a fresh name and read back only with the sha256 it was written with.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .folders import private_folder
from .transfer import FileEntry, TransferError, check_relative, digest

DEEPEST = 100


class CodecError(ValueError):
    """A value or an annotation cannot travel between the flow and the node exactly as it is.

    Args:
        field: where the value is, such as ``config.layers[2]``.
        type_name: its type.
        problem: why, as the second half of a sentence.
        remedy: what to do instead, as a sentence.
    """

    def __init__(self, field: str, type_name: str, problem: str, remedy: str = "") -> None:
        super().__init__(field, type_name, problem, remedy)
        self.field = field
        self.type_name = type_name
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.field} ({self.type_name}) {self.problem}. {self.remedy}".strip()


def type_name(kind: type) -> str:
    """A class's name as people know it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


@dataclass
class Writer:
    """Where `encode` writes.

    Args:
        directory: files go there; None only checks, and writes nothing.
        name: the value's name; files are called after it.
        aliases: module name here to module name there, for modules that are called otherwise on the other side
            (``__main__``, or a file that Prefect loaded under a name of its own).
    """

    directory: Path | None
    name: str
    aliases: Mapping[str, str]
    count: int = 0
    open: set[int] = field(default_factory=set)

    def refuse(self, where: str, value: object, problem: str, remedy: str = "") -> CodecError:
        """The error for a value that cannot travel."""
        return CodecError(where, type_name(type(value)), problem, remedy)

    def fresh(self, suffix: str) -> Path:
        """A path in the directory that nothing has; the directory exists afterwards."""
        if self.directory is None:
            raise RuntimeError("a check writes no files")
        private_folder(self.directory)
        stem = re.sub(r"[^A-Za-z0-9_-]", "_", self.name)[:60] or "value"
        while True:
            path = self.directory / f"{stem}-{self.count}{suffix}"
            self.count += 1
            if not path.exists():
                return path

    def seal(self, path: Path) -> dict[str, Any]:
        """The reference to a file that was written, with the hash it has now."""
        if self.directory is None:
            raise RuntimeError("a check writes no files")
        path.chmod(0o600)
        sha256, size = digest(path)
        return {"file": path.relative_to(self.directory).as_posix(), "sha256": sha256, "size": size}

    def class_reference(self, kind: type, where: str) -> str:
        """``module:qualname`` of a class that the other side can import; raises CodecError when it cannot be found."""
        found: Any = sys.modules.get(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not kind:
            raise CodecError(
                where, type_name(kind), "is an instance of a class that cannot be imported by its name",
                "Define the class at the top level of a module.",
            )  # fmt: skip
        module = self.aliases.get(kind.__module__, kind.__module__)
        if module == "__main__" and self.directory is not None:
            raise CodecError(
                where, type_name(kind), "is an instance of a class of the script itself, which the node would not find",
                "Move the class into a module and import it.",
            )  # fmt: skip
        return f"{module}:{kind.__qualname__}"


@dataclass
class Reader:
    """Where `decode` reads: the directory, paths of artifacts by id, and the same aliases as the writer's."""

    directory: Path
    artifacts: Mapping[str, Path]
    aliases: Mapping[str, str]

    def file(self, envelope: Mapping[str, Any], where: str) -> Path:
        """The path of a file that an envelope refers to, with its hash checked."""
        codec = str(envelope.get("codec"))
        try:
            entry = FileEntry.from_payload({**envelope, "path": envelope["file"]})
            path = self.directory / check_relative(entry.path)
            # A link could lead to any file of this machine: only what was written counts.
            linked = path.is_symlink() or not path.resolve().is_relative_to(self.directory.resolve())
            found = None if linked else digest(path)
        except (KeyError, OSError, TransferError) as error:
            raise CodecError(where, codec, f"has a file that cannot be read: {error}") from error
        if found is None:
            raise CodecError(where, codec, f"has a file, {entry.path}, that is a link")
        if found != (entry.sha256, entry.size):
            raise CodecError(where, codec, f"has a file, {entry.path}, that was changed or cut")
        return path

    def find_class(self, reference: str, where: str) -> type:
        """The class that ``module:qualname`` names. Only classes are ever returned."""
        module, _, qualname = reference.partition(":")
        here = next((mine for mine, theirs in self.aliases.items() if theirs == module), module)
        try:
            found: Any = sys.modules.get(here) or importlib.import_module(here)
            for part in qualname.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError) as error:
            raise CodecError(
                where, reference, f"is of a class that cannot be imported here: {error}",
                "Both sides need the same code and packages.",
            ) from error  # fmt: skip
        if not isinstance(found, type):
            raise CodecError(where, reference, "names something that is not a class")
        return found
