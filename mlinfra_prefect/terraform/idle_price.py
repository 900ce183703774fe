"""What a plan costs a month while nothing happens: said before anybody is asked to agree to it.

An environment that is set up and forgotten bills for hours of gateways, endpoints and keys, not for what it does. Only
that is counted: every hour of a month at rest, no traffic, no requests, no stored data. The prices are a small dated
table of AWS's public list prices, not a bill: discounts, free tiers of an account and other regions' prices are not in
it. A type that is not in the table is shown as unknown and never as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlinfra_prefect.terraform.gate_kinds import FREE_UNTAGGED
from mlinfra_prefect.terraform.gate_plan import PlanView, blocks, read

DATED = "2026-04"
"""When the prices below stood on AWS's public price pages, for us-east-1; other regions differ by some per cent."""

HOURS = 730.0
"""Hours of a month, as AWS's own calculator counts them."""

DEFAULT_LIMIT_USD = 1.0
"""A month of the default profile at rest stays below this."""


@dataclass(frozen=True, slots=True)
class IdleLine:
    """One resource: dollars a month at rest (None: not known), and why."""

    address: str
    usd: float | None
    why: str


@dataclass(frozen=True, slots=True)
class IdlePrice:
    """What a plan costs at rest: the sum of what is known, and every resource, what costs most standing first."""

    usd_per_month: float
    lines: tuple[IdleLine, ...]

    @property
    def unknown(self) -> tuple[IdleLine, ...]:
        """The resources that may cost something and whose price is not known here."""
        return tuple(line for line in self.lines if line.usd is None)


def idle(document: Mapping[str, Any]) -> IdlePrice:
    """Returns what everything that a plan leaves standing costs a month at rest. Pure, and never raises.

    Args:
        document: ``terraform show -json`` of the plan. What exists already and stays is counted, too.
    """
    try:
        view = read(document)
    except RecursionError:
        return IdlePrice(0.0, (IdleLine("", None, "the plan is nested too deeply to be read"),))
    lines = [IdleLine(finding.address, None, finding.message) for finding in view.findings]
    zones, dashboards = _zone_count(view), 0
    for resource, values in view.rented():
        if resource.type == "aws_cloudwatch_dashboard":
            dashboards += 1
            price = _dashboard(dashboards)
        elif resource.type in _PRICES:
            price = _PRICES[resource.type](values, zones)
        elif resource.type in _NOTHING or resource.type in FREE_UNTAGGED:
            price = 0.0, _NOTHING.get(resource.type, "free")
        else:
            price = None, f"the price of {resource.type} at rest is not known here"
        lines.append(IdleLine(resource.address, *price))
    total = round(sum(line.usd or 0.0 for line in lines), 2)
    return IdlePrice(total, tuple(sorted(lines, key=_order)))


def _order(line: IdleLine) -> tuple[bool, float, str]:
    return line.usd is not None, -(line.usd or 0.0), line.address


# --- prices ----------------------------------------------------------------------------------------------------------
# Each from the public page named beside it; dollars, us-east-1, at the date above.

Price = tuple[float | None, str]
Pricing = Callable[[Mapping[str, Any], int], Price]
"""From a resource's values, and the number of zones that the plan's subnets stand in."""

