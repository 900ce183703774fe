"""The probe: what a live canary must show before it gets more requests, and what each look at it found."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from mlinfra_prefect.model.json_values import JsonValue
from mlinfra_prefect.model.names import Id, Line
from mlinfra_prefect.model.record import Moment, Record

MOST_SAMPLES = 1000


class ProbeRequest(Record):
    """What each step of a rollout must pass. The defaults ask that no more than 1 % of a canary's requests fail."""

    seconds: float = Field(
        default=2.0,
        title="Watch for (seconds)",
        description="How long each share is watched at least.",
        ge=0,
        le=86400,
        examples=[60.0],
    )
    min_requests: int = Field(
        default=0,
        title="Requests at least",
        description="That the canary must have answered at each share; no more are waited for than the rollout lasts.",
        ge=0,
        examples=[100],
    )
    max_error_rate: float = Field(
        default=0.01,
        title="Error rate at most",
        description="Of the canary's requests: answers of 5xx, and none at all.",
        ge=0,
        le=1,
        examples=[0.01],
    )
    max_p95_ms: float | None = Field(
        default=None, title="95th percentile at most (ms)", description="None: any.", gt=0, examples=[200.0]
    )
    max_p95_ratio: float | None = Field(
        default=None,
        title="95th percentile at most (times the current version's)",
        description="Over the same time; None: any.",
        gt=0,
        examples=[1.5],
    )
    samples: tuple[JsonValue, ...] = Field(
        default=(),
        title="Samples",
        description="Rows that are asked of both versions, before the canary gets any request.",
        max_length=MOST_SAMPLES,
    )
    min_agreement: float | None = Field(
        default=None,
        title="Agreement at least",
        description="Share of the samples to which both versions give the same answer; None: any.",
        ge=0,
        le=1,
        examples=[0.95],
    )
    tolerance: float = Field(
        default=0.0,
        title="Tolerance",
        description="Numbers that differ by no more are the same answer.",
        ge=0,
        examples=[0.01],
    )
    asks: bool = Field(
        default=False,
        title="Asks the client",
        description="Whether a function of the client judges each step, too.",
    )

    @field_validator("samples", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else value

    @model_validator(mode="after")
    def _goes_together(self) -> ProbeRequest:
        if self.min_agreement is not None and not self.samples:
            raise ValueError("min_agreement needs samples to agree on")
        return self


class Step(Record):
    """One look at a canary: its share, what it did meanwhile, and the verdict."""

    share: int = Field(title="Share (percent)", description="0: it was asked directly.", ge=0, le=100, examples=[10])
    began_at: Moment = Field(title="Began at", description="When the share was in effect.")
    base: dict[str, Any] = Field(
        default_factory=dict, title="Base", description="The router's counters when it began, to be taken off."
    )
    ended_at: Moment | None = Field(default=None, title="Ended at", description="None: it is being watched.")
    ok: bool | None = Field(default=None, title="Passed", description="None: not judged yet.")
    reason: Line = Field(default="", title="Reason", description="What was found.", examples=["112 requests, 0 failed"])
    requests: int = Field(
        default=0, title="Requests", description="That the canary answered meanwhile.", ge=0, examples=[112]
    )
    errors: int = Field(default=0, title="Errors", description="Of these.", ge=0, examples=[0])
    p95_ms: float | None = Field(
        default=None, title="95th percentile (ms)", description="None: no request.", ge=0, examples=[7.9]
    )
    agreement: float | None = Field(
        default=None, title="Agreement", description="None: not asked.", ge=0, le=1, examples=[0.98]
    )
    answered: bool = Field(default=False, title="Answered", description="Whether the client's function passed it.")


class Question(Record):
    """What the client's own function is asked about one step, and what it said."""

    id: Id = Field(title="Id", description="Of the question.", examples=["q0"])
    share: int = Field(title="Share (percent)", description="Of the step.", ge=0, le=100, examples=[10])
    answer: Literal["pass", "fail"] | None = Field(default=None, title="Answer", description="None: not yet.")
    reason: Line = Field(
        default="", title="Reason", description="What the function said.", examples=["the mean is off by 3"]
    )
