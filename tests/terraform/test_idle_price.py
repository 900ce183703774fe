"""What an environment costs while nothing happens: what is known is added up, what is not is never zero."""

from __future__ import annotations

import pytest

from mlinfra_prefect.terraform import idle_price

EMPTY = {"format_version": "1.2", "configuration": {"root_module": {}}}


def plan(*resources, actions=("create",)):
    """A plan of (type, values[, unknown values]), addressed by their place."""
    changes = [
        {
            "address": f"{kind}.x[{place}]", "mode": "managed", "type": kind, "name": "x", "index": place,
            "provider_name": "registry.terraform.io/hashicorp/aws",
            "change": {"actions": list(actions), "before": None, "after": values, "after_unknown": dict(*unknown)},
        }
        for place, (kind, values, *unknown) in enumerate(resources)
    ]  # fmt: skip
    return {**EMPTY, "resource_changes": changes}


def price(*resources) -> float | None:
    (line,) = [line for line in idle_price.idle(plan(*resources)).lines if not line.address.startswith("aws_subnet")]
    return line.usd


UNKNOWN_SUBNETS = {"subnet_ids": True}
ZONES = tuple(("aws_subnet", {"availability_zone": f"us-east-1{letter}"}) for letter in "abb")


@pytest.mark.parametrize(
    ("resources", "usd"),
    [
        ([("aws_nat_gateway", {})], 32.85),
        ([("aws_eip", {})], 3.65),
        ([("aws_kms_key", {})], 1.0),
        ([("aws_eks_cluster", {})], 73.0),
        ([("aws_lb", {"load_balancer_type": "application"})], 16.425),
        ([("aws_lb", {"load_balancer_type": "gateway"})], 9.125),
        ([("aws_lb", {"load_balancer_type": "new"})], None),
        ([("aws_vpc_endpoint", {"vpc_endpoint_type": "Gateway"})], 0.0),
        ([("aws_vpc_endpoint", {"vpc_endpoint_type": None})], 0.0),
        ([("aws_vpc_endpoint", {"vpc_endpoint_type": "Interface", "subnet_ids": ["a", "b", "c"]})], 21.9),
        ([("aws_vpc_endpoint", {"vpc_endpoint_type": "Interface"}, UNKNOWN_SUBNETS), *ZONES], 14.6),
        ([("aws_vpc_endpoint", {"vpc_endpoint_type": "Interface"}, UNKNOWN_SUBNETS)], None),
        ([("aws_vpc_endpoint", {}, {"vpc_endpoint_type": True})], None),
        ([("aws_secretsmanager_secret", {})], 0.4),
        ([("aws_cloudwatch_metric_alarm", {"period": 300})], 0.1),
        ([("aws_cloudwatch_metric_alarm", {"period": 10})], None),
        ([("aws_ssm_parameter", {"tier": "Standard"})], 0.0),
        ([("aws_ssm_parameter", {"tier": "Advanced"})], 0.05),
        ([("aws_ebs_volume", {"type": "gp3", "size": 100})], 8.0),
        ([("aws_ebs_volume", {"type": "io2", "size": 100})], None),
        ([("aws_dynamodb_table", {"billing_mode": "PAY_PER_REQUEST"})], 0.0),
        ([("aws_dynamodb_table", {"billing_mode": "PROVISIONED"})], None),
        ([("aws_lambda_function", {})], 0.0),
        ([("aws_s3_bucket", {})], 0.0),
        ([("aws_cloudwatch_log_group", {})], 0.0),
        ([("aws_instance", {})], None),
        ([("aws_rds_cluster", {})], None),
    ],
)
def test_each_type_at_rest(resources, usd):
    """Public list prices of us-east-1 for 730 hours."""
    assert price(*resources) == (usd if usd is None else pytest.approx(usd))


def test_three_dashboards_of_an_account_are_free():
    """The fourth is not, and the others say so."""
    lines = idle_price.idle(plan(*[("aws_cloudwatch_dashboard", {})] * 4)).lines
    assert sorted(line.usd for line in lines) == [0.0, 0.0, 0.0, 3.0]
    assert all("$3" in line.why for line in lines)


def test_the_sum_is_of_what_is_known_and_the_rest_is_named():
    """A price that is not known is not zero, and stands first."""
    found = idle_price.idle(plan(("aws_kms_key", {}), ("aws_nat_gateway", {}), ("aws_rds_cluster", {})))
    assert found.usd_per_month == 33.85
    assert [line.usd for line in found.lines] == [None, 32.85, 1.0]
    assert [line.address for line in found.unknown] == ["aws_rds_cluster.x[2]"]
    assert "aws_rds_cluster" in found.unknown[0].why


def test_what_stays_costs_and_what_goes_does_not():
    """The price is of what stands after the apply, not of what changes."""
    assert idle_price.idle(plan(("aws_kms_key", {}), actions=("no-op",))).usd_per_month == 1.0
    assert idle_price.idle(plan(("aws_kms_key", None), actions=("delete",))).usd_per_month == 0.0


def test_what_cannot_be_read_is_unknown():
    """A plan of an odd shape costs an unknown sum."""
    assert idle_price.idle({"format_version": "1.2"}).unknown
    assert idle_price.idle({}).unknown
