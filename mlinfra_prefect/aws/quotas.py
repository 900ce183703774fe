"""How much more an account may rent: the vCPU quotas of EC2, by family and market, less what runs.

EC2 counts vCPUs of all running instances of a group of families, for each market by itself, in each region. A quota of
zero is the usual first obstacle on AWS, so it is found before anything is made. What cannot be found out is None and a
remark, never a failure: a plan without the permission to read quotas is still a plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from mlinfra_prefect.aws.sdk import client, code_of, refused

SERVICE: Final = "ec2"
ALIVE: Final = ("pending", "running")
"""The states whose vCPUs count."""
_STANDARD: Final = frozenset({"a", "c", "d", "h", "i", "m", "r", "t", "z"})
_FAMILY = re.compile(r"(?P<letters>[a-z]+)(?P<generation>[0-9]*)")


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota of EC2, in vCPUs; the code is what Service Quotas calls it, in every region and account."""

    code: str
    name: str


_ON_DEMAND: Final = {
    "standard": Quota("L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances"),
    "g": Quota("L-DB2E81BA", "Running On-Demand G and VT instances"),
    "p": Quota("L-417A185B", "Running On-Demand P instances"),
    "dl": Quota("L-6E869C2A", "Running On-Demand DL instances"),
    "inf": Quota("L-1945791B", "Running On-Demand Inf instances"),
    "trn": Quota("L-2C3B7624", "Running On-Demand Trn instances"),
    "f": Quota("L-74FC7D96", "Running On-Demand F instances"),
    "x": Quota("L-7295265B", "Running On-Demand X instances"),
}
_SPOT: Final = {
    "standard": Quota("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests"),
    "g": Quota("L-3819A6DF", "All G and VT Spot Instance Requests"),
    "p": Quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests"),
    "p5": Quota("L-C4BD4855", "All P5 Spot Instance Requests"),
    "dl": Quota("L-85EED4F7", "All DL Spot Instance Requests"),
    "inf": Quota("L-B5D1601B", "All Inf Spot Instance Requests"),
    "trn": Quota("L-6B0D517C", "All Trn Spot Instance Requests"),
    "f": Quota("L-88CF9481", "All F Spot Instance Requests"),
    "x": Quota("L-E3A00192", "All X Spot Instance Requests"),
}
REPORTED: Final = (
    _ON_DEMAND["standard"], _ON_DEMAND["g"], _ON_DEMAND["p"], _SPOT["standard"], _SPOT["g"], _SPOT["p"], _SPOT["p5"],
)  # fmt: skip
"""What a report shows: the quotas that this package rents under."""


@dataclass(frozen=True, slots=True)
class Left:
    """A quota, what the account has of it, and what it uses; None: not known."""

    quota: Quota
    limit: int | None
    used: int | None

    @property
    def vcpus(self) -> int | None:
        """How many vCPUs can still be rented, never below 0; None: not known."""
        if self.limit == 0:
            return 0
        return None if self.limit is None or self.used is None else max(0, self.limit - self.used)


def quota_of(type_: str, market: str) -> Quota | None:
    """Return the quota that an instance type counts against; None: it is not known which. Pure."""
    found = _FAMILY.match(type_)
    letters, generation = (found["letters"], found["generation"]) if found else ("", "")
    if type_.startswith(("mac", "u-")):
        return None  # hosts and very large memory have quotas of their own, and no lease rents them
    if letters in {"g", "gr", "vt"}:
        group = "g"
    elif letters[:1] in _STANDARD and letters not in {"dl", "hpc", "inf", "trn"}:
        group = "standard"
    elif market == "spot" and letters == "p" and generation not in {"2", "3", "4"}:
        group = f"p{generation}"  # P5 has one of its own; which one P6 counts against is not documented
    else:
        group = letters
    return (_SPOT if market == "spot" else _ON_DEMAND).get(group)