NAT_GATEWAY_HOUR = 0.045  # aws.amazon.com/vpc/pricing, per gateway, without its data
ENDPOINT_ZONE_HOUR = 0.01  # aws.amazon.com/privatelink/pricing, per interface endpoint and zone
GATEWAY_LB_ENDPOINT_ZONE_HOUR = 0.01  # the same page
PUBLIC_IPV4_HOUR = 0.005  # aws.amazon.com/vpc/pricing, per public address, used or not
KMS_KEY_MONTH = 1.0  # aws.amazon.com/kms/pricing; the first two rotations add as much each
DASHBOARD_MONTH = 3.0  # aws.amazon.com/cloudwatch/pricing; three of an account are free
FREE_DASHBOARDS = 3
ALARM_MONTH = 0.10  # the same page, standard resolution, per metric
SECRET_MONTH = 0.40  # aws.amazon.com/secrets-manager/pricing
ADVANCED_PARAMETER_MONTH = 0.05  # aws.amazon.com/systems-manager/pricing
EKS_CLUSTER_HOUR = 0.10  # aws.amazon.com/eks/pricing, standard support
BALANCER_HOUR = {"application": 0.0225, "network": 0.0225, "gateway": 0.0125}  # .../elasticloadbalancing/pricing
CLASSIC_BALANCER_HOUR = 0.025  # the same page
ZONE_MONTH = 0.50  # aws.amazon.com/route53/pricing
TRANSIT_ATTACHMENT_HOUR = 0.05  # aws.amazon.com/transit-gateway/pricing
DISK_GIB_MONTH = {"gp3": 0.08, "gp2": 0.10, "st1": 0.045, "sc1": 0.015, "standard": 0.05}  # .../ebs/pricing


def _hourly(usd: float, what: str) -> Pricing:
    return lambda _values, _zones: (usd * HOURS, f"{what}, ${usd:g} an hour")


def _monthly(usd: float, what: str) -> Pricing:
    return lambda _values, _zones: (usd, f"{what}, ${usd:g} a month")


def _dashboard(number: int) -> Price:
    if number <= FREE_DASHBOARDS:
        return 0.0, f"dashboard; {FREE_DASHBOARDS} of an account are free, each further one is ${DASHBOARD_MONTH:g}"
    return DASHBOARD_MONTH, f"dashboard beyond the {FREE_DASHBOARDS} that are free, ${DASHBOARD_MONTH:g} a month"


def _endpoint(values: Mapping[str, Any], zones: int) -> Price:
    kind = values.get("vpc_endpoint_type")
    if kind in (None, "Gateway"):
        return 0.0, "gateway endpoint; free"
    if kind not in ("Interface", "GatewayLoadBalancer"):
        return None, "the price of this kind of endpoint is not known here"
    usd = ENDPOINT_ZONE_HOUR if kind == "Interface" else GATEWAY_LB_ENDPOINT_ZONE_HOUR
    subnets = values.get("subnet_ids")
    # Ids of subnets that the same plan makes are not known yet; an endpoint stands once in a zone at most.
    count = len(subnets) if isinstance(subnets, list) and subnets else zones
    if not count:
        return None, f"endpoint, ${usd:g} an hour in each zone; the plan does not tell how many"
    where = "one zone" if count == 1 else f"each of {count} zones"
    return usd * HOURS * count, f"endpoint with an interface, ${usd:g} an hour in {where}"


def _balancer(values: Mapping[str, Any], _zones: int) -> Price:
    kind = values.get("load_balancer_type")
    usd = BALANCER_HOUR.get(kind) if isinstance(kind, str) else None
    if usd is None:
        return None, "the price of this kind of load balancer is not known here"
    return usd * HOURS, f"{kind} load balancer, ${usd:g} an hour"


def _parameter(values: Mapping[str, Any], _zones: int) -> Price:
    tier = values.get("tier")
    if tier == "Advanced":
        return ADVANCED_PARAMETER_MONTH, f"advanced parameter, ${ADVANCED_PARAMETER_MONTH:g} a month"
    return (
        (0.0, "standard parameter; free") if tier in (None, "", "Standard") else (None, "which tier is not known yet")
    )


def _table(values: Mapping[str, Any], _zones: int) -> Price:
    if values.get("billing_mode") == "PAY_PER_REQUEST":
        return 0.0, "paid by request; next to nothing at rest"
    return None, "provisioned capacity is billed at rest, and its price is not known here"


def _function(values: Mapping[str, Any], _zones: int) -> Price:
    if blocks(values, "snap_start"):
        return None, "what a kept snapshot of a function costs is not known here"
    return 0.0, "paid by call; next to nothing for one call in some minutes"


