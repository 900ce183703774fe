"""The EC2 quotas that decide a launch: vCPUs by family and market, as Service Quotas names them. moto has none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from mlinfra_prefect.testing.aws.kinds import kind

Market = Literal["on-demand", "spot"]


@dataclass(frozen=True, slots=True)
class Quota:
    """One quota. `families` is a pattern of the part of a type before the dot; `value` in vCPUs."""

    code: str
    name: str
    market: Market
    families: re.Pattern[str]
    value: float


def _quota(code: str, name: str, market: Market, families: str, value: float) -> Quota:
    return Quota(code, name, market, re.compile(families), value)


_STANDARD = r"[acdhimrtz]\d.*"
_GRAPHICS = r"(g|vt)\d.*"
QUOTAS = (
    _quota(
        "L-1216C47A", "Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", "on-demand", _STANDARD, 256
    ),
    _quota("L-34B43A08", "All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", "spot", _STANDARD, 256),
    _quota("L-DB2E81BA", "Running On-Demand G and VT instances", "on-demand", _GRAPHICS, 192),
    _quota("L-3819A6DF", "All G and VT Spot Instance Requests", "spot", _GRAPHICS, 192),
    _quota("L-417A185B", "Running On-Demand P instances", "on-demand", r"p\d.*", 384),
    _quota("L-7212CCBC", "All P4, P3 and P2 Spot Instance Requests", "spot", r"p[234]([a-z].*)?", 192),
    _quota("L-C4BD4855", "All P5 Spot Instance Requests", "spot", r"p5.*", 192),
)
"""With the values an emulated account has until a test sets others; a real account's P quotas are often 0."""


def quota_of(type_name: str, market: str) -> Quota | None:
    """Return the quota that an instance counts for; None: none is known. Pure."""
    family = type_name.partition(".")[0]
    return next((each for each in QUOTAS if each.market == market and each.families.fullmatch(family)), None)


def vcpus(type_name: str) -> int:
    """Return what an instance counts."""
    found = kind(type_name)
    return found.vcpus if found else 0


def said(quota: Quota, value: float, region: str, account: str) -> dict[str, Any]:
    """Return a quota as Service Quotas says it. Pure."""
    return {
        "ServiceCode": "ec2", "ServiceName": "Amazon Elastic Compute Cloud (Amazon EC2)",
        "QuotaArn": f"arn:aws:servicequotas:{region}:{account}:ec2/{quota.code}", "QuotaCode": quota.code,
        "QuotaName": quota.name, "Value": value, "Unit": "None", "Adjustable": True, "GlobalQuota": False,
        "UsageMetric": {
            "MetricNamespace": "AWS/Usage", "MetricName": "ResourceCount",
            "MetricDimensions": {"Service": "EC2", "Type": "Resource", "Resource": "vCPU"},
            "MetricStatisticRecommendation": "Maximum",
        },
    }  # fmt: skip
