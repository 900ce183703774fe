"""Declared serving: what a file says about endpoints. Every field but the name may be absent, and then is left alone.

It names no training and no data: a declaration makes no model appear. What it may name is a model that is stored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Strict, ValidationError, ValidationInfo, field_validator

from mlinfra_prefect.model.names import Id, Line
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.model.request import MAX_MINUTES, ServingRequest
from mlinfra_prefect.model.spelling import EndpointName

MOST_ENDPOINTS = 500

# A file has numbers of its own, unlike a form: text where a number belongs, or `yes`, is a typing error.
_Whole = Annotated[int, Strict()]
_Number = Annotated[float, Strict()]

SIZE = ("replicas", "max_replicas", "target_in_flight")
"""How many servers a version has, and by what they follow its load."""
NEW_SERVERS = (*SIZE, "predictor", "trusted_types")
"""Fields that servers are started with: another value means other servers."""
RECORDED = ("retire_seconds", "ready_seconds")
"""Fields that are only looked up when their time comes: another value moves no request."""


class EndpointDeclaration(Record):
    """What one endpoint shall be like. None: it was not said."""

    name: EndpointName = Field(title="Name", description="The endpoint's.", examples=["churn"])
    environment: Id = Field(default="dev", title="Environment", description="The endpoint's.", examples=["dev", "prod"])
    model: Id | None = Field(
        default=None,
        title="Model",
        description="The artifact that serves all requests; it must be in this home's store.",
        examples=["a0f3c5d7e9b1a2c4d6e8f"],
    )
    replicas: _Whole | None = Field(
        default=None, title="Replicas", description="How many servers answer for a version.", ge=1, le=16, examples=[2]
    )
    max_replicas: _Whole | None = Field(
        default=None,
        title="Replicas at most",
        description="Under load so many servers are started, and ended when it is over; as many as replicas: never.",
        ge=1,
        le=16,
        examples=[4],
    )
    target_in_flight: _Number | None = Field(
        default=None,
        title="Requests in flight",
        description="How many a replica shall have at a time, on average, where their number follows the load.",
        gt=0,
        le=10000,
        examples=[4.0],
    )
    predictor: Line | None = Field(
        default=None,
        title="Predictor",
        description="'file.py:function' inside the artifact's code, for models of format 'python'.",
        examples=["serve.py:predict"],
    )
    trusted_types: tuple[Line, ...] | None = Field(
        default=None,
        title="Trusted types",
        description="Types beyond those that skops trusts, for format 'sklearn-skops'; loading runs their code.",
        max_length=64,
        examples=[["sklearn.tree._tree.Tree"]],
    )
    shares: dict[_Whole, _Whole] | None = Field(
        default=None,
        title="Shares (percent)",
        description="Version to its part of the requests; a version that is not named gets none, and retires.",
        max_length=20,
        examples=[{"2": 10, "1": 90}],
    )
    retire_seconds: _Number | None = Field(
        default=None,
        title="Retire after (seconds)",
        description="How long a version that is replaced from now on is kept.",
        ge=0,
        le=604800,
        examples=[600.0],
    )
    ready_seconds: _Number | None = Field(
        default=None,
        title="Ready within (seconds)",
        description="What servers that are started from now on may take.",
        ge=1,
        le=3600,
        examples=[120.0],
    )
    expires_minutes: _Whole | None = Field(
        default=None,
        title="Expires after (minutes)",
        description="Counted from the moment at which this number is applied; applying it again changes nothing.",
        ge=1,
        le=MAX_MINUTES,
        examples=[480],
    )
    expires: Literal["never"] | None = Field(
        default=None, title="Expires", description="'never': it serves until it is released.", examples=["never"]
    )

    @field_validator("predictor")
    @classmethod
    def _as_a_request_has_it(cls, value: str | None) -> str | None:
        try:
            return ServingRequest(name="any", predictor=value).predictor
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None

    @field_validator("trusted_types", mode="before")
    @classmethod
    def _many(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError("must be a list of types")  # noqa: TRY004 (pydantic reports ValueError)
        return value

    @field_validator("shares", mode="before")
    @classmethod
    def _by_number(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        # JSON has no other keys than text.
        keys = [int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key for key in value]
        if len(set(keys)) < len(keys):
            raise ValueError("a version is there twice")
        return dict(zip(keys, value.values(), strict=True))

    @field_validator("shares")
    @classmethod
    def _whole(cls, value: dict[int, int] | None, info: ValidationInfo) -> dict[int, int] | None:
        if value is None:
            return None
        if info.data.get("model") is not None:
            raise ValueError("cannot stand beside model, which serves all requests: declare one of them")
        wrong = [share for share in value.values() if not 1 <= share <= 100]
        if wrong:
            raise ValueError(f"{wrong[0]} is not a percentage from 1 to 100; leave out the version that gets nothing")
        if sum(value.values()) != 100:
            raise ValueError(f"must sum to 100, and they sum to {sum(value.values())}")
        return dict(sorted(value.items()))

    @field_validator("expires")
    @classmethod
    def _one_of_both(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("expires_minutes") is not None:
            raise ValueError("cannot stand beside expires_minutes: declare one of them")
        return value

    @property
    def key(self) -> tuple[str, str]:
        """Environment and name: the endpoint that is meant."""
        return self.environment, self.name


class ServingDeclaration(Record):
    """What a file declares."""

    endpoints: tuple[EndpointDeclaration, ...] = Field(
        title="Endpoints", description="Each at most once.", min_length=1, max_length=MOST_ENDPOINTS
    )

    @field_validator("endpoints")
    @classmethod
    def _each_once(cls, value: tuple[EndpointDeclaration, ...]) -> tuple[EndpointDeclaration, ...]:
        keys = [each.key for each in value]
        for environment, name in keys:
            if keys.count((environment, name)) > 1:
                raise ValueError(f"{name!r} of environment {environment!r} is declared twice")
        return value