def _disk(values: Mapping[str, Any], _zones: int) -> Price:
    kind, size = values.get("type"), values.get("size")
    usd = DISK_GIB_MONTH.get(kind) if isinstance(kind, str) else None
    if usd is None or not isinstance(size, int | float):
        return None, "what this disk costs is not known here"
    return usd * size, f"{size:g} GiB of {kind}, ${usd:g} a GiB and month"


def _alarm(values: Mapping[str, Any], _zones: int) -> Price:
    period = values.get("period")
    if values.get("metric_query") or (isinstance(period, int) and period < 60):
        return None, "an alarm over several metrics or of high resolution; its price is not known here"
    return ALARM_MONTH, f"alarm, ${ALARM_MONTH:g} a month"


_PRICES: Mapping[str, Pricing] = {
    "aws_alb": _balancer,
    "aws_cloudwatch_metric_alarm": _alarm,
    "aws_dynamodb_table": _table,
    "aws_ebs_volume": _disk,
    "aws_ec2_transit_gateway_vpc_attachment": _hourly(TRANSIT_ATTACHMENT_HOUR, "transit gateway attachment"),
    "aws_eip": _hourly(PUBLIC_IPV4_HOUR, "public IPv4 address"),
    "aws_eks_cluster": _hourly(EKS_CLUSTER_HOUR, "cluster"),
    "aws_elb": _hourly(CLASSIC_BALANCER_HOUR, "classic load balancer"),
    "aws_kms_key": _monthly(KMS_KEY_MONTH, "key"),
    "aws_kms_replica_key": _monthly(KMS_KEY_MONTH, "key"),
    "aws_lambda_function": _function,
    "aws_lb": _balancer,
    "aws_nat_gateway": _hourly(NAT_GATEWAY_HOUR, "NAT gateway"),  # its public address has a line of its own
    "aws_route53_zone": _monthly(ZONE_MONTH, "hosted zone"),
    "aws_secretsmanager_secret": _monthly(SECRET_MONTH, "secret"),
    "aws_ssm_parameter": _parameter,
    "aws_vpc_endpoint": _endpoint,
}

_STORAGE = "paid by what is stored; next to nothing at rest"
_NOTHING: Mapping[str, str] = {
    **dict.fromkeys(("aws_s3_bucket", "aws_s3_directory_bucket", "aws_s3_object", "aws_ecr_repository"), _STORAGE),
    **dict.fromkeys(("aws_cloudwatch_log_group",), "paid by what is written and kept; nothing at rest"),
    "aws_s3_bucket_metric": "paid by metric in hours with requests; nothing at rest",
    **dict.fromkeys(("aws_sns_topic", "aws_sqs_queue"), "paid by message; nothing at rest"),
    **dict.fromkeys(("aws_scheduler_schedule", "aws_cloudwatch_event_rule"), "paid by call; next to nothing at rest"),
    **dict.fromkeys(
        (
            "aws_default_network_acl", "aws_default_route_table", "aws_default_security_group", "aws_default_subnet",
            "aws_default_vpc", "aws_egress_only_internet_gateway", "aws_iam_instance_profile",
            "aws_iam_openid_connect_provider", "aws_iam_policy", "aws_iam_role", "aws_iam_user",
            "aws_internet_gateway", "aws_key_pair", "aws_launch_template", "aws_network_acl", "aws_network_interface",
            "aws_placement_group", "aws_resourcegroups_group", "aws_route_table", "aws_scheduler_schedule_group",
            "aws_security_group", "aws_subnet", "aws_vpc", "aws_vpc_dhcp_options",
            "aws_vpc_security_group_egress_rule", "aws_vpc_security_group_ingress_rule",
        ),
        "free",
    ),
}  # fmt: skip


def _zone_count(view: PlanView) -> int:
    """How many zones the plan's subnets stand in; 0 where it has none."""
    known = [values.get("availability_zone") for resource, values in view.rented() if resource.type == "aws_subnet"]
    named = {zone for zone in known if isinstance(zone, str)}
    return len(named) + sum(1 for zone in known if not isinstance(zone, str))
