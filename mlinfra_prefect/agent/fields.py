"""Taking a JSON object apart, field by field: every error names the object and the field."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, TypeVar, cast

from .wire import SpecError

T = TypeVar("T")

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Fields:
    """The fields of one JSON object, taken out one by one; every error names the object and the field."""

    def __init__(self, payload: object, where: str) -> None:
        if not isinstance(payload, dict):
            raise SpecError(f"{where}: a JSON object is expected")
        self._left: dict[str, Any] = dict(payload)
        self._where = where

    def take(self, name: str, kind: type[T] | tuple[type, ...], *default: T | None) -> Any:
        """The field's value; a missing field is an error unless a default is given, and None needs a None default."""
        if name not in self._left:
            if default:
                return default[0]
            raise SpecError(f"{self._where}: the field {name!r} is missing")
        value = self._left.pop(name)
        if value is None and default and default[0] is None:
            return None
        # bool is an int in Python and never meant as one in JSON.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SpecError(f"{self._where}: the field {name!r} has the wrong type ({type(value).__name__})")
        if isinstance(value, str) and "\0" in value:
            raise SpecError(f"{self._where}: the field {name!r} has a NUL character")
        return value

    def number(self, name: str, *default: float | None, least: float = 0.0) -> Any:
        """A finite number not below ``least`` (seconds everywhere)."""
        value = self.take(name, (int, float), *default)
        if value is None:
            return None
        if not math.isfinite(value) or value < least:
            raise SpecError(f"{self._where}: the field {name!r} must be a finite number of at least {least:g}")
        return float(value)

    def path(self, name: str, *default: None) -> Any:
        """An absolute path."""
        told = self.take(name, str, *default)
        if told is None:
            return None
        value = Path(told)
        if not value.is_absolute():
            raise SpecError(f"{self._where}: the field {name!r} must be an absolute path")
        return value

    def identifier(self, name: str) -> str:
        """An id: it becomes a file name, so only lower case, digits, dot, dash and underscore."""
        value = cast("str", self.take(name, str))
        if not _IDENTIFIER.fullmatch(value):
            raise SpecError(f"{self._where}: the field {name!r} is not an id: {value!r}")
        return value

    def choice(self, name: str, allowed: tuple[str, ...], *default: str) -> Any:
        """One of a few words."""
        value = self.take(name, str, *default)
        if value not in allowed:
            raise SpecError(f"{self._where}: the field {name!r} must be one of {', '.join(allowed)}")
        return value

    def strings(self, name: str, *default: tuple[str, ...] | None) -> Any:
        """A list of strings, as a tuple."""
        value = self.take(name, (list, tuple), *default)
        if value is None:
            return None
        if not all(isinstance(item, str) and "\0" not in item for item in value):
            raise SpecError(f"{self._where}: the field {name!r} must be a list of strings")
        return tuple(value)

    def texts(self, name: str, *, variables: bool = False) -> dict[str, str]:
        """A mapping of strings; with ``variables`` its keys must be names of environment variables."""
        value = self.take(name, dict, {})
        for key, text in value.items():
            if not isinstance(text, str) or "\0" in text:
                raise SpecError(f"{self._where}: {name}[{key!r}] must be a string")
        if variables:
            check_variables(tuple(value), f"{self._where}: {name}")
        return cast("dict[str, str]", value)

    def finish(self) -> None:
        """Refuse what nobody took."""
        if self._left:
            raise SpecError(f"{self._where}: unknown field {min(self._left)!r}")


def check_variables(names: tuple[str, ...], where: str) -> None:
    """Refuse what cannot be, or must not be, the name of an environment variable set by a user."""
    for name in names:
        if not _VARIABLE.fullmatch(name) or name.startswith("MLINFRA_"):
            raise SpecError(f"{where}: {name!r} cannot be used as the name of a variable")
    if len({name.upper() for name in names}) != len(names):
        raise SpecError(f"{where}: two names differ only in case")
