"""Whether a pool (a type in a zone, on one market) has capacity, and how EC2 says that it has none."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mlinfra_prefect.testing.aws.account import LIVE, Account
from mlinfra_prefect.testing.aws.kinds import kind, offered
from mlinfra_prefect.testing.aws.quotas import quota_of, vcpus
from mlinfra_prefect.testing.aws.wire import Refused


@dataclass(frozen=True, slots=True)
class Pool:
    """What instances are taken from. `market`: on-demand or spot."""

    region: str
    zone: str
    type: str
    market: str


@dataclass(frozen=True, slots=True)
class NoCapacity:
    """Pools that have none: every pattern that is given must fit (``g5.*``, ``us-east-1?``); none given fits all."""

    types: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    markets: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()

    def fits(self, pool: Pool) -> bool:
        """Whether it is about a pool. Pure."""
        return all(
            not patterns or any(fnmatchcase(value, each) for each in patterns)
            for patterns, value in (
                (self.types, pool.type), (self.zones, pool.zone), (self.markets, pool.market),
                (self.regions, pool.region),
            )
        )  # fmt: skip


def no_capacity(pool: Pool, *, fleet: bool) -> Refused:
    """Return EC2's refusal for want of capacity, as a fleet's error or as RunInstances answers it. Pure."""
    if pool.market == "spot" and fleet:
        return Refused(
            "UnfulfillableCapacity",
            "Unable to fulfill capacity due to your request configuration. Please adjust your request and try again.",
        )
    if pool.market == "spot":
        return Refused(
            "InsufficientInstanceCapacity", "There is no Spot capacity available that matches your request.", 500
        )
    return Refused(
        "InsufficientInstanceCapacity",
        f"We currently do not have sufficient {pool.type} capacity in the Availability Zone you requested "
        f"({pool.zone}). Our system will be working on provisioning additional capacity.",
        500,
    )  # fmt: skip


def not_offered(pool: Pool) -> Refused | None:
    """Return EC2's refusal of a type that a zone does not have, or None. Pure."""
    if kind(pool.type) is None:
        return Refused("InvalidParameterValue", f"Invalid value '{pool.type}' for InstanceType.")
    zones = offered(pool.region).get(pool.type, ())
    if pool.zone in zones:
        return None
    others = f" Please retry your request by not specifying an Availability Zone or choosing {', '.join(zones)}."
    return Refused(
        "Unsupported",
        f"Your requested instance type ({pool.type}) is not supported in your requested Availability Zone "
        f"({pool.zone}).{others if zones else ''}",
    )


def over_quota(account: Account, pool: Pool, value: float | None, more: int = 0) -> Refused | None:
    """Return EC2's refusal of one instance more than the quota allows, or None.

    Args:
        account: whose instances count.
        pool: where the instance would be.
        value: of the quota, in vCPUs; None: no quota is known.
        more: vCPUs that the same request has taken already.
    """
    quota = quota_of(pool.type, pool.market)
    if quota is None or value is None:
        return None
    used = sum(_counted(account, pool.region, quota.code, pool.market)) + more
    if used + vcpus(pool.type) <= value:
        return None
    if pool.market == "spot":
        return Refused("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
    return Refused(
        "VcpuLimitExceeded",
        f"You have requested more vCPU capacity than your current vCPU limit of {value:.0f} allows for the instance "
        "bucket that the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request "
        "to request an adjustment to this limit.",
    )


def _counted(account: Account, region: str, code: str, market: str) -> Iterable[int]:
    for raw in account.raw_instances(region):
        if raw.state in LIVE and (raw.lifecycle or "on-demand") == market:
            quota = quota_of(raw.instance_type, market)
            if quota is not None and quota.code == code:
                yield vcpus(raw.instance_type)
