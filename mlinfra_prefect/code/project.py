"""Where a project begins, and what it says about its code in ``[tool.mlinfra-prefect]``.

A root that is guessed too high packs a home directory, with its keys, and sends it to a machine in a cloud. So only
a ``pyproject.toml`` makes a directory a project; without one, the function's own directory is as far as we go.
"""

from __future__ import annotations

import re
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.requirement import refusal
from mlinfra_prefect.code import uv_lock
from mlinfra_prefect.errors import InvalidInput

TABLE = "mlinfra-prefect"
# MiB. Code is text; past this it is data that slipped in, and it would be uploaded with every change.
DEFAULT_MAX_CODE_MIB = 64
LARGEST_MAX_CODE_MIB = 4096
_COMMENT = re.compile(r"(^|\s)#.*$")


@dataclass(frozen=True, slots=True)
class ProjectCode:
    """The ``[tool.mlinfra-prefect]`` table as far as code packages are concerned.

    Args:
        declared: whether there is a ``pyproject.toml`` at all.
        include: patterns in ``.gitignore`` syntax; empty = every file. A path without wildcards is taken even where
            ``.gitignore`` names it.
        exclude: patterns in the same syntax, taken away last.
        max_code_mib: the largest package, in MiB, uncompressed.
        requirements: the file, in the project, that says what a node needs that has no packages of the flow's.
    """

    declared: bool
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_code_mib: int = DEFAULT_MAX_CODE_MIB
    requirements: str = ""


def find_root(start: Path) -> Path | None:
    """Return the nearest directory with a ``pyproject.toml`` at or above `start` (a file or a directory).

    Looks no higher than the home directory when `start` is inside it. None when there is none: then the function's
    own directory is the root. Reads only directory entries.
    """
    start = start.resolve()
    home = _home()
    for directory in (start, *start.parents):
        if (directory / "pyproject.toml").is_file():
            return directory
        if directory == home:
            return None
    return None


def is_shared_place(directory: Path) -> bool:
    """Say whether `directory` holds many unrelated things: home or above it, the temporary directory, the root."""
    directory = directory.resolve()
    home = _home()
    shared = {Path(directory.anchor), Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")}  # noqa: S108 - compared with, never written to
    return directory in shared or (home is not None and (directory == home or directory in home.parents))


def _home() -> Path | None:
    try:
        return Path.home().resolve()
    except RuntimeError:  # no HOME and no such user, as in some containers
        return None


def read_project(root: Path) -> ProjectCode:
    """Read the project's table. A missing file or table is not an error: the defaults hold.

    Keys of the table that are not about code are left to others.

    Raises:
        InvalidInput: the file is not readable TOML, or a value has the wrong type or range.
    """
    path = root / "pyproject.toml"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ProjectCode(declared=False)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidInput("pyproject.toml", f"{path} cannot be read: {error}.", "Correct the file.") from error
    table = content.get("tool", {})
    table = table.get(TABLE, {}) if isinstance(table, dict) else {}
    if not isinstance(table, dict):
        raise InvalidInput(f"[tool.{TABLE}]", f"is a {type(table).__name__}, not a table, in {path}.")
    return ProjectCode(
        declared=True,
        include=_patterns(table, "include"),
        exclude=_patterns(table, "exclude"),
        max_code_mib=_mib(table),
        requirements=_requirements(table),
    )


def read_requirements(root: Path, name: str) -> tuple[str, ...]:
    """Return what a project's requirements file asks for, one requirement each, hashes with it.

    Such a file is a ``uv.lock``, what ``pip-compile`` and ``uv export --no-emit-project`` write, or written by hand.

    Args:
        root: the project's.
        name: as the project's table names the file; empty: it names none, and nothing is asked for.

    Raises:
        InvalidInput: the file is not in the project, cannot be read, or has a line that is no requirement.
    """
    if not name:
        return ()
    field, path = f"[tool.{TABLE}] requirements", (root / name).resolve()
    if not path.is_relative_to(root.resolve()):
        raise InvalidInput(field, f"{name!r} is not in the project {root}.", "Name a file in it.")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(field, f"{path} cannot be read: {error}.", "Name a text file.") from error
    if path.name == uv_lock.NAME:
        try:
            return uv_lock.requirements(content)
        except uv_lock.Unreadable as error:
            raise InvalidInput(field, f"{name}: {error}.", uv_lock.EXPORT) from error
    found = []
    for line in content.replace("\\\n", " ").splitlines():
        text = " ".join(_COMMENT.sub("", line).split())
        problem = refusal(text) if text else None
        if problem:
            raise InvalidInput(
                field, f"{name}: {text!r} {problem}.",
                "Write requirements only, with --hash if you like, as `uv export --no-emit-project` does.",
            )  # fmt: skip
        if text:
            found.append(text)
    return tuple(found)


def _requirements(table: dict[str, Any]) -> str:
    value = table.get("requirements", "")
    if not isinstance(value, str):
        raise InvalidInput(
            f"[tool.{TABLE}] requirements", "is not the name of a file.", 'Write requirements = "requirements.txt".'
        )
    return value


def _patterns(table: dict[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise InvalidInput(f"[tool.{TABLE}] {key}", "is not a list of patterns.", f'Write {key} = ["src/**", "*.py"].')
    return tuple(value)


def _mib(table: dict[str, Any]) -> int:
    value = table.get("max_code_mib", DEFAULT_MAX_CODE_MIB)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_MAX_CODE_MIB:
        raise InvalidInput(
            f"[tool.{TABLE}] max_code_mib",
            f"is {value!r}.",
            f"Write a whole number of MiB from 1 to {LARGEST_MAX_CODE_MIB}.",
        )
    return value
