"""The judge of an account finds every leak planted by hand, whoever tagged it, and every decoy that was touched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import boto3
import pytest

from mlinfra_prefect.chaos import judge_account, matrix, matrix_aws
from mlinfra_prefect.chaos.campaign import plans
from mlinfra_prefect.testing.aws import Emulator

REGIONS = ("us-east-1", "eu-west-1")


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as aws:
        yield aws


class Account:
    """One emulated account, asked with Amazon's SDK: what is planted uses none of the judge's code."""

    def __init__(self, aws: Emulator) -> None:
        self.aws = aws

    def client(self, service: str, region: str = "us-east-1") -> Any:
        return boto3.client(
            service, region_name=region, endpoint_url=self.aws.url, aws_access_key_id="test",
            aws_secret_access_key="test",
        )  # fmt: skip

    def survey(self) -> dict[tuple[str, str], judge_account.Thing]:
        return judge_account.survey(self.aws.url, REGIONS)

    def instance(self, region: str = "us-east-1", tags: dict[str, str] | None = None) -> str:
        ec2 = self.client("ec2", region)
        image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
        made = ec2.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)["Instances"][0]
        if tags:
            ec2.create_tags(Resources=[made["InstanceId"]], Tags=[{"Key": k, "Value": v} for k, v in tags.items()])
        return str(made["InstanceId"])


@pytest.fixture
def account(emulator: Emulator) -> Iterator[Account]:
    yield Account(emulator)
    emulator.clear_faults()


def _instance(account: Account) -> str:
    return account.instance("eu-west-1")


def _volume(account: Account) -> str:
    return str(account.client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=1)["VolumeId"])


def _interface(account: Account) -> str:
    ec2 = account.client("ec2")
    subnet = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    return str(ec2.create_network_interface(SubnetId=subnet)["NetworkInterface"]["NetworkInterfaceId"])


def _group(account: Account) -> str:
    name = f"g{time.time_ns()}"
    return str(account.client("ec2").create_security_group(GroupName=name, Description="left")["GroupId"])


def _template(account: Account) -> str:
    made = account.client("ec2").create_launch_template(
        LaunchTemplateName=f"t{time.time_ns()}", LaunchTemplateData={"InstanceType": "t3.micro"}
    )
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def _address(account: Account) -> str:
    return str(account.client("ec2").allocate_address(Domain="vpc")["AllocationId"])


def _role(account: Account) -> str:
    name = f"r{time.time_ns()}"
    account.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}")
    return name


def _lock(account: Account) -> str:
    s3 = account.client("s3")
    bucket = f"b{time.time_ns()}"
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="shared/terraform.tfstate.tflock", Body=b"{}")
    return f"s3://{bucket}/shared/terraform.tfstate.tflock"


@pytest.mark.parametrize("plant", [_instance, _volume, _interface, _group, _template, _address, _role, _lock])
def test_what_is_left_is_found_whether_anybody_tagged_it_or_not(
    account: Account, plant: Callable[[Account], str]
) -> None:
    before = account.survey()
    left = plant(account)
    found = judge_account.compared(before, account.survey())
    assert any(left in each and each.startswith("left in the account") for each in found), found
    assert judge_account.compared(before, before) == []


def test_a_fleet_that_was_not_deleted_is_found_although_ec2_lists_none(account: Account) -> None:
    before, ec2 = account.survey(), account.client("ec2")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    template = ec2.create_launch_template(
        LaunchTemplateName=f"t{time.time_ns()}", LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"}
    )["LaunchTemplate"]["LaunchTemplateId"]
    fleet = ec2.create_fleet(
        Type="instant", TargetCapacitySpecification={"TotalTargetCapacity": 1},
        LaunchTemplateConfigs=[{"LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"}}],
    )["FleetId"]  # fmt: skip
    assert fleet not in str(ec2.describe_fleets())
    assert any(fleet in each for each in judge_account.compared(before, account.survey()))


def test_a_machine_that_describe_calls_do_not_show_is_counted(account: Account) -> None:
    account.aws.late(600.0)
    hidden = account.instance()
    seen = account.client("ec2").describe_instances()["Reservations"]
    assert hidden not in str(seen)
    assert hidden in judge_account.living(account.aws.url)


def test_a_decoy_that_was_ended_or_changed_is_a_finding(account: Account) -> None:
    """Untagged, or another ledger's: gone, stopped, or with another tag, it was not left alone."""
    ec2 = account.client("ec2")
    untagged, another = account.instance(), account.instance(tags={"mlinfra-prefect:ledger": "another"})
    before = account.survey()
    ec2.terminate_instances(InstanceIds=[untagged])
    ec2.create_tags(Resources=[another], Tags=[{"Key": "mlinfra-prefect:lease", "Value": "l0-1"}])
    found = judge_account.compared(before, account.survey())
    assert any(untagged in each and "it is gone" in each for each in found)
    assert any(another in each and "it was changed" in each for each in found)


def test_a_secret_in_a_bucket_is_found_and_an_older_object_is_not_looked_at(account: Account) -> None:
    s3, bucket = account.client("s3"), f"b{time.time_ns()}"
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="nodes/a/in/jobs/j.json", Body=json.dumps({"env": "canary-1"}).encode())
    url = account.aws.url
    assert judge_account.told(url, "canary-1", time.time() - 60) == [f"secret in s3://{bucket}/nodes/a/in/jobs/j.json"]
    assert judge_account.told(url, "canary-2", time.time() - 60) == []
    assert judge_account.told(url, "canary-1", time.time() + 60) == []


def test_an_account_that_does_not_answer_is_not_an_empty_one(account: Account) -> None:
    account.aws.fail("DescribeVolumes", times=None)
    with pytest.raises(judge_account.Blind, match="500"):
        account.survey()


# --- the rows ---------------------------------------------------------------------------------------------------------


def test_the_rows_of_the_cloud_are_decided_by_the_seed_and_survive_json() -> None:
    assert {row.name for row in matrix_aws.ROWS}.isdisjoint({row.name for row in matrix.ROWS})
    for row in matrix_aws.ROWS:
        plan = row.plan(3, 4)
        assert row.plan(3, 4) == plan
        assert json.loads(json.dumps(plan.told()))["row"] == row.name
        assert plan.read(json.loads(json.dumps(plan.told()))).strikes == plan.strikes
        assert (row.platform, row.on != "terraform_data") == ("aws", True)


def test_at_least_half_of_all_strikes_on_the_cloud_come_at_random_moments() -> None:
    chosen = plans(matrix_aws.ROWS, 1)
    drawn = [next(chosen)[1] for _ in range(600)]
    assert sum(plan.random for plan in drawn) >= 300
    assert {plan.row for plan in drawn} == {row.name for row in matrix_aws.ROWS}


def test_a_cloud_promises_its_own_teardown_and_a_deadline_only_where_an_operation_may_hang() -> None:
    promises = {row.name: row.promise for row in matrix_aws.ROWS}
    local = {row.name: row.promise for row in matrix.ROWS}
    assert local["client-killed"] < promises["aws-client-killed"] < promises["aws-everything"] < 200
    assert promises["aws-launch-refused"] == promises["aws-no-capacity"] + 900


def test_some_of_the_never_ending_faults_hit_one_thing_and_others_all() -> None:
    """One thing that cannot be ended must not keep the machine alive: the row knows which it is."""
    by_name = {row.name: row for row in matrix_aws.ROWS}
    for seed in range(5):
        chance = Random(seed)
        assert by_name["aws-one-stays"].options(chance)["alone"] is True
        assert by_name["aws-never-ends"].options(chance)["alone"] is False
