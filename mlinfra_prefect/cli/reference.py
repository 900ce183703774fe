"""The reference in ``docs/reference.md``, made of docstrings, signatures, field descriptions and the command line.

It exists because a reference that is written by hand is wrong after the next change. ``python -m
mlinfra_prefect.cli.reference docs/reference.md`` writes it; a test compares the committed file with what this returns.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from cyclopts import App
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import mlinfra_prefect
from mlinfra_prefect import errors
from mlinfra_prefect.cli.docstrings import markdown, parse, plain

HEAD = """\
# Reference

Every public name of `mlinfra_prefect`, every field of its records, every error and every verb. This page is made of the
docstrings by `python -m mlinfra_prefect.cli.reference docs/reference.md`; change those, not this.
[Start here](README.md) says where to begin.
"""
ERRORS = """\
## Errors

All are in `mlinfra_prefect.errors`. A `TemporaryError` may succeed when it is tried again; a `PermanentError` will not.
"""
OF_OUR_OWN = frozenset({"block", "close_block", "follow", "run_work"})
"""Members without an underscore that are for the rest of this package, not for users."""
ALSO = {"Node": "mlinfra_prefect.agent.node"}
"""What public functions return and is not in ``__all__`` itself: nobody makes one by hand."""


def reference() -> str:
    """Return the text of the page; the same on every host."""
    names = [name for name in mlinfra_prefect.__all__ if not name.startswith("__")]
    public = {name: getattr(mlinfra_prefect, name) for name in names}
    public |= {name: getattr(importlib.import_module(module), name) for name, module in ALSO.items()}
    records = {name: value for name, value in public.items() if _is_record(value)}
    handles = {name: value for name, value in public.items() if _is_handle(value)}
    functions = {name: value for name, value in public.items() if name not in records and name not in handles}
    parts = [
        HEAD,
        "## Functions and decorators\n",
        *(_function(name, value) for name, value in sorted(functions.items())),
        "## What they return\n",
        *(_handle(name, value) for name, value in sorted(handles.items())),
        "## Records\n",
        "Frozen. A field that is wrong is an `InvalidInput` that names it.\n",
        *(_record(name, value) for name, value in sorted(records.items())),
        ERRORS,
        _errors(),
        "## Verbs\n",
        "`mlinfra-prefect VERB`, as [the command line](cli.md) explains.\n",
        *_verbs(),
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _is_record(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, BaseModel)


def _is_handle(value: Any) -> bool:
    """Whether it is a class that people get instances of; `lease` is one that they call."""
    return inspect.isclass(value) and not _is_record(value) and value.__name__[:1].isupper()


# --- functions and classes -------------------------------------------------------------------------------------------


def _function(name: str, value: Any) -> str:
    docstring = inspect.getdoc(getattr(value, "fn", value))
    return _section(f"### `{name}`", _fenced(_signature(name, value)), markdown(parse(docstring)))


def _signature(name: str, value: Any) -> str:
    """A signature with annotations as they are written, folded where it is long."""
    found = inspect.signature(getattr(value, "fn", value))
    parameters = [each for each in found.parameters.values() if each.name != "self"]
    shown = ", ".join(_parameters(parameters))
    returns = "" if inspect.isclass(value) else f" -> {_written(found.return_annotation)}"
    if len(name) + len(shown) + len(returns) < 110:
        return f"{name}({shown}){returns}"
    folded = "\n".join(f"    {each}," for each in _parameters(parameters))
    return f"{name}(\n{folded}\n){returns}"


def _parameters(parameters: Sequence[inspect.Parameter]) -> list[str]:
    shown: list[str] = []
    starred = False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not starred:
            shown.append("*")
        starred = starred or each.kind in {each.KEYWORD_ONLY, each.VAR_POSITIONAL}
        stars = "*" * (each.kind is each.VAR_POSITIONAL) + "**" * (each.kind is each.VAR_KEYWORD)
        default = "" if each.default is each.empty else f" = {each.default!r}"
        shown.append(f"{stars}{each.name}: {_written(each.annotation)}{default}")
    return shown


def _written(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _handle(name: str, value: type) -> str:
    fields = [f"* `{field}: {kind}`{f': {plain(text)}' if text else ''}" for field, kind, text in _attributes(value)]
    members = [_member(name, key, found) for key, found in vars(value).items() if _for_users(key, found)]
    return _section(f"### `{name}`", markdown(parse(value.__doc__)), "\n".join(fields), *members)


def _for_users(name: str, found: Any) -> bool:
    public = not name.startswith("_") and name not in OF_OUR_OWN
    return public and (inspect.isfunction(found) or isinstance(found, property))


def _member(of: str, name: str, found: Any) -> str:
    if isinstance(found, property):
        returns = _written(inspect.signature(typing.cast("Callable[..., Any]", found.fget)).return_annotation)
        return _section(f"#### `{of}.{name}`", _fenced(f"{name}: {returns}"), markdown(parse(found.__doc__)))
    return _section(f"#### `{of}.{name}()`", _fenced(_signature(name, found)), markdown(parse(found.__doc__)))


def _attributes(value: type) -> list[tuple[str, str, str]]:
    """Fields of a dataclass as (name, type, the docstring under it)."""
    if not hasattr(value, "__dataclass_fields__"):
        return []
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(node, ast.ClassDef)
    found: list[tuple[str, str, str]] = []
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            found.append((line.target.id, ast.unparse(line.annotation), ""))
        elif found and isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant):
            found[-1] = (*found[-1][:2], inspect.cleandoc(str(line.value.value)))
    return found


# --- records and errors ----------------------------------------------------------------------------------------------


def _record(name: str, value: type[BaseModel]) -> str:
    rows = [(f"`{field}`", f"`{type_of(info)}`", *_told(info)) for field, info in value.model_fields.items()]
    members = [_member(name, key, found) for key, found in vars(value).items() if _for_users(key, found)]
    shown = markdown(parse(value.__doc__))
    return _section(f"### `{name}`", shown, _table(("field", "type", "default", "what"), rows), *members)


def _told(info: FieldInfo) -> tuple[str, str]:
    default = "" if info.is_required() else f"`{default_of(info)!r}`"
    bounds = _bounds(info)
    return default, f"{info.description or ''}{f' {bounds}.' if bounds else ''}"


def default_of(info: FieldInfo) -> Any:
    """Return the default of a field as people write it: enums and accelerators as their text."""
    default = info.get_default(call_default_factory=True, validated_data={})
    return default if isinstance(default, (str, int, float, tuple, dict, type(None))) else str(default)


def _bounds(info: FieldInfo) -> str:
    """The bounds of a number, in words."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = [(word, getattr(each, name, None)) for each in info.metadata for name, word in words.items()]
    told = ", ".join(f"{word} {value:.10g}" for word, value in found if isinstance(value, int | float))
    return told[:1].upper() + told[1:]


