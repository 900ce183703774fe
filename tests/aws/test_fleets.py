"""What became of a fleet: the machines that exist, and each error of AWS as one decision."""

from __future__ import annotations

from datetime import UTC, datetime

import boto3
import pytest
from aws_account import REGION, account, server, tagged
from botocore.stub import Stubber

from mlinfra_prefect.aws import fleets
from mlinfra_prefect.aws.fleets import FleetError
from mlinfra_prefect.errors import CapacityUnavailable, PermanentError, QuotaExceeded, TemporaryError

__all__ = ["account", "server"]  # fixtures


def error(code: str, message: str = "", *, zone: str = "us-east-1a", kind: str = "p4d.24xlarge") -> FleetError:
    return FleetError(kind, zone, "on-demand", code, message)


# --- what exists ------------------------------------------------------------------------------------------------------


def test_success_is_what_exists(account):
    """Two calls: the fleet, and its instances as EC2 has them now."""
    fleet, instances = account.fleet(tagged(), count=2)
    found, calls = account.counted(lambda: fleets.outcome(account.clients, REGION, fleet, instances[:1]))
    assert calls == ["DescribeFleets", "DescribeInstances"]
    assert {each.id for each in found.instances} == set(instances)
    one = found.instances[0]
    assert (one.type, one.zone, one.market, one.state) == ("m5.large", "us-east-1a", "on-demand", "running")
    assert abs((datetime.now(UTC) - one.launched_at).total_seconds()) < 600
    assert found.errors == found.missing == ()


def test_a_spot_machine_says_so(account):
    """The price is another."""
    fleet, _ = account.fleet(tagged(), market="spot")
    assert fleets.outcome(account.clients, REGION, fleet).instances[0].market == "spot"


def test_what_ended_or_was_never_seen_is_missing(account):
    """An id that EC2 does not show yet, or shows as ended, is no machine and no error."""
    fleet, instances = account.fleet(tagged(), count=2)
    account.clients("ec2", REGION).terminate_instances(InstanceIds=[instances[0]])
    unknown = "i-0123456789abcdef0"
    found = fleets.outcome(account.clients, REGION, fleet, [instances[0], unknown])
    assert [each.id for each in found.instances] == [instances[1]]
    assert set(found.missing) == {unknown, instances[0]}
    assert not fleets.alive(account.clients, REGION, instances[0])
    assert not fleets.alive(account.clients, REGION, unknown)
    assert fleets.alive(account.clients, REGION, instances[1])


def test_without_a_fleet_there_is_nothing(account):
    """An apply that failed before its fleet: nothing is asked for nothing."""
    found, calls = account.counted(lambda: fleets.outcome(account.clients, REGION, None))
    assert found == fleets.Outcome()
    assert calls == []


