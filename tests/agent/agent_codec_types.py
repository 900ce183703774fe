"""Classes that travel: they have to be importable, so they cannot live in the test functions."""

from __future__ import annotations

import enum
import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, HttpUrl, PrivateAttr, SecretStr, field_validator


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  (an alias is the point)
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.Flag):
    READ = 1
    WRITE = 2


@dataclass(frozen=True)
class Layer:
    size: int
    kind: Color = Color.RED


@dataclass
class Config:
    layers: list[Layer]
    lr: float = 0.1
    notes: dict[str, Any] = field(default_factory=dict)
    doubled: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.doubled += 2 * len(self.layers)

    @functools.cached_property
    def depth(self) -> int:
        return len(self.layers)


@dataclass(slots=True)
class Slotted:
    a: int
    b: tuple[int, ...] = ()


class Model(BaseModel):
    name: str
    scores: tuple[float, ...] = ()
    anything: Any = None
    _cache: int = PrivateAttr(default=0)

    @field_validator("name")
    @classmethod
    def shout(cls, value: str) -> str:
        return f"{value}!"


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Linked(BaseModel):
    url: HttpUrl


class Keyed(BaseModel):
    key: SecretStr


class Pair(NamedTuple):
    a: int
    b: int


class MyInt(int):
    pass


class Artifact:
    """Stands in for a model artifact."""

    def __init__(self, id_: str) -> None:
        self.id = id_

    def __mlinfra_artifact__(self) -> dict[str, Any]:
        return {"id": self.id}


def function() -> None:
    """Not a class."""
