"""How user code becomes a callable, written once so that the check before provisioning and the node cannot disagree.

The flow's side names a function as *(file inside the code package, import root, qualname)* or *(installed module,
qualname)*; `load` turns that into the function. The very same code runs in the fresh interpreter that checks a
function before anything is provisioned, and in the agent on the node, so "it imports here" means "it imports there".

It refuses to run a script as a script: the module's ``__name__`` is never ``__main__``, and while user code is being
imported, starting a Prefect flow or task, or one of our leases, is stopped. Without that, a script that lacks its
``if __name__ == "__main__":`` guard would start, on the node, the flow that leased the node.

Standard library only: this file travels inside the agent's archive, and is also run by path.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import ModuleType

# What user code sees, in the check and on the node. Our decorators step aside when the first is set; the second keeps
# a stray Prefect call from quietly starting a server of its own beside the training.
NODE_ENVIRONMENT = {"MLINFRA_ON_NODE": "1", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false"}

# Set only while user code is being imported; `forbid_while_importing` reads it. An environment variable and not a
# module global, because the copy of this file that imports and the copy our decorators see may be two modules.
IMPORTING = "MLINFRA_IMPORTING"

_STARTERS = {
    "prefect.flows": (
        ("Flow", "__call__"),
        ("InfrastructureBoundFlow", "__call__"),
        ("Flow", "serve"),
        ("Flow", "deploy"),
    ),
    "prefect.tasks": (("Task", "__call__"), ("Task", "submit"), ("Task", "map"), ("Task", "delay")),
}


class MissingGuard(RuntimeError):
    """Importing the user's module started work: its ``if __name__ == "__main__":`` guard is missing."""

    # Read by name: the exception may come from another copy of this module.
    mlinfra_missing_guard = True


class LoadFailed(ImportError):
    """The function is not where the reference says; the message says what was looked for."""


def forbid_while_importing(what: str) -> None:
    """Raise `MissingGuard` if user code is being imported for a node right now; else do nothing.

    Called by everything of ours that starts work (a lease, a deployment). `what` is a noun phrase, such as
    ``"a lease"``.
    """
    if os.environ.get(IMPORTING):
        raise MissingGuard(guard_message(what))


def guard_message(what: str) -> str:
    """Return the sentence for code that starts `what` while it is only being imported."""
    return (
        f"importing the module started {what}. The node imports the module to find the function, so what should "
        'only run in the script itself belongs under `if __name__ == "__main__":`'
    )


def unwrap(target: Any) -> Any:
    """Return the function that should run on the node, without our decorators and Prefect's.

    A user's own decorator below ours stays, because it is part of what they wrote. One above ours is taken off,
    because it already ran on the flow's side. Anything that is neither is returned as it is. Never raises.
    """
    seen: set[int] = set()
    current = found = target
    while id(current) not in seen:
        seen.add(id(current))
        inner = _decorated(current)
        if inner is not None:
            current = found = inner
            continue
        wrapped = getattr(current, "__wrapped__", None)
        if wrapped is None:
            break
        current = wrapped
    return found


def _decorated(target: Any) -> Any:
    """Return what one of our decorators or a Prefect task or flow wraps; None when `target` is neither."""
    attributes = getattr(target, "__dict__", {})
    if "__mlinfra_callable__" in attributes:
        return attributes["__mlinfra_callable__"]
    if isinstance(target, type):
        return None
    for base in type(target).__mro__:
        # By name: this file may not import prefect, and on a node prefect need not be installed.
        if base.__name__ in {"Task", "Flow"} and base.__module__.partition(".")[0] == "prefect":
            inner = attributes.get("fn")
            return inner if callable(inner) else None
    return None


def import_paths(code_root: Path, import_root: str = "") -> list[str]:
    """Return what goes to the front of ``sys.path``: the import root, the code root and its ``src`` directory.

    The second and third are for projects that are installed in the flow's environment (``pip install -e .``) and not
    in the node's.
    """
    candidates = [code_root / import_root, code_root, code_root / "src"]
    return list(dict.fromkeys(str(path) for path in candidates if path.is_dir()))


