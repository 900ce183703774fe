"""The one base of everything that crosses a layer: frozen, closed, and with its units written down."""

from __future__ import annotations

import reprlib
from datetime import UTC, datetime
from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.names import as_line


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("must carry a time zone")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the calendar in UTC") from None


Moment = Annotated[datetime, AfterValidator(_aware), Field(examples=["2026-01-31T12:00:00Z"])]
"""A moment in UTC."""


def moment(seconds: float | None) -> datetime | None:
    """The moment of a clock's epoch seconds; None: nobody said when. Pure."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


LONGEST_STEP = 64
LONGEST_SHOWN = 60


class Record(BaseModel):
    """A frozen value. Unknown fields are refused, so that a typing error never becomes a default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # a validator is built when it is first used: the command line starts 10 ms faster
        json_schema_serialization_defaults_required=True,  # what we write has every field
    )

    def revised(self, **changes: Any) -> Self:
        """Return a validated copy with some fields changed."""
        return type(self).model_validate({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


R = TypeVar("R", bound="Record")


def parsed(kind: type[R], values: object, *, prefix: str = "") -> R:
    """Validate `values` as `kind`, turning pydantic's report into one sentence that names the field.

    Raises:
        InvalidInput: with the dotted name of the first wrong field.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise invalid(error, prefix=prefix, known=tuple(kind.model_fields)) from None


def invalid(error: ValidationError, *, prefix: str = "", known: tuple[str, ...] = ()) -> InvalidInput:
    """Turn a pydantic report into `InvalidInput`: its first problem, and how many others there are.

    What was written under ``secrets`` is never shown: people paste the secret where its reference belongs.
    """
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    steps = [prefix] if prefix else []
    # pydantic adds steps of its own, such as `[key]` and `function-after[...]`, which nobody typed.
    steps.extend(as_line(str(step))[:LONGEST_STEP] for step in first["loc"] if "[" not in str(step))
    field = ".".join(steps) or "value"
    message, remedy = first["msg"].removeprefix("Value error, "), ""
    if first["type"] == "extra_forbidden":
        message = "is not a field"
        remedy = f"The fields are: {', '.join(sorted(known))}." if known and len(first["loc"]) == 1 else ""
    elif first["type"] == "missing":
        message = "is required"
    elif "secrets" not in first["loc"]:
        message = f"{message} (got {_shown(first['input'])})"
    if len(problems) > 1:
        remedy = f"{remedy} {len(problems) - 1} more field(s) are wrong too.".strip()
    return InvalidInput(field, message, remedy)


def _shown(value: object) -> str:
    # Enough to recognise a wrong value, and never so deep or long that showing it fails.
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxstring = short.maxother = LONGEST_SHOWN
    return short.repr(value)