def test_who_cannot_ask_says_what_is_missing(account):
    """A denial names the permission; throttling may be tried again."""
    account.server.proxy.fault("DescribeFleets", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(PermanentError, match="ec2:DescribeFleets"):
        fleets.outcome(account.clients, REGION, "fleet-1")
    account.server.proxy.fault("DescribeInstances", status=503, code="RequestLimitExceeded", times=None)
    with pytest.raises(TemporaryError):
        fleets.alive(account.clients, REGION, "i-0a")


def test_the_errors_of_an_empty_fleet_are_read_as_aws_writes_them():
    """Checked against the SDK's model of EC2; a pool that names its subnet only gets its zone from us."""
    client = boto3.session.Session().client(
        "ec2", region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    pool = {"InstanceType": "p4d.24xlarge"}
    message = "We currently do not have sufficient p4d.24xlarge capacity in the Availability Zone you requested."
    rows = [
        {"LaunchTemplateAndOverrides": {"Overrides": pool | {"AvailabilityZone": "us-east-1a"}}, "Lifecycle": "spot",
         "ErrorCode": "InsufficientInstanceCapacity", "ErrorMessage": message},
        {"LaunchTemplateAndOverrides": {"Overrides": pool | {"SubnetId": "subnet-b"}},
         "ErrorCode": "UnfulfillableCapacity"},
        {"ErrorCode": "VcpuLimitExceeded"},
    ]  # fmt: skip
    with Stubber(client) as stub:
        stub.add_response(
            "describe_fleets", {"Fleets": [{"FleetId": "fleet-1", "Errors": rows, "Instances": []}]},
            {"FleetIds": ["fleet-1"]},
        )  # fmt: skip
        found = fleets.outcome(lambda *_: client, REGION, "fleet-1", zones={"subnet-b": "us-east-1b"})
    assert found.instances == ()
    assert found.errors == (
        FleetError("p4d.24xlarge", "us-east-1a", "spot", "InsufficientInstanceCapacity", message),
        FleetError("p4d.24xlarge", "us-east-1b", "", "UnfulfillableCapacity", ""),
        FleetError("", "", "", "VcpuLimitExceeded", ""),
    )
    assert isinstance(fleets.decision(found.errors), CapacityUnavailable)


# --- what follows -----------------------------------------------------------------------------------------------------

PROFILE = "Value (mlinfra-dev) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
ZONE = "Your requested instance type (p4d.24xlarge) is not supported in your requested Availability Zone (us-east-1e)."
LINKED = "AuthFailure.ServiceLinkedRoleCreationNotPermitted"


@pytest.mark.parametrize(
    ("code", "message", "kind", "says"),
    [
        ("InsufficientInstanceCapacity", "", CapacityUnavailable, "p4d.24xlarge in us-east-1a"),
        ("UnfulfillableCapacity", "", CapacityUnavailable, "next offer"),
        ("SpotMaxPriceTooLow", "", CapacityUnavailable, "SpotMaxPriceTooLow"),
        ("Unsupported", ZONE, CapacityUnavailable, "Unsupported"),
        ("InvalidFleetConfiguration", ZONE, CapacityUnavailable, "next offer"),
        ("InsufficientReservedInstanceCapacity", "", CapacityUnavailable, "next offer"),
        ("InsufficientFreeAddressesInSubnet", "", CapacityUnavailable, "next offer"),
        ("NameOfNextYear", "", CapacityUnavailable, "NameOfNextYear"),
        ("VcpuLimitExceeded", "", QuotaExceeded, "Service Quotas"),
        ("MaxSpotInstanceCountExceeded", "", QuotaExceeded, "Service Quotas"),
        ("InstanceLimitExceeded", "", QuotaExceeded, "Service Quotas"),
        ("VolumeLimitExceeded", "", QuotaExceeded, "Service Quotas"),
        ("InvalidParameterValue", PROFILE, TemporaryError, "tried again"),
        ("RequestLimitExceeded", "", TemporaryError, "tried again"),
        ("InternalError", "", TemporaryError, "tried again"),
        ("UnauthorizedOperation", "You may not perform: iam:PassRole on x", PermanentError, "Allow iam:PassRole"),
        ("UnauthorizedOperation", "You may not.", PermanentError, "ec2:RunInstances"),
        ("InvalidAMIID.NotFound", "The image id '[ami-1]' does not exist", PermanentError, "ami="),
        ("InvalidLaunchTemplateId.NotFound", "", PermanentError, "launch template"),
        ("InvalidSubnetID.NotFound", "", PermanentError, "init aws"),
        ("InvalidParameterValue", "The volume size is invalid", PermanentError, "volume size"),
        ("AuthFailure", "AWS was not able to validate the credentials", PermanentError, "Log in"),
        (LINKED, "", PermanentError, "create-service-linked-role"),
        ("OptInRequired", "", PermanentError, "Subscribe"),
    ],
)
def test_each_code_is_one_decision(code, message, kind, says):
    """Next offer, quota, the same again, or stop with the remedy: no caller reads a code."""
    decided = fleets.decision([error(code, message)])
    assert type(decided) is kind
    assert says in str(decided)
    assert code in decided.message or kind is QuotaExceeded
    assert decided.remedy.endswith(".")


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        ((), CapacityUnavailable),
        (("InvalidAMIID.NotFound", "InvalidAMIID.NotFound"), PermanentError),
        (("UnauthorizedOperation", "InvalidAMIID.NotFound"), PermanentError),
        (("InvalidAMIID.NotFound", "InsufficientInstanceCapacity"), CapacityUnavailable),
        (("VcpuLimitExceeded", "InsufficientInstanceCapacity"), CapacityUnavailable),
        (("VcpuLimitExceeded", "InvalidAMIID.NotFound"), QuotaExceeded),
        (("VcpuLimitExceeded", "InternalError"), TemporaryError),
        (("InternalError", "InsufficientInstanceCapacity"), CapacityUnavailable),
    ],
)
def test_what_stops_for_good_wins_only_where_every_pool_says_so(codes, kind):
    """One wrong pool among many must not stop the ladder; many without capacity must not hide a denial of all."""
    said = [error(code, zone=f"us-east-1{zone}") for code, zone in zip(codes, "abc", strict=False)]
    assert type(fleets.decision(said)) is kind


def test_many_errors_are_one_line():
    """A fleet over 40 pools says the same 40 times."""
    said = [error("InsufficientInstanceCapacity", "x" * 5000, zone=f"zone-{number}") for number in range(40)]
    text = str(fleets.decision(said))
    assert "and 32 more" in text
    assert len(text) < 900
    assert "\n" not in text


def test_pools_that_met_the_same_are_named_together():
    """Types by the zones in which they met it; another code, zone or market stands apart."""
    said = [
        FleetError(type_, f"us-east-1{zone}", "spot", code, "")
        for type_, zones, code in (
            ("g6.xlarge", "ab", "UnfulfillableCapacity"), ("g6.2xlarge", "ba", "UnfulfillableCapacity"),
            ("g6.4xlarge", "c", "UnfulfillableCapacity"), ("g6.xlarge", "c", "VcpuLimitExceeded"),
        )
        for zone in zones
    ]  # fmt: skip
    assert fleets.decision(said).message == (
        "AWS has no machine to give: g6.xlarge, g6.2xlarge in us-east-1a, us-east-1b (spot): UnfulfillableCapacity, "
        "g6.4xlarge in us-east-1c (spot): UnfulfillableCapacity, g6.xlarge in us-east-1c (spot): VcpuLimitExceeded."
    )


DIAGNOSTIC = (
    "creating EC2 Fleet: operation error EC2: CreateFleet, https response error StatusCode: 403, RequestID: 1-2, "
    "api error UnauthorizedOperation: You are not authorized to perform this operation. User: arn:aws:iam::1:user/a is "
    "not authorized to perform: ec2:CreateFleet on resource: arn:aws:ec2:us-east-1:1:fleet/*"
)


def test_a_refused_call_is_read_from_the_providers_diagnostic():
    """The whole call can be refused: then Terraform has the error, and there is no fleet to ask."""
    (one,) = fleets.told(DIAGNOSTIC)
    assert one.code == "UnauthorizedOperation"
    decided = fleets.decision([one])
    assert isinstance(decided, PermanentError)
    assert decided.remedy == "Allow ec2:CreateFleet to these credentials."
    assert fleets.told("Error: Invalid value for variable") == ()
