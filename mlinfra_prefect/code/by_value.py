"""A function sent as itself, for closures and notebooks, on explicit request and only towards the node.

Pickle is code that runs when it is read, so nothing is ever unpickled on the flow's side. Towards the node it is no
new power: the node runs the user's code anyway. The pickled function becomes one more file of the code package, next
to a generated module that loads it, so that the node finds it like any other function.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.code.address import BY_VALUE_FILE, FIELD, CallableReference
from mlinfra_prefect.code.package import CodePackage
from mlinfra_prefect.errors import NotImportable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PICKLE_FILE = "_mlinfra_function.cloudpickle"
CLOUDPICKLE_DIRECTORY = "_mlinfra_cloudpickle"
# Bytes. What a function captures is meant to be settings, not data; data has `inputs` and arguments.
MAX_PICKLE = 16 * 1024 * 1024

_LOADER = '''\
"""Generated: loads the function that was sent by value, once, when this module is imported."""
import pathlib
import pickle
import sys

if sys.version_info[:2] != ({major}, {minor}):
    raise ImportError(
        "the function was sent by value from Python {major}.{minor}, and this is Python %d.%d: "
        "they must have the same minor version" % sys.version_info[:2]
    )
_here = pathlib.Path(__file__).resolve().parent
try:
    import cloudpickle  # noqa: PLC0415 - costly, and rarely asked for
except ImportError:
    sys.path.append(str(_here / "{cloudpickle}"))
    import cloudpickle
function = pickle.loads((_here / "{pickle}").read_bytes())
'''


def python_minor() -> str:
    """Return ``"3.11"`` of this interpreter: what a node must match to read a function sent by value."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def pack_by_value(
    function: Any, package: CodePackage, import_root: str, name: str
) -> tuple[CallableReference, CodePackage]:
    """Return the package with the function's files added, and the reference to it. Runs reducers of captured objects.

    Args:
        function: without our decorators.
        package: the project's code; the function's module-level imports are found there.
        import_root: the directory inside the package from which those imports start.
        name: for people.

    Raises:
        NotImportable: something that it captures cannot be pickled, or is too large.
    """
    import cloudpickle

    try:
        with _main_stays_here(cloudpickle, function):
            data = cloudpickle.dumps(function)
    except Exception as error:  # a boundary: reducers of any captured object run here and raise what they like
        raise NotImportable(
            FIELD,
            f"{name} cannot be sent by value: {type(error).__name__}: {error}.",
            "It captures something that cannot be copied (a lock, a connection): create that inside the function.",
        ) from error
    if len(data) > MAX_PICKLE:
        raise NotImportable(
            FIELD,
            f"{name} captures {len(data) / 2**20:.1f} MiB; by value, {MAX_PICKLE // 2**20} MiB are allowed.",
            "Pass the data as an argument or as `inputs`.",
        )
    base = PurePosixPath(import_root)
    extra: dict[str, bytes] = {
        str(base / BY_VALUE_FILE): _LOADER.format(
            major=sys.version_info.major,
            minor=sys.version_info.minor,
            cloudpickle=CLOUDPICKLE_DIRECTORY,
            pickle=PICKLE_FILE,
        ).encode(),
        str(base / PICKLE_FILE): data,
        **_cloudpickle_source(base, cloudpickle),
    }
    reference = CallableReference(None, str(base / BY_VALUE_FILE), "function", name, import_root)
    files = {**package.extra, **extra}
    return reference, CodePackage.of(package.root, package.files, files, requirements=package.requirements)


def _cloudpickle_source(base: PurePosixPath, cloudpickle: Any) -> Mapping[str, bytes]:
    """Return cloudpickle itself, for a node that lacks it: pure Python, and the version that wrote."""
    home = Path(cloudpickle.__file__).parent
    return {
        str(base / CLOUDPICKLE_DIRECTORY / "cloudpickle" / source.name): source.read_bytes()
        for source in sorted(home.glob("*.py"))
    }


@contextlib.contextmanager
def _main_stays_here(cloudpickle: Any, function: Any) -> Iterator[None]:
    """Let the module of `function` travel by value too if the node could not import it under its name here.

    Prefect loads a flow's file under a name of its own when the plain name is taken. ``__main__`` is cloudpickle's
    own case.
    """
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    if module is None or not module.__name__.startswith("__prefect_loader_"):
        yield
        return
    cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(module)
