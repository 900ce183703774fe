"""Says what is installed into the environment of an inference server, and why it is one of its own.

KServe pins what Prefect does not (and may pin it differently tomorrow), and a model must be loaded by the library
versions that wrote it, not by those that the flow happens to have. So each format and set of versions has its own
environment, found again by the hash of these requirements: the same input must always give the same tuple.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

ENVIRONMENT_NOTE = (
    "The server runs in an environment of its own, made once per set of versions and then kept: KServe, and the "
    "numpy and scikit-learn that the artifact records. The first endpoint on a machine therefore takes the minute "
    "that installing them takes; later ones start in seconds."
)
"""For the documentation and for the first deployment's log line."""

# KServe 0.21 allows any FastAPI below 1.0; 0.160 breaks its neighbours and 0.150 is what was tested with it.
_SERVER = ("fastapi>=0.115,<0.151", "kserve==0.21.*")

_SKOPS_DEFAULT = ">=0.13"
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "sklearn-skops": ("numpy", "scikit-learn", "scipy", "skops"),
    "python": ("numpy",),
}
# Pinned where the artifact records them: a predictor written in Python may load what any of these wrote.
_PINNED_FOR_PYTHON = ("joblib", "numpy", "scikit-learn", "scipy", "skops")


def serving_requirements(
    format: str,  # noqa: A002 -- the artifact's own word for it
    versions: Mapping[str, str],
) -> tuple[str, ...]:
    """Return the pinned requirements of the server's environment, sorted; pure.

    Args:
        format: the artifact's format, ``sklearn-skops`` or ``python``.
        versions: distribution name → version, as the artifact records them; others than those above are ignored
            (``python`` among them: the interpreter is chosen by whoever creates the environment).

    Raises:
        InvalidInput: the local platform cannot serve this format, or a recorded version is not one.
    """
    needed = _NEEDED.get(format)
    if needed is None:
        raise InvalidInput("format", f"{format!r} cannot be served here", f"Use one of: {', '.join(sorted(_NEEDED))}.")
    recorded = {_canonical(name): version for name, version in versions.items()}
    requirements = list(_SERVER)
    for name in sorted({*needed, *(_PINNED_FOR_PYTHON if format == "python" else ())}):
        if name in recorded:
            requirements.append(f"{name}=={_public(name, recorded[name])}")
        elif name in needed:
            requirements.append(f"{name}{_SKOPS_DEFAULT}" if name == "skops" else name)
    return tuple(sorted(requirements))


def _canonical(name: str) -> str:
    """PEP 503, and the import name under which many people know scikit-learn."""
    canonical = re.sub(r"[-_.]+", "-", name).lower()
    return "scikit-learn" if canonical == "sklearn" else canonical


def _public(name: str, version: str) -> str:
    """The version without its local part (``+cpu``): an index may have no such build, and it loads the same files."""
    try:
        return Version(version).public
    except InvalidVersion:
        message = f"the artifact records {name} {version!r}, which is not a version"
        raise InvalidInput("versions", message, "Store the artifact again with the installed version.") from None
