"""Addresses: from a file, or from text such as ``train.py:fit``, to what the node needs to find the function.

Nothing here imports user code. A module is found the way Python would find it, but without running its parents, and
text from a form or a file never reaches outside the project.
"""

from __future__ import annotations

import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.code.project import find_root
from mlinfra_prefect.errors import NotImportable

if TYPE_CHECKING:
    from collections.abc import Iterable

FIELD = "function"
# The generated module of a function that is sent by value; no file of a project has this name.
BY_VALUE_FILE = "_mlinfra_by_value.py"
TOP_LEVEL_REMEDY = "Define a plain function with `def` at the top level of a .py file and pass that."


@dataclass(frozen=True, slots=True)
class CallableReference:
    """Where a function is: a file inside the code package, or an installed module.

    Args:
        module: an importable installed module; None for a file of the package.
        file: the file's path inside the code package (forward slashes); None for an installed module.
        qualname: the qualified name in the module.
        name: the function's own name, for people.
        import_root: the directory inside the package that stands on ``sys.path`` for `file`: ``src`` in a src layout,
            the script's directory for a script; empty is the package's root.
    """

    module: str | None
    file: str | None
    qualname: str
    name: str
    import_root: str = ""

    @property
    def text(self) -> str:
        """``train.py:fit``, ``pkg.mod:fit`` or ``fit (by value)``, for people."""
        if self.file is not None and PurePosixPath(self.file).name == BY_VALUE_FILE:
            return f"{self.name} (by value)"
        return f"{self.file or self.module}:{self.qualname}"


@dataclass(frozen=True, slots=True)
class Located:
    """A reference with what only this machine knows: the project's root (None for an installed module)."""

    reference: CallableReference
    root: Path | None


def file_address(file: Path, name: str, spec: Any, qualname: str) -> Located:
    """Return the address of `qualname` in `file` (absolute), which this process knows as module `name`.

    Args:
        file: the module's file; if it is installed (site-packages, standard library), the address is the module.
        name: the module's ``__name__``; ``__main__`` for a script; empty if it is not known.
        spec: the module's ``__spec__``, which tells ``python -m pkg.mod`` from ``python mod.py``; may be None.
        qualname: copied into the address.

    Raises:
        NotImportable: an installed script without a module name.
    """
    script = name == "__main__"
    spec_name = getattr(spec, "name", None)
    if script and isinstance(spec_name, str) and _stripped(file, spec_name) is not None:  # python -m pkg.mod
        name, script = spec_name, False
    own_name = qualname.rpartition(".")[2]
    if _installed(file):
        if script:
            raise NotImportable(
                FIELD, f"{qualname} is in the installed script {file}, which has no module name.", TOP_LEVEL_REMEDY
            )
        return Located(CallableReference(name, None, qualname, own_name), None)
    root = find_root(file.parent) or file.parent
    base = file.parent if script else _stripped(file, name)
    if base is None or not base.is_relative_to(root):
        base = _outside_packages(file, root)
    import_root = base.relative_to(root).as_posix()
    relative = file.relative_to(root).as_posix()
    return Located(
        CallableReference(None, relative, qualname, own_name, "" if import_root == "." else import_root), root
    )


def _stripped(file: Path, name: str) -> Path | None:
    """Return the directory from which `file` is imported as `name`; None when the two do not fit together."""
    path = file.with_suffix("")
    parts = name.split(".")
    if path.name == "__init__" and parts[-1] != "__init__":
        path = path.parent
    if path.parts[-len(parts) :] != tuple(parts) or len(path.parts) <= len(parts):
        return None
    return path.parents[len(parts) - 1]


def _outside_packages(file: Path, root: Path) -> Path:
    directory = file.parent
    while directory != root and (directory / "__init__.py").is_file():
        directory = directory.parent
    return directory


def _installed(file: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    return any(file.is_relative_to(Path(sysconfig.get_path(scheme)).resolve()) for scheme in ("stdlib", "platstdlib"))


# --- "module:function" and "path/to/file.py:function" ----------------------------------------------------------------


def _split(text: str) -> tuple[str, str]:
    where, colon, qualname = text.rpartition(":")
    names = qualname.split(".")
    good = bool(colon and where) and text.isprintable() and all(part.isidentifier() for part in names)
    if good and not where.endswith(".py"):
        good = all(part.isidentifier() for part in where.split("."))
    if not good:
        raise NotImportable(
            FIELD, f"{text!r} is not a function's address.", 'Write "module:function" or "path/to/file.py:function".'
        )
    return where, qualname


def text_address(text: str) -> Located:
    """Return the address that `text` names. Reads directory entries; imports nothing.

    The project around the working directory comes first, as it does for ``python -m``, then installed modules.

    Raises:
        NotImportable: it is no address, names nothing, or names a file outside the project.
    """
    where, qualname = _split(text)
    here = Path.cwd()
    top = find_root(here) or here.resolve()
    if where.endswith(".py"):
        candidates: Iterable[Path] = (here / where, top / where)
    else:
        relative = PurePosixPath(*where.split("."))
        bases = (top, top / "src", here)
        candidates = [base / path for base in bases for path in (relative.with_suffix(".py"), relative / "__init__.py")]
    file = next((path.resolve() for path in candidates if path.is_file()), None)
    if file is not None:
        if not file.is_relative_to(top):
            raise NotImportable(
                FIELD, f"{where} is outside the project root {top}.", "Run from the project that the file belongs to."
            )
        return file_address(file, "" if where.endswith(".py") else where, None, qualname)
    spec = None if where.endswith(".py") else find_module_spec(where)
    if spec is None:
        raise NotImportable(
            FIELD,
            f"there is no {where} in the project at {top} or among the installed modules.",
            "Correct the address.",
        )
    if spec.origin and Path(spec.origin).is_file() and not _installed(Path(spec.origin).resolve()):
        return file_address(Path(spec.origin).resolve(), where, None, qualname)
    return Located(CallableReference(where, None, qualname, qualname.rpartition(".")[2]), None)


def find_module_spec(module: str) -> Any:
    """Return a module's spec, or None. Its parents are not imported, as `importlib.util.find_spec` would do."""
    path: Any = None
    spec: Any = None
    for depth in range(1, module.count(".") + 2):
        name = ".".join(module.split(".")[:depth])
        found = (finder.find_spec(name, path, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
        spec = next((candidate for candidate in found if candidate is not None), None)
        if spec is None:
            return None
        # A namespace package's path looks its parent up in sys.modules when it is read; ours may not be there.
        path = getattr(spec.submodule_search_locations, "_path", spec.submodule_search_locations)
        if path is None and name != module:
            return None
    return spec
