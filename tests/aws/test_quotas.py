"""Quotas are found before anything is made, in vCPUs by family and market; what is not known is a remark."""

from __future__ import annotations

import pytest
from aws_facts import nobody, proxy, served, told

from mlinfra_prefect.aws import quotas
from mlinfra_prefect.aws.sdk import client

__all__ = ["nobody", "proxy", "served", "told"]  # fixtures

G, P, STANDARD = "L-DB2E81BA", "L-417A185B", "L-1216C47A"
SPOT_G = "L-3819A6DF"


@pytest.mark.parametrize(
    ("type_", "market", "code"),
    [
        ("g4dn.xlarge", "on-demand", G),
        ("g5.48xlarge", "on-demand", G),
        ("g6e.xlarge", "on-demand", G),
        ("gr6.4xlarge", "on-demand", G),
        ("g6.xlarge", "spot", SPOT_G),
        ("p3dn.24xlarge", "on-demand", P),
        ("p4d.24xlarge", "on-demand", P),
        ("p6-b200.48xlarge", "on-demand", P),
        ("p4de.24xlarge", "spot", "L-7212CCBC"),
        ("p5.48xlarge", "spot", "L-C4BD4855"),
        ("p5en.48xlarge", "spot", "L-C4BD4855"),
        ("p6-b200.48xlarge", "spot", None),
        ("m7i.xlarge", "on-demand", STANDARD),
        ("c7gn.large", "on-demand", STANDARD),
        ("im4gn.large", "on-demand", STANDARD),
        ("m5.xlarge", "spot", "L-34B43A08"),
        ("dl1.24xlarge", "on-demand", "L-6E869C2A"),
        ("inf2.xlarge", "on-demand", "L-1945791B"),
        ("trn1.2xlarge", "spot", "L-6B0D517C"),
        ("x2idn.16xlarge", "on-demand", "L-7295265B"),
        ("mac2.metal", "on-demand", None),
        ("u-6tb1.metal", "on-demand", None),
        ("hpc7a.96xlarge", "on-demand", None),
    ],
)
def test_every_family_counts_against_its_own_quota_in_each_market(type_, market, code):
    quota = quotas.quota_of(type_, market)
    assert (quota.code if quota else None) == code


def test_vcpus_are_counted_by_family_and_market():
    running = [
        {"InstanceType": "g4dn.xlarge"},
        {"InstanceType": "g5.2xlarge", "CpuOptions": {"CoreCount": 4, "ThreadsPerCore": 2}},
        {"InstanceType": "g4dn.xlarge", "InstanceLifecycle": "spot"},
        {"InstanceType": "p4d.24xlarge", "CpuOptions": {"CoreCount": 2, "ThreadsPerCore": 1}},
        {"InstanceType": "u-6tb1.metal"},
    ]
    assert quotas.count(running, {"g4dn.xlarge": 4, "p4d.24xlarge": 96}) == {G: 12, SPOT_G: 4, P: 96}


@pytest.mark.parametrize(
    ("limit", "used", "left"), [(0, None, 0), (8, 3, 5), (8, 12, 0), (8, None, None), (None, 3, None), (0, 4, 0)]
)
def test_what_is_left_is_never_negative_and_a_quota_of_zero_leaves_nothing(limit, used, left):
    assert quotas.Left(quotas.Quota("L-1", "n"), limit, used).vcpus == left


def asked(*types: str, market: str = "on-demand", region: str = "eu-central-1"):
    return quotas.left(region, [quota for each in types if (quota := quotas.quota_of(each, market))])


def test_what_runs_is_taken_off_the_quota_of_its_market(proxy, told):
    told.quotas |= {G: 32, SPOT_G: 16}
    ec2 = client("ec2", "eu-central-1")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    made = [
        ec2.run_instances(ImageId=image, InstanceType="g4dn.2xlarge", MinCount=2, MaxCount=2),
        ec2.run_instances(
            ImageId=image, InstanceType="g4dn.xlarge", MinCount=1, MaxCount=1,
            InstanceMarketOptions={"MarketType": "spot"},
        ),
    ]  # fmt: skip
    ids = [each["InstanceId"] for run in made for each in run["Instances"]]
    try:
        found, remarks = asked("g4dn.xlarge", "g5.xlarge")
        assert (found[G].limit, found[G].used, found[G].vcpus, remarks) == (32, 16, 16, ())
        assert asked("g6.xlarge", market="spot")[0][SPOT_G].vcpus == 12
        ec2.terminate_instances(InstanceIds=ids[:2])
        assert asked("g4dn.xlarge")[0][G].vcpus == 32
    finally:
        ec2.terminate_instances(InstanceIds=ids)


def test_a_quota_that_the_account_never_changed_is_the_default(proxy, told):
    told.defaults[P] = 0
    found, remarks = asked("p5.48xlarge")
    assert (found[P].limit, found[P].vcpus, remarks) == (0, 0, ())


def test_a_quota_that_the_region_does_not_have_is_not_known(proxy, told):
    found, remarks = asked("p5.48xlarge")
    assert found[P].vcpus is None
    assert remarks == (f"eu-central-1 has no quota {P} (Running On-Demand P instances).",)


def test_denied_quotas_are_a_remark_that_names_the_permission(proxy, told):
    proxy.fault("GetServiceQuota", status=403, code="AccessDeniedException", times=None)
    found, remarks = asked("p5.48xlarge", "g5.xlarge")
    assert [each.vcpus for each in found.values()] == [None, None]
    assert len(remarks) == 1
    assert "servicequotas:GetServiceQuota" in remarks[0]


def test_a_quota_of_zero_is_known_even_where_what_runs_is_not(proxy, told):
    told.quotas |= {P: 0, G: 8}
    proxy.fault("DescribeInstances", status=403, code="UnauthorizedOperation", times=None)
    found, remarks = asked("p5.48xlarge", "g5.xlarge")
    assert (found[P].vcpus, found[G].vcpus) == (0, None)
    assert "ec2:DescribeInstances" in remarks[0]


def test_one_quota_is_asked_once_however_many_types_count_against_it(proxy, told):
    told.quotas[G] = 8
    before = proxy.requests
    asked("g4dn.xlarge", "g5.xlarge", "g6.xlarge")
    assert proxy.count("GetServiceQuota", since=before) == 1
    assert proxy.count("DescribeInstances", since=before) == 1


def test_no_quota_to_ask_costs_no_call(proxy, told):
    before = proxy.requests
    assert asked("p6-b200.48xlarge", market="spot") == ({}, ())
    assert proxy.requests == before


def test_the_report_has_every_quota_that_trainings_are_rented_under(proxy, told):
    told.quotas |= {each.code: 8 for each in quotas.REPORTED}
    told.quotas[P] = 0
    report, remarks = quotas.report("eu-central-1")
    assert [each.quota for each in report] == list(quotas.REPORTED)
    assert {each.quota.code: each.vcpus for each in report}[P] == 0
    assert remarks == ()


def test_nobody_gets_remarks_and_no_failure(proxy, told, nobody):
    found, remarks = asked("p5.48xlarge")
    assert found[P].vcpus is None
    assert any("there are no AWS credentials" in each for each in remarks)
