"""Whether what a function promises to return can travel: checked before anything is provisioned.

A training that runs all night and then cannot return its result is the most expensive type error there is. What an
annotation does not say (``Any``, ``object``, a type variable) is let through, and checked when the value is there.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import types
import typing
import uuid
from pathlib import Path
from typing import Any

from .codec_classes import is_pydantic
from .codec_places import CodecError, type_name

_EXACT = frozenset({
    type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset,
    dt.datetime, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, Path, object,
})  # fmt: skip
_ABSTRACT = frozenset({
    collections.abc.Mapping, collections.abc.MutableMapping, collections.abc.Sequence, collections.abc.MutableSequence,
    collections.abc.Set, collections.abc.MutableSet, collections.abc.Collection, collections.abc.Iterable,
    collections.abc.Hashable, collections.abc.Sized,
})  # fmt: skip
_LAZY = (
    collections.abc.Iterator,
    collections.abc.AsyncIterator,
    collections.abc.Awaitable,
    collections.abc.AsyncIterable,
)
_TABLES = {
    "pandas": {"DataFrame"}, "polars": {"DataFrame"}, "pyarrow": {"Table"}, "torch": {"Tensor"},
}  # fmt: skip
_REMEDY = (
    "Return JSON values, dataclasses, pydantic models, numpy arrays, data frames, pathlib.Path or a ModelArtifact."
)


def check_annotation(annotation: Any, name: str) -> None:
    """Raise CodecError when no value of this type could travel.

    Args:
        annotation: a resolved type; a string or a missing annotation says nothing and is let through.
        name: what is annotated, such as ``return``, for the error.
    """
    _check(annotation, name, frozenset())


def _check(annotation: Any, name: str, seen: frozenset[Any]) -> None:
    if _says_nothing(annotation):
        return
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated or isinstance(annotation, typing.NewType):
        _check(arguments[0] if arguments else annotation.__supertype__, name, seen)
    elif hasattr(annotation, "__value__") and not isinstance(annotation, type):  # type X = ... (3.12)
        if annotation not in seen:
            _check(annotation.__value__, name, seen | {annotation})
    elif origin is not None:
        if origin not in {typing.Union, types.UnionType}:
            _check(origin, name, seen)
            if origin not in _EXACT | _ABSTRACT:
                return  # the parameters of numpy's and our own generics describe the type, they are not values in it
        for argument in arguments:
            _check(argument, name, seen)
    elif isinstance(annotation, type):
        _check_class(annotation, name, seen)
    else:
        raise CodecError(name, str(annotation), "has no codec", _REMEDY)


def _says_nothing(annotation: Any) -> bool:
    """What is not known before the value is there: missing, unresolved, a variable, any value of a given list."""
    if annotation is None or annotation is Any or annotation is ... or annotation is inspect.Signature.empty:
        return True
    unresolved = isinstance(annotation, str | typing.TypeVar | typing.ParamSpec | typing.ForwardRef)
    return (
        unresolved or annotation in {typing.NoReturn, typing.Never} or typing.get_origin(annotation) is typing.Literal
    )


def _check_class(kind: type, name: str, seen: frozenset[Any]) -> None:
    if kind in _EXACT or kind in _ABSTRACT or kind in seen:
        return
    if getattr(kind, "__mlinfra_artifact__", None) is not None or getattr(kind, "__mlinfra_draft__", False):
        return
    if issubclass(kind, _LAZY):
        raise CodecError(name, type_name(kind), "is computed while it is read, so it cannot travel", "Return a list.")
    if typing.is_typeddict(kind) or dataclasses.is_dataclass(kind):
        _check_importable(kind, name)
        for field, inner in _hints(kind).items():
            _check(inner, f"{name}.{field}", seen | {kind})
        return
    if issubclass(kind, enum.Enum) or is_pydantic(kind):
        _check_importable(kind, name)
        return
    library = kind.__module__.partition(".")[0]
    if kind.__name__ in _TABLES.get(library, ()) or (library == "numpy" and _is_array(kind)):
        return
    if getattr(kind, "_is_protocol", False):
        return
    raise CodecError(name, type_name(kind), "has no codec", _REMEDY)


def _is_array(kind: type) -> bool:
    return kind.__name__ == "ndarray" or any(base.__name__ == "generic" for base in kind.__mro__)


def _check_importable(kind: type, name: str) -> None:
    if "<locals>" in kind.__qualname__:
        raise CodecError(
            name,
            type_name(kind),
            "is a class that cannot be imported by its name",
            "Define it at the top level of a module.",
        )


def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except Exception:  # noqa: BLE001  (annotations are the user's code; what cannot be resolved says nothing)
        return {}
