"""Resume keys: the name under which checkpoints outlive leases.

A key is made from text of the user's and from parameters, so it is filled and not formatted: `str.format` would read
attributes of whatever it is given and pad to any width.
"""

from __future__ import annotations

import string
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping

_LINE: TypeAdapter[str] = TypeAdapter(Line)
SHOWN_NAMES = 20


def resume_key(template: str, params: Mapping[str, Any]) -> str:
    """Fill a resume key's ``{name}`` places from the parameters. Nothing else of `str.format` is understood.

    Raises:
        InvalidInput: a place names no parameter, the template is malformed, or the key is no line of text.
    """
    filled: list[str] = []
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InvalidInput("resume", f"{template!r} is malformed: {error}", "Write {{ and }} for braces.") from None
    for text, name, width, conversion in pieces:
        filled.append(text)
        if name is None:
            continue
        if width or conversion:
            raise InvalidInput(
                "resume", f"{template!r} formats {name!r}, but only plain places are filled", f"{{{name}}}"
            )
        value = params.get(name)
        if not isinstance(value, str | int | float):
            raise InvalidInput(
                "resume",
                f"{template!r} names {name!r}, which is no text or number among the parameters",
                _known(params),
            )
        filled.append(str(value))
    try:
        return _LINE.validate_python("".join(filled))
    except ValidationError as error:
        raise invalid(error, prefix="resume") from None


def _known(params: Mapping[str, Any]) -> str:
    return f"There are: {', '.join(sorted(params)[:SHOWN_NAMES])}." if params else "There are no parameters."
