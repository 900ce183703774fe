"""What an environment shares, as it is planned: what it costs at rest, and that our own gate lets it pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from modules_harness import ACCOUNT, planned

from mlinfra_prefect.errors import PlanRejected
from mlinfra_prefect.terraform import gate

# Billed by the hour or the month for being there by AWS's price pages. An endpoint of type Gateway is
# not; neither is an address that a machine has only while it lives.
PRICED = {
    "aws_cloudwatch_metric_alarm", "aws_db_instance", "aws_dynamodb_table", "aws_ebs_volume", "aws_ec2_transit_gateway",
    "aws_ecs_service", "aws_efs_file_system", "aws_eip", "aws_eks_cluster", "aws_flow_log", "aws_instance",
    "aws_kms_key", "aws_lb", "aws_nat_gateway", "aws_route53_zone", "aws_s3_bucket_metric", "aws_secretsmanager_secret",
    "aws_vpn_connection",
}  # fmt: skip
KNOWN_FREE = {
    "aws_cloudwatch_dashboard", "aws_cloudwatch_event_rule", "aws_cloudwatch_event_target", "aws_cloudwatch_log_group",
    "aws_default_security_group", "aws_iam_instance_profile", "aws_iam_policy", "aws_iam_role", "aws_iam_role_policy",
    "aws_iam_role_policy_attachment", "aws_internet_gateway", "aws_lambda_function", "aws_lambda_permission",
    "aws_route", "aws_route_table", "aws_route_table_association", "aws_s3_bucket",
    "aws_s3_bucket_lifecycle_configuration", "aws_s3_bucket_policy", "aws_s3_bucket_public_access_block",
    "aws_s3_bucket_server_side_encryption_configuration", "aws_security_group", "aws_subnet", "aws_vpc",
    "aws_vpc_endpoint", "aws_vpc_security_group_egress_rule", "aws_vpc_security_group_ingress_rule",
}  # fmt: skip
"""Their existence costs nothing. A type in neither set has to be looked up and put into one of them."""


def priced(document: dict[str, Any]) -> list[str]:
    found = []
    for each in planned(document):
        interface = each["type"] == "aws_vpc_endpoint" and each["values"]["vpc_endpoint_type"] != "Gateway"
        if each["type"] in PRICED or interface:
            found.append(each["address"])
        else:
            assert each["type"] in KNOWN_FREE, f"{each['type']}: does its existence cost anything?"
    return found


def test_the_default_profile_has_nothing_with_a_price_at_rest(shared_plan: Callable[..., dict[str, Any]]) -> None:
    """Dead-man and dashboard included."""
    assert priced(shared_plan()) == []


def test_the_hardened_profile_has_only_what_it_says(shared_plan: Callable[..., dict[str, Any]]) -> None:
    """A key, and an endpoint for each service."""
    assert sorted(priced(shared_plan("hardened", "none"))) == [
        "aws_kms_key.this[0]",
        'module.network.aws_vpc_endpoint.service["secretsmanager"]',
        'module.network.aws_vpc_endpoint.service["ssm"]',
    ]


def test_nodes_without_the_internet_reach_secrets_by_endpoints(shared_plan: Callable[..., dict[str, Any]]) -> None:
    """Where any are granted; each has a price, which `init aws` shows before it asks."""
    secret = f"arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/ours/wandb"
    assert sorted(priced(shared_plan("default", "none", secret_arns=[secret]))) == [
        'module.network.aws_vpc_endpoint.service["secretsmanager"]',
        'module.network.aws_vpc_endpoint.service["ssm"]',
    ]


@pytest.mark.parametrize(("profile", "egress"), [("default", "internet"), ("hardened", "none")])
def test_the_gate_lets_it_pass(profile: str, egress: str, shared_plan: Callable[..., dict[str, Any]]) -> None:
    """Everything is tagged, nobody comes in from outside, nothing leads out that should not."""
    tags = {"mlinfra-prefect:environment": "dev", "mlinfra-prefect:shared": "true"}
    gate.enforce(shared_plan(profile, egress), gate.Policy.shared(tags, profile=profile, egress=egress))


def test_the_gate_refuses_a_way_out_that_is_not_agreed(shared_plan: Callable[..., dict[str, Any]]) -> None:
    """So the two say the same of `egress`."""
    with pytest.raises(PlanRejected):
        gate.enforce(shared_plan("default", "internet"), gate.Policy.shared({}, egress="none"))


def test_nothing_comes_in(shared_plan: Callable[..., dict[str, Any]]) -> None:
    """No rule lets an address in; with interface endpoints nodes may call them, by their group."""
    for profile, egress in (("default", "internet"), ("hardened", "none")):
        for each in planned(shared_plan(profile, egress)):
            assert not each["values"].get("ingress"), each["address"]
            if each["type"] == "aws_vpc_security_group_ingress_rule":
                assert profile == "hardened"
                assert not any(each["values"].get(name) for name in ("cidr_ipv4", "cidr_ipv6", "prefix_list_id"))
