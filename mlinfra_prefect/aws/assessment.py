"""From facts to offers: which machine can be taken, in which zones, for how much, and why another cannot. Pure.

Money is reckoned with the worst: the dearest zone of a spot offer, the root disk and a public address included.
`offers` gathers the facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mlinfra_prefect.aws.catalogue import Machine, meets
from mlinfra_prefect.aws.prices import Price, SpotPrices
from mlinfra_prefect.aws.quotas import Left, quota_of
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.request import TrainingRequest

NEED_AN_IMAGE: Final = frozenset({"V100", "V100-32GB"})
"""GPUs older than Turing: NVIDIA's open kernel modules, which the default image has, do not drive them."""
NEAR_MISSES: Final = 4
"""How many types with another number of GPUs are shown in a region where none has the right one."""


@dataclass(frozen=True, slots=True)
class RegionFacts:
    """What is known of one region, for one request."""

    region: str
    zones: tuple[str, ...]
    """Of the environment; empty: any."""
    machines: tuple[Machine, ...]
    """With this kind of GPU, in any number."""
    sold: Mapping[str, tuple[str, ...]]
    """Zones by type."""
    left: Mapping[str, Left] = field(default_factory=dict)
    """By the quota's code."""
    listed: Mapping[str, Price] = field(default_factory=dict)
    """On-demand prices by type."""
    spot: Mapping[str, SpotPrices] | None = None
    """By type; None: not known."""
    extras_usd_per_hour: float = 0.0
    """Disk and address of one node."""
    remarks: tuple[str, ...] = ()

    def zones_of(self, type_: str) -> tuple[str, ...]:
        """The zones in which a type is sold and the environment is, in the environment's order."""
        sold = self.sold.get(type_, ())
        return tuple(zone for zone in self.zones if zone in sold) if self.zones else tuple(sold)


def ladder(request: TrainingRequest, facts: Sequence[RegionFacts]) -> tuple[Offer, ...]:
    """Return the offers of all regions: what can be taken, by region and price; then the others, in the same order.

    A region without a machine that meets the request shows those with another number of the same GPU, as skipped.
    """
    taken: list[Offer] = []
    skipped: list[Offer] = []
    for each in facts:
        fitting = [machine for machine in each.machines if meets(machine, request.accelerator)]
        found = [_offer(request, machine, each) for machine in fitting or _near(each.machines)]
        found.sort(key=lambda offer: (offer.price_source == "none", offer.usd_per_hour, offer.vcpus, offer.type))
        taken += [offer for offer in found if offer.skipped is None]
        skipped += [offer for offer in found if offer.skipped is not None]
    return (*taken, *skipped)


def _near(machines: Sequence[Machine]) -> list[Machine]:
    by_count: dict[int, Machine] = {}
    for each in sorted(machines, key=lambda machine: (machine.gpus, machine.vcpus)):
        by_count.setdefault(each.gpus, each)
    return list(by_count.values())[:NEAR_MISSES]


def _offer(request: TrainingRequest, machine: Machine, facts: RegionFacts) -> Offer:
    quota = quota_of(machine.type, request.market)
    left = facts.left.get(quota.code) if quota else None
    zones, price = _priced(request, machine, facts)
    usd = round(price.usd + facts.extras_usd_per_hour, 6) if price else 0.0
    why = (
        _unfit(request, machine)
        or _not_there(request, facts, machine, zones)
        or _beyond_quota(left, machine.vcpus * request.nodes)
        or _too_dear(request, usd if price else None)
    )
    return Offer(
        type=machine.type, region=facts.region, zones=zones, market=request.market, usd_per_hour=usd,
        gpus=machine.gpus, skipped=why, vcpus=machine.vcpus, memory_gib=machine.memory_gib,
        gpu_memory_gib=machine.gpu_memory_gib or None, quota_headroom=left.vcpus if left else None,
        priced_at=price.at if price else None, price_source=price.source if price else "none",
    )  # fmt: skip


def _priced(request: TrainingRequest, machine: Machine, facts: RegionFacts) -> tuple[tuple[str, ...], Price | None]:
    """Return the zones in which it may be taken, and the most that it costs there."""
    zones, listed = facts.zones_of(machine.type), facts.listed.get(machine.type)
    if request.market != "spot" or facts.spot is None:
        return zones, listed  # the list price is the most that spot costs, by EC2's own default
    spot = facts.spot.get(machine.type)
    if spot is None:
        return zones, listed
    return tuple(zone for zone in zones if zone in spot.by_zone), spot.dearest(zones)


def _unfit(request: TrainingRequest, machine: Machine) -> str | None:
    if machine.gpus != request.accelerator.count:
        return f"it has {machine.gpus} of them, and {request.accelerator.count} were asked for"
    if not machine.x86:
        return "it is an Arm machine, and only x86-64 machines are rented"
    if request.accelerator.name in NEED_AN_IMAGE and request.ami is None:
        return "the driver of the default image does not know this GPU: give ami= with an older driver"
    if request.market not in machine.markets:
        return f"AWS does not sell it {request.market}"
    return None


def _not_there(request: TrainingRequest, facts: RegionFacts, machine: Machine, zones: tuple[str, ...]) -> str | None:
    if zones:
        return None
    sold, there = facts.sold.get(machine.type, ()), ", ".join(facts.zones)
    if not facts.zones_of(machine.type):
        where = f"; AWS sells it in {', '.join(sold)}" if sold else f", nor anywhere in {facts.region}"
        return f"not sold in the environment's zones ({there}){where}"
    return f"no {request.market} price in {there}: it is not sold like that there now"


def _beyond_quota(left: Left | None, need: int) -> str | None:
    if left is None or left.vcpus is None or left.vcpus >= need:
        return None
    name, code, limit = left.quota.name, left.quota.code, left.limit or 0
    if limit == 0:
        return f"quota 0 of {name}, code {code}: ask AWS for {need} vCPUs"
    if limit < need:
        return f"quota {limit} of {name}, code {code}: ask AWS for {limit - left.vcpus + need} vCPUs"
    return (
        f"{left.vcpus} of {limit} vCPUs are left of {name}, and it needs {need}: wait, or ask AWS for "
        f"{limit - left.vcpus + need} vCPUs, code {code}"
    )


def _too_dear(request: TrainingRequest, usd: float | None) -> str | None:
    if usd is None:
        capped = "max_hourly_usd" if request.max_hourly_usd is not None else "max_usd"
        limit = request.max_hourly_usd if request.max_hourly_usd is not None else request.max_usd
        return None if limit is None else f"its price is not known, and {capped} is {limit:.2f}"
    hourly = usd * request.nodes
    if request.max_hourly_usd is not None and hourly > request.max_hourly_usd:
        return f"{hourly:.2f} USD per hour is above max_hourly_usd, {request.max_hourly_usd:.2f}"
    return None
