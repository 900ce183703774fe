"""Which files of a project travel: everything Git would keep, less what must never leave, within a size.

Taking everything by default is what makes a first run work (a config file, a small table, a template beside the
code), and the cap is what keeps it honest: a data set that slipped in is named before it is uploaded. Nothing outside
the root is ever followed to, because the package goes to another machine.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec

from mlinfra_prefect.code.ignoring import GitIgnore, never_travels
from mlinfra_prefect.code.package import CodeFile, CodePackage
from mlinfra_prefect.code.project import TABLE, ProjectCode, is_shared_place, read_project
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.home import CACHE_VARIABLE, HOME_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

# Past this many files a package is a dataset or a vendored tree, and hashing it would stall every lease.
MAX_FILES = 20_000
MIB = 1024 * 1024
_WILDCARDS = frozenset("*?[!#\\")
_NAMED_IN_ERROR = 5


def collect(root: Path) -> CodePackage:
    """Read, filter and hash the project below `root`. Blocking; writes nothing; the same files give the same package.

    Without a ``pyproject.toml``, a directory that holds unrelated things (home, the temporary directory) gives only
    its Python files and packages.

    Raises:
        InvalidInput: ``pyproject.toml`` is wrong, a link leaves the root, a file cannot be read or has a name that
            cannot travel, or the package is over its cap.
    """
    root = root.resolve()
    project = read_project(root)
    found = {path.relative_to(root).as_posix(): path for path in _Walk(root, project).files()}
    for literal in project.include:
        # Named in full by the user: that outweighs .gitignore. Never a secret, and never outside.
        name = literal.removeprefix("/")
        if not _WILDCARDS & set(literal) and (root / name).is_file() and not _kept_home(Path(name)):
            _within(root, root / name)
            found[Path(name).as_posix()] = root / name
    sizes = {path: _size(root, full) for path, full in found.items()}
    _check_size(sizes, project, root)
    files = [_read(path, full) for path, full in sorted(found.items())]
    return CodePackage.of(root, files, requirements=project.requirements)


class _Walk:
    """One pass over a project's tree, deepest rules last."""

    def __init__(self, root: Path, project: ProjectCode) -> None:
        self._root = root
        self._include = GitIgnoreSpec.from_lines(project.include) if project.include else None
        self._exclude = GitIgnoreSpec.from_lines(project.exclude)
        # A lone script in a home directory is no reason to send the home directory.
        self._python_only = not project.declared and is_shared_place(root)
        self._ours = {
            Path(value).expanduser().resolve()
            for name in (HOME_VARIABLE, CACHE_VARIABLE)
            if (value := os.environ.get(name))
        }
        self._count = 0

    def files(self) -> Iterator[Path]:
        yield from self._enter(self._root, GitIgnore.above(self._root), (self._root,))

    def _enter(self, directory: Path, outer: GitIgnore, trail: tuple[Path, ...]) -> Iterator[Path]:
        ignore = outer.entering(directory)
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as error:
            raise _unreadable(self._root, directory, error) from error
        for entry in entries:
            path = Path(entry.path)
            is_directory = path.is_dir()  # not entry.is_dir(), which raises for a link to itself
            if self._skips(path, ignore, directory=is_directory):
                continue
            _check_name(self._root, path)
            target = _within(self._root, path) if entry.is_symlink() else path
            if target is None:
                continue
            if is_directory:
                real = path.resolve()
                if real in trail:  # a link to a directory that we are in: its files are already here
                    continue
                yield from self._enter(path, ignore, (*trail, real))
            elif entry.is_file():
                self._count += 1
                if self._count > MAX_FILES:
                    raise InvalidInput(
                        "code",
                        f"the project at {self._root} has more than {MAX_FILES} files that would travel.",
                        f"Narrow it with `include` or `exclude` under [tool.{TABLE}] in pyproject.toml.",
                    )
                yield path

    def _skips(self, path: Path, ignore: GitIgnore, *, directory: bool) -> bool:
        if never_travels(path.name, directory=directory) or ignore.ignores(path, directory=directory):
            return True
        relative = path.relative_to(self._root).as_posix()
        if self._exclude.match_file(relative + ("/" if directory else "")):
            return True
        if not directory:
            return (self._python_only and path.suffix != ".py") or not self._includes(relative)
        if (path / "pyvenv.cfg").is_file() or (self._ours and path.resolve() in self._ours):
            return True
        if self._python_only and not (path / "__init__.py").is_file():
            return True
        # A linked directory that holds nothing we would take must not stop the package.
        return path.is_symlink() and not (self._includes(f"{relative}/x") or self._includes(f"{relative}/x.py"))

    def _includes(self, relative: str) -> bool:
        return self._include is None or self._include.match_file(relative)


def _kept_home(relative: Path) -> bool:
    *above, name = relative.parts
    return never_travels(name, directory=False) or any(never_travels(part, directory=True) for part in above)


def _within(root: Path, path: Path) -> Path | None:
    """Return where a link inside `root` leads; None if that is something that never travels."""
    shown = path.relative_to(root).as_posix()
    remedy = f"Copy the file into the project, or add {shown!r} to `exclude` under [tool.{TABLE}] in pyproject.toml."
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise InvalidInput("code", f"the symbolic link {shown!r} leads nowhere.", remedy) from error
    if not target.is_relative_to(root):
        raise InvalidInput("code", f"the symbolic link {shown!r} leaves the project root {root}.", remedy)
    relative = target.relative_to(root)
    if not relative.parts:
        return None
    hidden = any(never_travels(part, directory=True) for part in relative.parts[:-1])
    return None if hidden or never_travels(relative.name, directory=target.is_dir()) else target


def _check_name(root: Path, path: Path) -> None:
    name = path.name
    # A colon at the top would be a drive on the way; the agent refuses it.
    if not name.isprintable() or "\\" in name or (path.parent == root and ":" in name):
        raise InvalidInput(
            "code",
            f"the file name {path.relative_to(root).as_posix()!a} cannot travel (control character, backslash, colon).",
            f"Rename it, or exclude it under [tool.{TABLE}] in pyproject.toml.",
        )


def _size(root: Path, path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable(root, path, error) from error


def _read(relative: str, path: Path) -> CodeFile:
    try:
        data = path.read_bytes()
        runnable = bool(path.stat().st_mode & stat.S_IXUSR)
    except OSError as error:
        raise _unreadable(path, path, error) from error
    return CodeFile(relative, len(data), hashlib.sha256(data).hexdigest(), runnable)


def _check_size(sizes: dict[str, int], project: ProjectCode, root: Path) -> None:
    total = sum(sizes.values())
    if total <= project.max_code_mib * MIB:
        return
    biggest = sorted(sizes, key=lambda path: (-sizes[path], path))[:_NAMED_IN_ERROR]
    listed = ", ".join(f"{path} ({sizes[path] / MIB:.1f} MiB)" for path in biggest)
    raise InvalidInput(
        "code",
        f"the code package of {root} would be {total / MIB:.1f} MiB in {len(sizes)} files, over the cap of "
        f"{project.max_code_mib} MiB. The biggest: {listed}.",
        f"Pass data as `inputs`, or list what travels in `include` under [tool.{TABLE}] in pyproject.toml "
        "(or `exclude` these, or raise `max_code_mib`).",
    )


def _unreadable(root: Path, path: Path, error: OSError) -> InvalidInput:
    return InvalidInput(
        "code",
        f"{path} cannot be read: {error.strerror or error}.",
        f"Make it readable, or exclude it under [tool.{TABLE}] in pyproject.toml (root {root}).",
    )
