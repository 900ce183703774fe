"""JSON values: what may travel as a parameter or metadata, exactly.

pydantic writes NaN as null, turns the key 1 into "1" and a tuple into a list without a word. A value that comes back
different from what was sent would make the lineage lie, so whatever JSON cannot carry exactly is refused by its place.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator

DEEPEST = 64
"""Levels of nesting; parameters are flat or nearly so, and a deeper value is a mistake or an attack."""


def _exact(value: dict[str, Any]) -> dict[str, Any]:
    found = {key: _json(item, key, 1) for key, item in value.items()}
    for key in found:
        _text(key, "a name")
    return found


def _json(value: object, where: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"{where[:80]} is nested more than {DEEPEST} levels deep")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}; JSON has no such number")
        return value
    if isinstance(value, list | tuple):
        return [_json(item, f"{where}[{place}]", depth + 1) for place, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"{where} has the key {key!r}; keys in JSON are text")  # noqa: TRY004 (pydantic)
            _text(key, f"a key of {where}")
        return {key: _json(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
    raise ValueError(f"{where} is a {type(value).__name__}; only JSON values travel here")


def _text(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half a surrogate pair, which is no Unicode text") from None
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_exact)]
"""Names to JSON values; tuples become lists, so that what is kept is what JSON gives back."""

JsonValue = Annotated[Any, AfterValidator(lambda value: _json(value, "value", 1))]
"""One JSON value; tuples become lists."""
