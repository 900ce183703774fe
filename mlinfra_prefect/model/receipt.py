"""The receipt: the proof that a lease or an endpoint is gone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinfra_prefect.model.names import Id, Line
from mlinfra_prefect.model.record import Moment, Record

CLEAN_SWEEPS = 2
"""One empty list is not proof: the last two looks must find nothing (rule R7)."""


class Search(Record):
    """One look for survivors: what was searched for, where, and what was found."""

    what: Line = Field(
        title="What", description="What was searched for.", examples=["processes that carry MLINFRA_LEASE_ID=l0f…-1"]
    )
    where: Line = Field(title="Where", description="The host, account or region.", examples=["laptop"])
    at: Moment = Field(title="At", description="When it was looked, in UTC.")
    found: tuple[Line, ...] = Field(
        default=(), title="Found", description="Empty: a clean sweep.", examples=[["process 4711 (agent)"]]
    )
    ended: tuple[Line, ...] = Field(
        default=(), title="Ended", description="What the sweep itself had to end.", examples=[["process 4711 (agent)"]]
    )
    going: tuple[Line, ...] = Field(
        default=(),
        title="Going",
        description="What was found and ends with something that is ending.",
        examples=[["volume vol-0abc in us-east-1"]],
    )


class Receipt(Record):
    """What was created, what was destroyed, what was searched for and not found, and what it cost."""

    kind: Literal["lease", "endpoint", "rollout"] = Field(title="Kind", description="What is gone.")
    id: Id = Field(title="Id", description="Of the lease or endpoint.", examples=["l0f3c5d7e9b1a2c4d6e8f-1"])
    ledger_id: Line = Field(
        title="Ledger", description="The ledger's uuid.", examples=["7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11"]
    )
    reason: Line = Field(title="Reason", description="Why it was released.", examples=["the block ended"])
    attempts: int = Field(title="Attempts", description="How many offers were tried.", ge=0, examples=[1])
    created: tuple[Line, ...] = Field(
        title="Created", description="Resources, as attempt/address.", examples=[["1/terraform_data.node"]]
    )
    destroyed: tuple[Line, ...] = Field(
        title="Destroyed", description="Of these, what was destroyed.", examples=[["1/terraform_data.node"]]
    )
    searches: tuple[Search, ...] = Field(title="Searches", description="The last two are clean.")
    requested_at: Moment = Field(title="Requested at", description="When it was written ahead, in UTC.")
    released_at: Moment = Field(title="Released at", description="When the last sweep was clean, in UTC.")
    up_seconds: float = Field(
        title="Up (seconds)", description="From up to gone, summed over its attempts.", ge=0, examples=[312.5]
    )
    trained_seconds: float = Field(title="Trained (seconds)", description="In which a job ran.", ge=0, examples=[288.0])
    idle_seconds: float = Field(title="Idle (seconds)", description="Up, but not training.", ge=0, examples=[24.5])
    cost_usd: float = Field(
        title="Cost (USD)", description="From apply to gone, times the offers' prices.", ge=0, examples=[0.28]
    )

    @property
    def clean(self) -> bool:
        """Whether the last two sweeps found nothing (rule R7)."""
        last = self.searches[-CLEAN_SWEEPS:]
        return len(last) == CLEAN_SWEEPS and not any(search.found for search in last)
