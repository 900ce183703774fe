"""The rules of the network: nobody comes in from outside, and a public address is only a way out.

A node needs no inbound port at all: it fetches its work. So an ephemeral plan has no ingress rule whatever, a shared
one has none from public addresses, and a public address stands only where the environment's egress is the internet and
never beside an ingress rule. What security groups that are only named by id let in is not in a plan and not seen here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from mlinfra_prefect.terraform.gate_plan import UNKNOWN, PlanView, Resource, blocks, is_false, is_true
from mlinfra_prefect.terraform.gate_policy import Finding, Policy
from mlinfra_prefect.terraform.gate_templates import launches

PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fe80::/10")
)
GROUPS = frozenset({"aws_security_group", "aws_default_security_group"})
RULES = frozenset({"aws_vpc_security_group_ingress_rule", "aws_security_group_rule"})
GATEWAYS = frozenset({"aws_internet_gateway", "aws_egress_only_internet_gateway"})
BALANCERS = frozenset({"aws_lb", "aws_alb", "aws_elb"})
_ADDRESSES = ("cidr_blocks", "ipv6_cidr_blocks", "cidr_ipv4", "cidr_ipv6")
_LISTS = ("prefix_list_ids", "prefix_list_id")
_SUBNET = ("map_public_ip_on_launch", "assign_ipv6_address_on_creation")
_CARD = ("associate_public_ip_address", "associate_carrier_ip_address")
_IPV6 = ("ipv6_address_count", "ipv6_addresses", "ipv6_prefix_count", "ipv6_prefixes")


def findings(view: PlanView, policy: Policy) -> Iterator[Finding]:
    """Who may come in, and which addresses are public."""
    let_in = list(_ingress(view))
    for resource, rule in let_in:
        yield from _judge(resource, rule, policy)
    inheriting = {launch.launcher.address for launch in launches(view) if launch.templates}
    for resource, values in view.rented():
        if (resource.type in BALANCERS and not is_true(values.get("internal"))) or (
            resource.type == "aws_lambda_function_url" and values.get("authorization_type") != "AWS_IAM"
        ):
            yield _public(resource, "It answers anybody on the internet; make it internal, or leave it out.")
        if resource.address not in inheriting or _has_public(resource, values):
            yield from _address(resource, values, policy, let_in=bool(let_in))


# --- who may come in -------------------------------------------------------------------------------------------------


def _ingress(view: PlanView) -> Iterator[tuple[Resource, Mapping[str, Any] | None]]:
    """Every ingress rule, wherever it is written; None for one that the plan does not show yet."""
    for resource, values in view.rented():
        if resource.type in GROUPS:
            found = blocks(values, "ingress")
            if isinstance(found, tuple):
                yield from ((resource, rule) for rule in found)
            # A group without any rule has an unknown ingress, too; one that is written, and unknown, is something else.
            elif values.get("ingress") is not UNKNOWN or (resource.block and "ingress" in resource.block.expressions):
                yield resource, None
        elif resource.type == "aws_security_group_rule":
            if values.get("type") != "egress":
                yield resource, values
        elif resource.type in RULES:
            yield resource, values


def _judge(resource: Resource, rule: Mapping[str, Any] | None, policy: Policy) -> Iterator[Finding]:
    if policy.ephemeral or not policy.private_ingress:
        yield Finding(
            resource.address, "ingress-refused",
            "It lets something in, and nodes need no inbound port; remove the ingress rule.",
        )  # fmt: skip
    if rule is None:
        yield _public(resource, "Whom it lets in is known only after the apply; write its ingress rules out.")
        return
    for name in _ADDRESSES:
        given = rule.get(name)
        for address in given if isinstance(given, list) else [given] if given not in (None, "") else []:
            if not _is_private(address):
                told = f"It lets in {address if isinstance(address, str) else 'addresses that are not known yet'}"
                yield _public(resource, f"{told}; allow private addresses or a security group only.")
    if any(rule.get(name) for name in _LISTS):
        yield _public(resource, "Whom its prefix list lets in is not in the plan; name the addresses themselves.")


def _is_private(address: Any) -> bool:
    try:
        network = ipaddress.ip_network(address, strict=False)
    except (ValueError, TypeError):
        return False
    return any(network.version == each.version and network.subnet_of(each) for each in PRIVATE)  # type: ignore[arg-type]


def _public(resource: Resource, told: str) -> Finding:
    return Finding(resource.address, "public-ingress", told)


# --- public addresses ------------------------------------------------------------------------------------------------


def _address(resource: Resource, values: Mapping[str, Any], policy: Policy, *, let_in: bool) -> Iterator[Finding]:
    if resource.type in GATEWAYS and policy.egress != "internet":
        told = f"It leads to the internet, and the egress of this environment is {policy.egress}; leave it out."
        yield Finding(resource.address, "public-ip", told)
    has_one = _has_public(resource, values)
    if has_one is False:
        return
    if policy.egress != "internet":
        told = f"It has a public address or may get one, and the egress of this environment is {policy.egress}"
        yield Finding(resource.address, "public-ip", f"{told}; say that it gets none.")
    elif has_one and let_in:
        told = "It has a public address in a plan that also lets something in; keep one of the two."
        yield Finding(resource.address, "public-ip", told)


def _has_public(resource: Resource, values: Mapping[str, Any]) -> bool | None:
    """Whether it has, or gives, a public address; None where the plan leaves that to the subnet."""
    match resource.type:
        case "aws_eip":
            return True
        case "aws_nat_gateway":
            return values.get("connectivity_type") != "private"
        case "aws_subnet" | "aws_default_subnet":
            return any(is_true(values.get(name)) for name in _SUBNET)
        case "aws_launch_template":
            cards = blocks(values, "network_interfaces")
            found = [_card(card) for card in cards] if isinstance(cards, tuple) and cards else [None]
            return True if True in found else None if None in found else False
        case "aws_instance" | "aws_spot_instance_request":
            return _card(values)
    return False


def _card(values: Mapping[str, Any]) -> bool | None:
    if any(is_true(values.get(name)) for name in _CARD):
        return True
    if any(values.get(name) and values.get(name) is not UNKNOWN for name in _IPV6):
        return True
    return False if is_false(values.get("associate_public_ip_address")) else None
