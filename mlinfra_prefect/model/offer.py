"""Offers and plans: what could be rented for a request, and what Terraform says it would do for one of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mlinfra_prefect.model.names import Line
from mlinfra_prefect.model.record import Moment, Record
from mlinfra_prefect.model.request import TrainingRequest


class Offer(Record):
    """One concrete way to meet a request: instance type, place and market, with its price."""

    type: Line = Field(title="Type", description="The instance type.", examples=["local", "p4d.24xlarge"])
    region: Line = Field(title="Region", description="Where it is rented.", examples=["local", "eu-central-1"])
    zones: tuple[Line, ...] = Field(
        default=(), title="Zones", description="Of the region; empty: any.", examples=[["eu-central-1a"]]
    )
    market: Literal["on-demand", "spot", "reserved"] = Field(title="Market", description="How it is bought.")
    usd_per_hour: float = Field(title="Price (USD per hour)", description="Of one node.", ge=0, examples=[32.77])
    gpus: int = Field(title="GPUs", description="In one node.", ge=0, examples=[8])
    skipped: Line | None = Field(
        default=None, title="Skipped", description="Why it cannot be taken; None: it can.", examples=["no quota"]
    )
    vcpus: int | None = Field(
        default=None, title="vCPUs", description="In one node; None: not known.", ge=1, examples=[96]
    )
    memory_gib: float | None = Field(
        default=None, title="Memory (GiB)", description="Of one node; None: not known.", gt=0, examples=[1152.0]
    )
    gpu_memory_gib: float | None = Field(
        default=None, title="GPU memory (GiB)", description="Of one GPU; None: no GPU.", gt=0, examples=[80.0]
    )
    quota_headroom: int | None = Field(
        default=None,
        title="Quota headroom (vCPUs)",
        description="What its quota leaves now; None: not known, or there is no quota.",
        ge=0,
        examples=[192],
    )
    priced_at: Moment | None = Field(
        default=None, title="Priced at", description="When its price was learned; None: it has none to learn."
    )
    price_source: Literal["pricing-api", "spot-history", "snapshot", "none"] = Field(
        default="none", title="Price's source", description="Who told its price.", examples=["pricing-api"]
    )


PRICE_BAND = 1.5
"""By how much a rung's dearest offer may be above its cheapest: the money is reckoned with the dearest."""


def rungs(offers: tuple[Offer, ...]) -> tuple[tuple[Offer, ...], ...]:
    """Group the offers that can be taken into rungs of a ladder, in their order. Pure.

    A rung is what one request to the cloud can try at once: one region, one market, and prices that are near each
    other. What is much dearer is a rung of its own, which comes after.
    """
    found: dict[tuple[str, str], list[list[Offer]]] = {}
    for offer in offers:
        if offer.skipped is None:
            bands = found.setdefault((offer.region, offer.market), [[offer]])
            if offer is bands[0][0]:
                continue
            if offer.usd_per_hour <= PRICE_BAND * bands[-1][0].usd_per_hour:
                bands[-1].append(offer)
            else:
                bands.append([offer])
    return tuple(tuple(band) for bands in found.values() for band in bands)


class PlannedResource(Record):
    """One resource that the plan would touch."""

    address: Line = Field(title="Address", description="In the plan.", examples=["terraform_data.node"])
    type: Line = Field(title="Type", description="Of the resource.", examples=["terraform_data"])
    action: Line = Field(title="Action", description="What Terraform would do.", examples=["create"])


class Plan(Record):
    """What would exist, for how long at most, and what it would cost: reviewable before anything exists."""

    request: TrainingRequest = Field(title="Request", description="Filled from the environment's caps.")
    platform: Line = Field(title="Platform", description="Where it would lie.", examples=["local"])
    offers: tuple[Offer, ...] = Field(title="Offers", description="In the order in which they would be tried.")
    offer: Offer = Field(title="Offer", description="The first that can be taken.")
    stack: Line = Field(title="Stack", description="The root module.", examples=["local-node"])
    engine: Line = Field(title="Engine", description="Name and version of Terraform.", examples=["terraform 1.11.4"])
    resources: tuple[PlannedResource, ...] = Field(title="Resources", description="What would be touched.")
    max_minutes: int = Field(
        title="Longest life (minutes)",
        description="The lesser of its minutes and what its money buys.",
        ge=1,
        examples=[60],
    )
    estimate_usd: float = Field(
        title="Estimate (USD)", description="Price times the longest life.", ge=0, examples=[32.77]
    )
    code_files: tuple[Line, ...] = Field(
        default=(), title="Code", description="Files that would travel to the node.", examples=[["train.py"]]
    )
    code_bytes: int = Field(
        default=0, title="Code size (bytes)", description="Of these files together.", ge=0, examples=[20480]
    )
    remarks: tuple[Line, ...] = Field(
        default=(), title="Remarks", description="What could not be found out.", examples=[["eu-west-1 has no quota"]]
    )
    made_at: Moment = Field(title="Made at", description="When it was planned, in UTC.")

    @property
    def summary(self) -> str:
        """One line for logs."""
        return (
            f"{len(self.resources)} resource(s) from {self.stack}, {self.offer.type} in {self.offer.region}, "
            f"at most {self.max_minutes} min, {self.offer.usd_per_hour:.2f} USD/h, "
            f"at most {self.estimate_usd:.2f} USD"
        )
