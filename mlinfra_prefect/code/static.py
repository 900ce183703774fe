"""Reading a function's parameters without running its file, for code whose packages only the node will have."""

from __future__ import annotations

import ast
import inspect
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.code.address import FIELD, CallableReference
from mlinfra_prefect.errors import NotImportable

if TYPE_CHECKING:
    from mlinfra_prefect.code.package import CodePackage

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def static_parameters(reference: CallableReference, package: CodePackage | None) -> list[dict[str, Any]] | None:
    """Return the parameters as the probe describes them; None where they cannot be read (installed, decorated).

    Raises:
        NotImportable: the file is not valid Python, or nothing in it has that name.
    """
    if package is None or reference.file is None or reference.file in package.extra:
        return None
    try:
        body: list[ast.stmt] = ast.parse((package.root / reference.file).read_bytes()).body
    except (SyntaxError, ValueError) as error:
        raise NotImportable(FIELD, f"{reference.file} is not valid Python: {error}.", "Correct the file.") from error
    found: ast.stmt | None = None
    for name in reference.qualname.split("."):
        found = _named(body, name)
        if found is None:
            raise NotImportable(FIELD, f"{reference.file} defines no {reference.qualname!r}.", "Correct the address.")
        body = getattr(found, "body", [])
    if not isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef) or "." in reference.qualname or _changed(found):
        return None
    return _parameters(found.args)


def _named(body: list[ast.stmt], name: str) -> ast.stmt | None:
    """Return what binds `name` last, also inside `if` and `try`; assignments and imports bind too."""
    found: ast.stmt | None = None
    for statement in body:
        if isinstance(statement, _DEFINITIONS):
            found = statement if statement.name == name else found
            continue
        nested = [
            child
            for field in ("body", "orelse", "finalbody", "handlers")
            for block in getattr(statement, field, [])
            for child in (block.body if isinstance(block, ast.ExceptHandler) else [block])
        ]
        if nested:
            found = _named(nested, name) or found
        elif any(isinstance(node, ast.Name | ast.alias) and _bound(node) == name for node in ast.walk(statement)):
            found = statement
    return found


def _bound(node: ast.Name | ast.alias) -> str | None:
    if isinstance(node, ast.alias):
        return node.asname or node.name
    return node.id if isinstance(node.ctx, ast.Store) else None


def _changed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Say whether a decorator that is not known to keep the parameters stands above the function."""
    names = {
        ast.unparse(item.func if isinstance(item, ast.Call) else item).rpartition(".")[2]
        for item in function.decorator_list
    }
    return not names <= {"task", "flow", "gpu", "lease"}


def _parameters(arguments: ast.arguments) -> list[dict[str, Any]]:
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    described: list[dict[str, Any]] = []

    def add(name: str, kind: inspect._ParameterKind, *, needed: bool) -> None:
        described.append({"name": name, "kind": int(kind), "required": needed})

    for index, item in enumerate(positional):
        only = index < len(arguments.posonlyargs)
        kind = inspect.Parameter.POSITIONAL_ONLY if only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        add(item.arg, kind, needed=index < required)
    if arguments.vararg:
        add(arguments.vararg.arg, inspect.Parameter.VAR_POSITIONAL, needed=True)
    for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        add(item.arg, inspect.Parameter.KEYWORD_ONLY, needed=default is None)
    if arguments.kwarg:
        add(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD, needed=True)
    return described
