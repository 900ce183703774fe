"""Whether a call can travel at all: its arguments fit the function, each has a codec, and so has what comes back.

All three are knowable before anything is provisioned, so none of them may cost a machine.
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import Any

from mlinfra_prefect.agent import codecs
from mlinfra_prefect.code.reference import names_for_annotations
from mlinfra_prefect.errors import InvalidInput, NoCodec

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_REMEDY = "Use JSON values, pydantic models, dataclasses, numpy arrays, data frames, Path or ModelArtifact."


def check_signature(
    function: Callable[..., Any] | inspect.Signature,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    field_prefix: str = "",
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Check a call before anything is provisioned. Runs no user code but the annotations' own.

    Args:
        function: without our decorators (`resolve`); or the signature from the import check where the function is
            not loaded here, and then the annotation of its result is not checked.
        args: the call's positional arguments.
        kwargs: its keyword arguments.
        aliases: `Prepared.aliases`, for classes of the script itself.
        field_prefix: stands before the argument's name in errors, such as ``"params."``.

    Raises:
        InvalidInput: the arguments do not fit the parameters.
        NoCodec: an argument or the return annotation cannot travel; the field is its name.
    """
    known = function if isinstance(function, inspect.Signature) else inspect.signature(function)
    try:
        bound = known.bind(*args, **(kwargs or {}))
    except TypeError as error:
        called = "" if isinstance(function, inspect.Signature) else getattr(function, "__qualname__", "")
        field = f"{field_prefix}{_culprit(known, args, kwargs or {})}" or "arguments"
        raise InvalidInput(field, f"{error}.", f"The function takes {called}{_shown(known)}.") from error
    for name, value in _named(bound):
        try:
            codecs.check_value(value, name, aliases=aliases)
        except codecs.CodecError as error:
            raise NoCodec(f"{field_prefix}{name}", _sentence(error), _REMEDY) from error
    if not isinstance(function, inspect.Signature):
        _check_result(function)


def _check_result(function: Callable[..., Any]) -> None:
    annotation = inspect.unwrap(function).__annotations__.get("return", inspect.Signature.empty)
    if annotation is inspect.Signature.empty:
        return  # nothing promised: what comes back is checked when it is there
    holder = types.SimpleNamespace(__annotations__={"return": annotation})
    try:
        known = dict(names_for_annotations(function))
        resolved = typing.get_type_hints(holder, globalns=known, include_extras=True)["return"]
    except Exception as error:  # a boundary: a string annotation is evaluated, and it is the user's
        raise NoCodec(
            "return",
            f"the annotation {annotation!r} cannot be resolved: {type(error).__name__}: {error}.",
            "Import its names at the top of the module, not only under `if TYPE_CHECKING:`.",
        ) from error
    try:
        codecs.check_annotation(resolved, "return")
    except codecs.CodecError as error:
        raise NoCodec("return", _sentence(error), _REMEDY) from error


def _named(bound: inspect.BoundArguments) -> list[tuple[str, Any]]:
    """Flatten ``*args`` and ``**kwargs`` into names that a person recognises."""
    named: list[tuple[str, Any]] = []
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            named.extend((f"{name}[{index}]", item) for index, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            named.extend(value.items())
        else:
            named.append((name, value))
    return named


def _culprit(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Name the argument that does not fit: one too many, or the first that is missing; empty if it has no name."""
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        unknown = [name for name in kwargs if name not in signature.parameters]
        if unknown:
            return unknown[0]
    given = signature.bind_partial(*args[: _positional(signature)]).arguments
    return next(
        (
            name
            for name, parameter in signature.parameters.items()
            if name not in given
            and name not in kwargs
            and parameter.default is parameter.empty
            and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
        ),
        "",
    )


def _positional(signature: inspect.Signature) -> int:
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(parameter.kind in positional for parameter in signature.parameters.values())


def _shown(signature: inspect.Signature) -> str:
    return str(signature.replace(return_annotation=inspect.Signature.empty))


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    return text if text.endswith(".") else f"{text}."
