"""Accelerators as people write them: ``A100``, ``A100-80GB:8``, ``L4:1``, ``cpu``.

The grammar is ``NAME[:COUNT]``: the field's usual one. A name that is not known is refused with the nearest known
one, because a typing error must not become a search for capacity that does not exist.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_serializer, model_validator

from mlinfra_prefect.model.record import Record

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

KNOWN: dict[str, int] = {
    "cpu": 0,
    "T4": 16,
    "T4G": 16,
    "L4": 24,
    "L40S": 48,
    "A10G": 24,
    "V100": 16,
    "V100-32GB": 32,
    "A100": 40,
    "A100-80GB": 80,
    "H100": 80,
    "H200": 141,
    "B200": 180,
}
"""Known accelerators and the memory of one, in GiB (vendor data sheets); ``cpu`` has none."""

MAX_COUNT = 16
"""The most GPUs in one machine that any cloud sells (AWS p2.16xlarge, GCP a2-megagpu-16g)."""

_ALIASES = {"a100-40gb": "A100", "v100-16gb": "V100", "h100-80gb": "H100", "none": "cpu"}
_GRAMMAR = re.compile(r"(?P<name>[A-Za-z0-9-]{1,32})(?::(?P<count>[+-]?[0-9]{1,9}))?")
_BY_LOWER = {name.lower(): name for name in KNOWN} | _ALIASES


class Accelerator(Record):
    """An accelerator and how many of it one node has; written and serialised as ``NAME:COUNT`` or ``cpu``."""

    name: str = Field(title="Name", description="A known accelerator's name.", examples=["A100-80GB", "cpu"])
    count: int = Field(default=1, title="Count", description="How many in one node; 0 for cpu.", ge=0, le=MAX_COUNT)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = _GRAMMAR.fullmatch(value.strip(" "))
        if not found:
            raise ValueError("must look like 'A100', 'A100-80GB:8' or 'cpu'")
        name = _BY_LOWER.get(found["name"].lower())
        if name is None:
            near = difflib.get_close_matches(found["name"].lower(), list(_BY_LOWER), n=1, cutoff=0.5)
            hint = f"; did you mean {_BY_LOWER[near[0]]!r}?" if near else ""
            raise ValueError(f"{found['name']!r} is not a known accelerator ({', '.join(KNOWN)}){hint}")
        if name == "cpu":
            if found["count"] not in {None, "1", "0"}:
                raise ValueError("cpu takes no count; write 'cpu'")
            return {"name": "cpu", "count": 0}
        count = int(found["count"] or 1)
        if not 1 <= count <= MAX_COUNT:
            raise ValueError(f"the count must be from 1 to {MAX_COUNT}, which is the most that one machine has")
        return {"name": name, "count": count}

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.name not in KNOWN or (self.name == "cpu") != (self.count == 0):
            raise ValueError("must be a known accelerator with a count of at least 1, or 'cpu'")
        return self

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe what is written and read: text, never the two fields."""
        del schema, handler
        return {
            "type": "string",
            "title": "Accelerator",
            "description": f"NAME[:COUNT] or cpu. NAME is one of {', '.join(KNOWN)}; COUNT is 1 to {MAX_COUNT}.",
            "pattern": f"^ *{_GRAMMAR.pattern.replace('?P<name>', '').replace('?P<count>', '')} *$",
            "examples": ["A100-80GB:8", "L4:1", "cpu"],
        }

    def __str__(self) -> str:
        """Write it as people do."""
        return "cpu" if self.name == "cpu" else f"{self.name}:{self.count}"

    @property
    def memory_gib(self) -> int:
        """Memory of all accelerators of one node together, in GiB."""
        return KNOWN[self.name] * self.count