def count(instances: Iterable[Mapping[str, Any]], vcpus: Mapping[str, int]) -> dict[str, int]:
    """Count the vCPUs of instances by the code of their quota. Pure.

    Args:
        instances: as `DescribeInstances` tells them, those that run.
        vcpus: of the types that are known; others are counted by their own cores and threads.
    """
    used: dict[str, int] = {}
    for each in instances:
        quota = quota_of(each["InstanceType"], each.get("InstanceLifecycle") or "on-demand")
        if quota is None:
            continue
        options = each.get("CpuOptions") or {}
        cores = int(options.get("CoreCount") or 0) * int(options.get("ThreadsPerCore") or 0)
        used[quota.code] = used.get(quota.code, 0) + max(cores, vcpus.get(each["InstanceType"], 0))
    return used


def left(
    region: str, wanted: Iterable[Quota], vcpus: Mapping[str, int] | None = None
) -> tuple[dict[str, Left], tuple[str, ...]]:
    """Return what each quota leaves in a region, by code, and remarks about what could not be found out.

    Costs one call for each quota and one for each thousand instances that run, all at once. The permissions are
    ``servicequotas:GetServiceQuota``, ``servicequotas:GetAWSDefaultServiceQuota`` and ``ec2:DescribeInstances``. Never
    fails.

    Args:
        region: of AWS.
        wanted: which quotas.
        vcpus: of instance types that are known (`count`).
    """
    quotas = tuple({quota.code: quota for quota in wanted}.values())
    if not quotas:
        return {}, ()
    with ThreadPoolExecutor(len(quotas) + 1, "quotas") as pool:
        counting = pool.submit(_used, region, dict(vcpus or {}))
        told = list(pool.map(lambda quota: _limit(region, quota), quotas))
        in_use, uncounted = counting.result()
    found = {
        quota.code: Left(quota, limit, None if in_use is None else in_use.get(quota.code, 0))
        for quota, (limit, _) in zip(quotas, told, strict=True)
    }
    remarks = dict.fromkeys(remark for remark in (*(remark for _, remark in told), uncounted) if remark)
    return found, tuple(remarks)


def report(region: str) -> tuple[tuple[Left, ...], tuple[str, ...]]:
    """Return the quotas that matter for training in a region, and remarks. Never fails."""
    found, remarks = left(region, REPORTED)
    return tuple(found[quota.code] for quota in REPORTED), remarks


def _limit(region: str, quota: Quota) -> tuple[int | None, str]:
    """Return the account's quota, or AWS's default where the account has none of its own."""
    try:
        service = client("service-quotas", region)
        try:
            told = service.get_service_quota(ServiceCode=SERVICE, QuotaCode=quota.code)
        except Exception as error:
            if code_of(error)[0] != "NoSuchResourceException":
                raise
            told = service.get_aws_default_service_quota(ServiceCode=SERVICE, QuotaCode=quota.code)
        return int(told["Quota"]["Value"]), ""
    except Exception as error:  # noqa: BLE001 (a plan without quotas is still a plan)
        if code_of(error)[0] == "NoSuchResourceException":
            return None, f"{region} has no quota {quota.code} ({quota.name})."
        return None, str(refused(error, f"reading quotas of {region} (servicequotas:GetServiceQuota)"))


def _used(region: str, vcpus: dict[str, int]) -> tuple[dict[str, int] | None, str]:
    """Return the vCPUs in use by the code of their quota; None: not known."""
    try:
        ec2 = client("ec2", region)
        pages = ec2.get_paginator("describe_instances").paginate(
            Filters=[{"Name": "instance-state-name", "Values": list(ALIVE)}], MaxResults=1000
        )
        found = [each for page in pages for taken in page["Reservations"] for each in taken["Instances"]]
        unknown = sorted(
            {each["InstanceType"] for each in found if not (each.get("CpuOptions") or {}).get("CoreCount")} - set(vcpus)
        )
        for start in range(0, len(unknown), 100):
            told = ec2.describe_instance_types(InstanceTypes=unknown[start : start + 100])["InstanceTypes"]
            vcpus |= {each["InstanceType"]: int(each["VCpuInfo"]["DefaultVCpus"]) for each in told}
    except Exception as error:  # noqa: BLE001 (the same)
        return None, str(refused(error, f"counting what runs in {region}"))
    return count(found, vcpus), ""
