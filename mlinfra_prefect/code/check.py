"""The import check: what the node will do first, done here first, in an interpreter that knows nothing of the flow.

A function that works in a notebook may rest on a module that only this process has: an edited ``sys.path``, a file
outside the project, an ignored directory. Found on the node, that costs a provisioned machine; found here, a second.
The check imports from the *packed* code with the node's own loader, and remembers success, so that it costs that
second once per change of the code or of the environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mlinfra_prefect.agent import loading
from mlinfra_prefect.agent.allowlist import inherited
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.code import probe
from mlinfra_prefect.code.address import FIELD, TOP_LEVEL_REMEDY, CallableReference
from mlinfra_prefect.code.archive import write_archive
from mlinfra_prefect.code.static import static_parameters
from mlinfra_prefect.errors import InvalidInput, NotImportable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlinfra_prefect.code.package import CodePackage

# Part of every cache key: raise it when the loader, the probe or the stored format changes meaning.
_FORMAT = 1
# Below the cache directory; whoever packs the same code for a node finds it there.
ARCHIVES = "code"


def check_import(
    reference: CallableReference,
    package: CodePackage | None,
    *,
    cache_dir: Path,
    python: str = sys.executable,
    timeout: float = 60,
    requirements: Sequence[str] = (),
) -> inspect.Signature | None:
    """Import the function in a fresh interpreter, from the packed code, as the node will. Blocking.

    A success is remembered below `cache_dir` by code, address, interpreter and what is installed there; repeated
    calls start no process. Failures are not remembered.

    Args:
        reference: where the function is.
        package: the code it is in; None for an installed module.
        cache_dir: holds the archive (in ``code/``) and the remembered successes; created 0700.
        python: the interpreter that stands for the node's.
        timeout: seconds for the whole import.
        requirements: what the node installs and this interpreter need not have. Where there are any, a missing
            module from outside the project is no failure: then the file is only read, not run.

    Returns:
        The function's parameters (without annotations); None where they cannot be known.

    Raises:
        NotImportable: it does not import, is not there, starts work at import, or takes too long.
        InvalidInput: `python` cannot be started, or a file of the package changed meanwhile.
    """
    stored = cache_dir / "import-checks" / f"{_key(reference, package, python, requirements)}.json"
    if (known := _remembered(stored)) is not None:
        return _signature(known)
    private_folder(stored.parent)
    # A `.map` over many leases asks for one check many times at once; all but the first find it remembered.
    with FileLock(f"{stored}.lock", mode=0o600):
        known = _remembered(stored) or _check(
            reference, package, cache_dir=cache_dir, python=python, timeout=timeout, requirements=requirements
        )
        _store(stored, known)
    return _signature(known)


def _check(
    reference: CallableReference,
    package: CodePackage | None,
    *,
    cache_dir: Path,
    python: str,
    timeout: float,
    requirements: Sequence[str],
) -> dict[str, Any]:
    result = _probe(reference, package, cache_dir, python, timeout)
    kind = result["kind"]
    if kind == "missing" and requirements and not _in_project(result["missing"], reference, package):
        result = {"kind": "ok", "parameters": static_parameters(reference, package)}
    elif kind != "ok":
        raise _refusal(reference, result, requirements)
    return result


def _refusal(reference: CallableReference, result: dict[str, Any], requirements: Sequence[str]) -> NotImportable:
    kind, message = result["kind"], str(result["message"]).rstrip(".")
    if kind == "guard":
        sentence = f'{reference.text} has a missing `if __name__ == "__main__":` guard: {message}.'
        return NotImportable(FIELD, sentence, 'Move what starts the run below `if __name__ == "__main__":`.')
    if kind == "unsendable":
        return NotImportable(FIELD, f"{reference.text} {message}.", TOP_LEVEL_REMEDY)
    sentence = f"{reference.text} does not import in a fresh interpreter, so the node could not run it: {message}."
    if kind == "missing":
        name = result["missing"]
        remedy = f"Install {name!r}, or add it to the job's requirements" + (
            "; it looks like a part of the project that is not in the code package (.gitignore, `include`)"
            if requirements
            else ""
        )
        return NotImportable(
            FIELD, sentence, f"{remedy}; if it is a file of yours, see that the code package holds it."
        )
    return NotImportable(
        FIELD,
        sentence,
        result.get("remedy") or "Make the module import on its own, without what the flow's process set up.",
    )


# --- run -------------------------------------------------------------------------------------------------------------


def _probe(
    reference: CallableReference, package: CodePackage | None, cache_dir: Path, python: str, timeout: float
) -> dict[str, Any]:
    private_folder(cache_dir)
    with tempfile.TemporaryDirectory(prefix="import-check-", dir=cache_dir, ignore_cleanup_errors=True) as name:
        place = Path(name).resolve()
        code_root = place / "code"
        code_root.mkdir()
        if package is not None:
            with zipfile.ZipFile(write_archive(package, cache_dir / ARCHIVES)) as archive:
                archive.extractall(code_root)
        request, result, output = place / "request.json", place / "result.json", place / "output"
        request.write_text(
            json.dumps(
                {
                    "code_root": None if package is None else str(code_root),
                    "import_root": reference.import_root,
                    "file": reference.file,
                    "module": reference.module,
                    "qualname": reference.qualname,
                }
            ),
            encoding="utf-8",
        )
        # -P and -E: neither the probe's directory nor PYTHONPATH, which the node would not have. Not -I: the user's
        # own site-packages stay, as they do for a preinstalled environment.
        argv = [python, "-P", "-E", str(Path(probe.__file__)), str(Path(loading.__file__)), str(request), str(result)]
        ended = _run(argv, _environment(place), code_root, output, timeout)
        if result.is_file():
            return dict(json.loads(result.read_text(encoding="utf-8")))
        if ended is None:
            return {
                "kind": "raised",
                "message": f"the import took longer than {timeout:g} seconds",
                "remedy": "Importing a module should only define things; move work and waiting into the function.",
            }
        last = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return {"kind": "raised", "message": " ".join([f"the interpreter ended with status {ended}", *last])}


def _run(argv: list[str], environment: dict[str, str], cwd: Path, output: Path, timeout: float) -> int | None:
    """Return the exit status; None past `timeout`. The process never outlives this call, whatever interrupts it."""
    with output.open("wb") as stream:
        try:
            process = subprocess.Popen(
                argv,
                env=environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        except OSError as error:
            raise InvalidInput(
                "python", f"{argv[0]} cannot be started: {error.strerror}.", "Name a Python interpreter."
            ) from error
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _environment(place: Path) -> dict[str, str]:
    # A Prefect home of its own: the node has neither the user's profile nor their API key, so neither has the check.
    return {**inherited(), **loading.NODE_ENVIRONMENT, "PREFECT_HOME": str(place / "prefect")}


# --- remember --------------------------------------------------------------------------------------------------------


def _key(reference: CallableReference, package: CodePackage | None, python: str, requirements: Sequence[str]) -> str:
    parts = [
        _FORMAT,
        None if package is None else package.sha256,
        reference.module,
        reference.file,
        reference.qualname,
        reference.import_root,
        bool(requirements),
        *_interpreter(python),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _interpreter(python: str) -> Iterator[str | int]:
    """Name the interpreter and what is installed in it, without starting it.

    An installation adds or removes entries of ``site-packages``, which changes that directory's time.
    """
    path = Path(python)
    yield str(path)
    if python == sys.executable:
        yield sys.version
        places = [Path(entry) for entry in sys.path if entry.endswith(("site-packages", "dist-packages"))]
    else:
        places = sorted(path.parent.parent.glob("lib/python3*/site-packages"))
    for place in (path, *places):
        with contextlib.suppress(OSError):
            yield f"{place}:{place.stat().st_mtime_ns}"


def _remembered(stored: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(stored.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # not there, or half of it: check again
        return None


def _store(stored: Path, result: dict[str, Any]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".check-", dir=stored.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(result, stream)
    Path(name).replace(stored)


def _signature(result: dict[str, Any]) -> inspect.Signature | None:
    described = result["parameters"]
    if described is None:
        return None
    return inspect.Signature(
        [
            inspect.Parameter(
                item["name"], _KINDS[item["kind"]], default=inspect.Parameter.empty if item["required"] else None
            )
            for item in described
        ]
    )


_KINDS = {
    int(kind): kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}


def _in_project(missing: str, reference: CallableReference, package: CodePackage | None) -> bool:
    """Say whether the package itself should have had the missing module: then no requirement will bring it."""
    if package is None:
        return False
    top = missing.partition(".")[0]
    bases = {"", "src", reference.import_root}
    starts = [f"{base}/{top}" if base else top for base in bases]
    return any(
        file.path == f"{start}.py" or file.path.startswith(f"{start}/") for file in package.files for start in starts
    )