def module_name(file: str, import_root: str = "") -> str:
    """Return the import name of `file` (posix, relative to the code root) below `import_root`.

    ``a/b.py`` is ``a.b``, ``a/__init__.py`` is ``a``. Pure. Raises `LoadFailed` for a file outside the import root.
    """
    path = PurePosixPath(file)
    if import_root not in {"", "."}:
        try:
            path = path.relative_to(PurePosixPath(import_root))
        except ValueError:
            raise LoadFailed(f"the file {file!r} is not below its import root {import_root!r}") from None
    parts = list(path.with_suffix("").parts)
    if len(parts) > 1 and parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def load(
    code_root: Path | None, import_root: str, file: str | None, module: str | None, qualname: str
) -> Callable[..., Any]:
    """Import the module and return the function, unwrapped. Runs the user's module-level code; blocking.

    Args:
        code_root: the unpacked code package; None when the job has none. Its directories stay on ``sys.path``,
            because the function may import more of its project while it runs.
        import_root: the directory below `code_root` that stands on ``sys.path`` for this file (posix); may be empty.
        file: the function's file, relative to `code_root` (posix); or None for an installed module.
        module: the installed module's name when `file` is None.
        qualname: the function's qualified name in the module.

    Raises:
        MissingGuard: importing started a flow, a task or a lease, or ended the process.
        LoadFailed: there is no such file or no such name in it.
        BaseException: whatever else the user's module raises, untouched.
    """
    if code_root is not None:
        paths = import_paths(code_root, import_root)
        sys.path[:] = [*paths, *(entry for entry in sys.path if entry not in paths)]
        importlib.invalidate_caches()
    with _guarded():
        if file is not None and code_root is not None:
            loaded = _load_file(code_root / file, module_name(file, import_root))
        elif module is not None:
            loaded = importlib.import_module(module)
        else:
            raise LoadFailed(f"the reference to {qualname!r} names neither a file of the code package nor a module")
        found: Any = loaded
        for part in qualname.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise LoadFailed(
                    f"{file or module} has no {qualname!r} when it is imported; "
                    'it may be defined only under `if __name__ == "__main__":`'
                ) from None
    function = unwrap(found)
    if not callable(function):
        raise LoadFailed(f"{qualname!r} in {file or module} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _load_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise LoadFailed(f"the code package has no file {path.name!r} where the function should be")
    # `import_module` and not a bare file load, so that relative imports, and a second import of the same module by
    # its siblings, see one module. It takes any name without a dot in a part, dashes included.
    standing = sys.modules.get(name)
    if (standing is None or _is(standing, path)) and name != "__main__" and "." not in path.stem:
        loaded = importlib.import_module(name)
        if _is(loaded, path):
            return loaded
    # The name belongs to something else (a script called `platform.py`), or cannot be written in an import.
    private = "mlinfra_code_" + "".join(letter if letter.isalnum() else "_" for letter in name)
    if (standing := sys.modules.get(private)) is not None and _is(standing, path):
        return standing
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise LoadFailed(f"the file {path.name!r} is not a Python module")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[private] = loaded  # before executing it: dataclasses and pickle look a class's module up by name
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[private]
        raise
    return loaded


def _is(module: ModuleType, path: Path) -> bool:
    origin = getattr(module, "__file__", None)
    return origin is not None and os.path.realpath(origin) == os.path.realpath(path)


# --- the guard -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Stop whatever starts a flow, a task or a lease inside the block, and say so even if user code swallows it."""
    started: list[str] = []
    undo: list[Callable[[], None]] = []
    hook = _PatchOnImport(started, undo)
    sys.meta_path.insert(0, hook)
    for name in _STARTERS:
        if name in sys.modules:
            _patch(sys.modules[name], started, undo)
    os.environ[IMPORTING] = "1"
    try:
        yield
    except SystemExit as exit_:
        if not started:
            raise MissingGuard(guard_message(f"something that ended the process (SystemExit: {exit_.code})")) from exit_
        raise MissingGuard(guard_message(started[0])) from exit_
    except BaseException as error:
        if started and not isinstance(error, MissingGuard):
            raise MissingGuard(guard_message(started[0])) from error
        raise
    else:
        if started:
            raise MissingGuard(guard_message(started[0]))
    finally:
        os.environ.pop(IMPORTING, None)
        sys.meta_path.remove(hook)
        for step in reversed(undo):
            step()


def _patch(module: ModuleType, started: list[str], undo: list[Callable[[], None]]) -> None:
    for class_name, method in _STARTERS[module.__name__]:
        owner = getattr(module, class_name, None)
        original = vars(owner).get(method) if isinstance(owner, type) else None
        if original is None:
            continue  # another version of Prefect: it has no such method to stop
        setattr(owner, method, _stopper(class_name, started))
        undo.append(lambda owner=owner, method=method, original=original: setattr(owner, method, original))  # type: ignore[misc]


def _stopper(kind: str, started: list[str]) -> Callable[..., Any]:
    noun = "the task" if kind == "Task" else "the flow"

    def stop(self: Any, *_args: Any, **_kwargs: Any) -> Any:
        what = f"{noun} {getattr(self, 'name', '?')!r}"
        started.append(what)
        raise MissingGuard(guard_message(what))

    return stop


class _PatchOnImport:
    """A finder that lets others find Prefect's modules and patches them right after they ran.

    Importing Prefect ourselves would cost a second for every training that does not use it.
    """

    def __init__(self, started: list[str], undo: list[Callable[[], None]]) -> None:
        self._started, self._undo = started, undo

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _STARTERS:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: importlib.machinery.ModuleSpec | None = (
                None if finder is self or find is None else find(name, path, target)
            )
            if spec is not None and spec.loader is not None:
                spec.loader = _PatchingLoader(spec.loader, self._started, self._undo)  # type: ignore[assignment]
                return spec
        return None


class _PatchingLoader:
    """Stands in for a module's loader for one import, then puts the real one back."""

    def __init__(self, real: Any, started: list[str], undo: list[Callable[[], None]]) -> None:
        self._real, self._started, self._undo = real, started, undo

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._real
        if module.__spec__ is not None:
            module.__spec__.loader = self._real
        self._real.exec_module(module)
        _patch(module, self._started, self._undo)