def type_of(info: FieldInfo) -> str:
    """Return a field's type in words: what may be written there."""
    return _plain_type(info.annotation)


def _plain_type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is None or annotation is type(None):
        return "None"
    if origin is typing.Annotated:
        return _plain_type(arguments[0])
    if origin in {typing.Union, types.UnionType}:
        return " | ".join(_plain_type(each) for each in arguments)
    if origin is typing.Literal:
        return " | ".join(repr(each) for each in arguments)
    if origin is not None:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(_plain_type, arguments))}]"
    if annotation is Ellipsis:
        return "..."
    return getattr(annotation, "__name__", None) or str(annotation)


def _errors() -> str:
    rows = []
    for name, value in vars(errors).items():
        if inspect.isclass(value) and value.__module__ == errors.__name__:
            bases = ", ".join(f"`{each.__name__}`" for each in value.__bases__)
            rows.append((f"`{name}`", bases, " ".join(plain(parse(value.__doc__).text).split())))
    return _table(("error", "is a", "what it says"), rows) + "\n"


# --- verbs -----------------------------------------------------------------------------------------------------------


def _verbs() -> Iterable[str]:
    from mlinfra_prefect.cli.app import app

    for name in app:
        if not name.startswith("-"):
            yield _verb(name, app[name])


def _verb(name: str, verb: App) -> str:
    function = verb.default_command
    assert function is not None
    rows, words = [], [f"mlinfra-prefect {name}"]
    for each in verb.assemble_argument_collection(parse_docstring=True):
        if not each.show:
            continue
        takes = "" if bool in {each.hint, *typing.get_args(each.hint)} else f" {each.names[0].lstrip('-').upper()}"
        if each.names[0].startswith("-"):
            # Cyclopts lists a negative for each flag; the application has switched them off.
            names = [spelled for spelled in each.names if f"--{spelled.removeprefix('--no-')}" not in each.names]
            shown = [f"{spelled}{takes}" for spelled in (each.names[0], *names) if spelled != each.names[0]]
            shown = [f"{each.names[0]}{takes}", *shown]
            words += [shown[0]] if each.required else []
        else:
            shown = [each.names[0]]
            words.append(each.names[0] if each.required else f"[{each.names[0]}...]")
        rows.append((", ".join(f"`{spelled}`" for spelled in shown), " ".join((each.parameter.help or "").split())))
    return _section(
        f"### `mlinfra-prefect {name}`",
        _fenced(" ".join(words)),
        plain(parse(function.__doc__).text),
        _table(("", "what"), rows),
    )


# --- Markdown --------------------------------------------------------------------------------------------------------


def _section(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _fenced(text: str) -> str:
    return f"```\n{text}\n```"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *([each.replace("|", "\\|") for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    """Write the page to a file: ``FILE``; return the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m mlinfra_prefect.cli.reference FILE\n")
        return 2
    Path(arguments[0]).write_text(reference(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
