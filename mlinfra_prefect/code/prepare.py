"""From what a user passes to what a node gets: reference, package and checks, in the order that fails soonest."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent.loading import forbid_while_importing, module_name, unwrap
from mlinfra_prefect.code.address import FIELD, CallableReference, find_module_spec
from mlinfra_prefect.code.by_value import pack_by_value, python_minor
from mlinfra_prefect.code.check import check_import
from mlinfra_prefect.code.collecting import collect
from mlinfra_prefect.code.project import TABLE, find_root
from mlinfra_prefect.code.reference import is_interactive, locate, module_address, namespace_of, refuse_unsendable
from mlinfra_prefect.errors import InvalidInput, NotImportable

if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Mapping, Sequence

    from mlinfra_prefect.code.package import CodePackage


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything about the code of one call that is settled before anything is provisioned.

    Args:
        reference: where the node finds the function; None for a command.
        package: the code that travels; None for a function of an installed module.
        code_hash: names the code in the lineage and in default resume keys.
        by_value: whether the function itself is in the package. Its hash then changes with what it captures.
        python: the minor version (``"3.11"``) that the node must have; None where any does.
        aliases: module name here to module name on the node, where they differ (``__main__``, a file that Prefect
            loaded under a name of its own): codecs need it for the user's classes.
        signature: the parameters as the import check saw them, without annotations; None where they are not known.
    """

    reference: CallableReference | None
    package: CodePackage | None
    code_hash: str
    by_value: bool
    python: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    signature: inspect.Signature | None = None


def prepare(
    target: Callable[..., Any] | str | None,
    *,
    by_value: bool = False,
    cache_dir: Path,
    python: str = sys.executable,
    timeout: float = 60,
    requirements: Sequence[str] = (),
) -> Prepared:
    """Find, pack and check the code of a call. Blocking; creates nothing but files below `cache_dir`.

    Args:
        target: a function, its address as text, or None for a command (then the project around the working directory
            is packed).
        by_value: send the function itself, for closures and notebooks.
        cache_dir: where archives and remembered checks are kept.
        python: the interpreter that stands for the node's.
        timeout: seconds for the import check.
        requirements: what the node installs and this environment may lack; see `check_import`.

    Raises:
        NotImportable: the node could not find or import the function.
        InvalidInput: the project cannot be packed.
        MissingGuard: this is itself running while a node, or a check, imports the user's module.
    """
    # Without this, the check of an unguarded script would start a check of that script, and so on.
    forbid_while_importing("a call on a node")
    if target is None:
        package = collect(_project_here())
        return Prepared(None, package, package.sha256, by_value=False)
    if by_value:
        return _prepare_by_value(target, cache_dir, python, timeout, requirements)
    located = locate(target)
    reference = located.reference
    packed = None if located.root is None else collect(located.root)
    if packed is not None and reference.file is not None and not packed.holds(reference.file):
        raise NotImportable(
            FIELD,
            f"{reference.file} is not in the code package of {packed.root}: .gitignore or a pattern omits it.",
            f"Let it travel: see `include` under [tool.{TABLE}] in pyproject.toml.",
        )
    signature = check_import(
        reference, packed, cache_dir=cache_dir, python=python, timeout=timeout, requirements=requirements
    )
    code_hash = _module_hash(reference) if packed is None else packed.sha256
    aliases = _aliases(target, reference)
    return Prepared(reference, packed, code_hash, by_value=False, aliases=aliases, signature=signature)


def _prepare_by_value(
    target: Callable[..., Any] | str, cache_dir: Path, python: str, timeout: float, requirements: Sequence[str]
) -> Prepared:
    if isinstance(target, str):
        raise InvalidInput(
            "by_value", "is for functions, and this is an address as text.", "Pass the function, or leave by_value out."
        )
    function = unwrap(target)
    refuse_unsendable(function)
    # The project around the function's module, so that what it imports is on the node too; for a notebook, the
    # project around the working directory.
    located = None if is_interactive(function) else module_address(function)
    root = located.root if located is not None and located.root is not None else _project_here()
    import_root = located.reference.import_root if located is not None else ""
    reference, package = pack_by_value(function, collect(root), import_root, function.__name__)
    signature = check_import(
        reference, package, cache_dir=cache_dir, python=python, timeout=timeout, requirements=requirements
    )
    return Prepared(reference, package, package.sha256, by_value=True, python=python_minor(), signature=signature)


def _aliases(target: Callable[..., Any] | str, reference: CallableReference) -> dict[str, str]:
    if isinstance(target, str) or reference.file is None:
        return {}
    here = str(namespace_of(unwrap(target)).get("__name__", ""))
    there = module_name(reference.file, reference.import_root)
    return {} if here in {"", there} else {here: there}


def _project_here() -> Path:
    here = Path.cwd()
    return find_root(here) or here


def _module_hash(reference: CallableReference) -> str:
    """Hash an installed function's address with its module's file: a new version of the package is new code."""
    digest = hashlib.sha256(reference.text.encode())
    spec = find_module_spec(reference.module) if reference.module else None
    if spec is not None and spec.origin and Path(spec.origin).is_file():
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()
