"""Environments: dev, staging, prod. Where things run and which caps hold there.

Caps belong here and not to the request, so that a partial override in a form can never drop them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from mlinfra_prefect.errors import BudgetExceeded, InvalidInput
from mlinfra_prefect.model.names import Id
from mlinfra_prefect.model.record import Record
from mlinfra_prefect.model.request import DEFAULT_MAX_MINUTES, MAX_HOURLY_USD, MAX_MINUTES, MAX_USD, TrainingRequest

Region = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}(-[a-z]+)+-[0-9]$")]
"""A region's name, such as eu-central-1."""
SHORTEST_LIFE_SECONDS = 60
"""A budget that buys less than a minute buys nothing but the boot."""


class Caps(Record):
    """The most that any one request of an environment may ask for; None: no cap."""

    # The upper bounds are the request's own: a cap above them would fill a request with a value it refuses.
    max_minutes: int | None = Field(
        default=None,
        title="Longest life (minutes)",
        description="Of one lease, from its request to its end.",
        ge=1,
        le=MAX_MINUTES,
        examples=[480],
    )
    max_usd: float | None = Field(
        default=None,
        title="Budget (USD)",
        description="Over the whole life of one lease.",
        gt=0,
        le=MAX_USD,
        examples=[25.0],
    )
    max_hourly_usd: float | None = Field(
        default=None,
        title="Price cap (USD per hour)",
        description="Of one lease.",
        gt=0,
        le=MAX_HOURLY_USD,
        examples=[4.0],
    )
    max_reserved_usd: float | None = Field(
        default=None,
        title="Budget of all (USD)",
        description="What all leases that are not released can come to cost, together.",
        gt=0,
        le=MAX_USD,
        examples=[100.0],
    )
    max_gpus: int | None = Field(
        default=None, title="GPUs in one lease", description="Over all its nodes; 0: cpu only.", ge=0, examples=[8]
    )
    max_leases: int | None = Field(
        default=None,
        title="Live leases at once",
        description="Everything counts that is not released yet.",
        ge=1,
        examples=[20],
    )


class AwsSettings(Record):
    """How an environment uses AWS; what `init aws` made for it is found by its name and account."""

    regions: tuple[Region, ...] = Field(
        default=(),
        title="Regions",
        description="In the order in which they are tried; empty: the one of the AWS configuration.",
        max_length=8,
        examples=[["eu-central-1", "eu-west-1"]],
    )
    disk_gib: int = Field(
        default=100, title="Disk (GiB)", description="Of one node, encrypted.", ge=20, le=16384, examples=[200]
    )


class Environment(Record):
    """A named configuration. ``dev`` on ``local`` exists without writing anything."""

    name: Id = Field(title="Name", description="As requests name it.", examples=["dev", "prod"])
    platform: Literal["local", "aws"] = Field(
        default="local", title="Default platform", description="Where a request runs that names none."
    )
    aws: AwsSettings = Field(default=AwsSettings(), title="AWS", description="How requests on aws are met.")
    caps: Caps = Field(default=Caps(), title="Caps", description="The most that any one request may ask for.")
    input_roots: tuple[Path, ...] = Field(
        default=(),
        title="Input roots",
        description="Inputs must lie under one of these; empty: anywhere readable.",
        examples=[["/data"]],
    )
    keeper_place: Literal["process", "foreground", "service"] | None = Field(
        default=None,
        title="Keeper's place",
        description="Where it lives; 'service': `mlinfra-prefect keeper` runs somewhere. Detected when not given.",
        examples=["service"],
    )

    def admit(self, request: TrainingRequest) -> TrainingRequest:
        """Return the request with its open limits filled from the caps.

        Raises:
            InvalidInput: a limit of the request is above a cap; the field is named.
        """
        caps = self.caps
        filled: dict[str, Any] = {"platform": request.platform or self.platform}
        for field in ("max_minutes", "max_usd", "max_hourly_usd"):
            asked, cap = getattr(request, field), getattr(caps, field)
            if asked is not None and cap is not None and asked > cap:
                raise InvalidInput(
                    field,
                    f"{asked} is above the cap of {cap} of environment {self.name!r}",
                    f"Ask for at most {cap}, or have the environment's cap raised; a request can only lower it.",
                )
            filled[field] = asked if asked is not None else cap
        if filled["max_minutes"] is None or (
            request.max_minutes is None and filled["max_minutes"] > DEFAULT_MAX_MINUTES
        ):
            filled["max_minutes"] = DEFAULT_MAX_MINUTES
        if caps.max_gpus is not None and request.accelerator.count * request.nodes > caps.max_gpus:
            raise InvalidInput(
                "accelerator",
                f"{request.accelerator} is more than the {caps.max_gpus} GPUs that environment {self.name!r} allows",
                "Ask for fewer, or use another environment.",
            )
        return request.merged(filled)


def longest_life_seconds(request: TrainingRequest, usd_per_hour: float) -> float:
    """Return how long an attempt may live: the lesser of its minutes and what its money buys (R5).

    Raises:
        BudgetExceeded: the price is above the price cap, or the budget buys less than a minute.
    """
    if request.max_hourly_usd is not None and usd_per_hour > request.max_hourly_usd:
        raise BudgetExceeded(
            f"max_hourly_usd: the offer costs {usd_per_hour:.2f} USD per hour, above {request.max_hourly_usd:.2f}.",
            "Raise max_hourly_usd, or ask for a cheaper accelerator.",
        )
    seconds = 60.0 * request.life_minutes
    if request.max_usd is not None and usd_per_hour > 0:
        seconds = min(seconds, 3600.0 * request.max_usd / usd_per_hour)
        if seconds < SHORTEST_LIFE_SECONDS:
            raise BudgetExceeded(
                f"max_usd: {request.max_usd:.2f} USD buys {seconds:.0f} seconds at {usd_per_hour:.2f} USD per hour.",
                "Raise max_usd, or ask for a cheaper accelerator.",
            )
    return seconds
