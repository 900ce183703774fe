"""What an instant fleet may start: a candidate for each override of its request, in the order of trying."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from mlinfra_prefect.testing.aws.account import Account
from mlinfra_prefect.testing.aws.capacity import Pool
from mlinfra_prefect.testing.aws.launching import zone_of
from mlinfra_prefect.testing.aws.prices import on_demand_price, spot_price
from mlinfra_prefect.testing.aws.wire import Refused

_BY_PRIORITY = frozenset({"prioritized", "capacity-optimized-prioritized"})


@dataclass(frozen=True, slots=True)
class Candidate:
    """One override of a request, as one pool. `said`: its LaunchTemplateAndOverrides in answers."""

    pool: Pool
    data: dict[str, Any]
    said: dict[str, Any]
    priority: float
    weight: float


def candidates_of(account: Account, region: str, config: dict[str, Any]) -> Iterable[Candidate]:
    """Return the candidates of one of a request's LaunchTemplateConfigs, on no market yet.

    Raises:
        Refused: there is no such template, version or subnet, or a type is missing.
    """
    from moto.core.exceptions import ServiceException

    ec2, spec = account.ec2(region), config.get("LaunchTemplateSpecification", {})
    try:
        template = (
            ec2.get_launch_template(template_id=spec["LaunchTemplateId"])
            if spec.get("LaunchTemplateId")
            else ec2.get_launch_template_by_name(name=spec.get("LaunchTemplateName", ""))
        )
        version = template.get_version(spec.get("Version", "$Default"))
    except ServiceException as error:
        raise Refused(str(error.code), str(error.message)) from None
    named = {"LaunchTemplateId": template.id, "Version": str(version.number)}
    for override in config.get("Overrides") or [{}]:
        if "InstanceRequirements" in override:
            raise Refused("InvalidParameterValue", "The emulator takes instance types, not InstanceRequirements.")
        data = {**version.data, **override}
        if not data.get("InstanceType"):
            raise Refused("MissingParameter", "The request must contain the parameter InstanceType")
        nics = data.get("NetworkInterfaces") or [{}]
        subnet = data.get("SubnetId") or nics[0].get("SubnetId") or ""
        zone = zone_of(account, region, subnet) if subnet else data.get("AvailabilityZone") or f"{region}a"
        yield Candidate(
            Pool(region, zone, data["InstanceType"], ""), data,
            {"LaunchTemplateSpecification": named, "Overrides": override},
            float(override.get("Priority", 1e9)), float(override.get("WeightedCapacity", 1)),
        )  # fmt: skip


def wanted_units(target: dict[str, Any]) -> dict[str, float]:
    """Return the units wanted on each market; what neither names goes to the default one. Pure."""
    wanted = {
        "on-demand": float(target.get("OnDemandTargetCapacity", 0)), "spot": float(target.get("SpotTargetCapacity", 0)),
    }  # fmt: skip
    rest = float(target["TotalTargetCapacity"]) - sum(wanted.values())
    wanted[target.get("DefaultTargetCapacityType") or "on-demand"] += max(rest, 0.0)
    return wanted


def ordered(candidates: Iterable[Candidate], market: str, strategy: str) -> list[Candidate]:
    """Return the candidates on a market, as a strategy tries them; of equals the first one named goes first. Pure."""

    def place(each: Candidate) -> float:
        if strategy in _BY_PRIORITY:
            return each.priority
        if market == "spot":
            return spot_price(each.pool.type, each.pool.zone) / each.weight
        return on_demand_price(each.pool.type, each.pool.region) / each.weight

    return sorted((replace(each, pool=replace(each.pool, market=market)) for each in candidates), key=place)
