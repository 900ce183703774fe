"""An emulated AWS behaves badly in the ways that a test asks for, from this process or from another one."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request

import pytest
from botocore.exceptions import ClientError, ConnectionError as NoConnection, HTTPClientError

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.testing.aws import Emulator


def code_of(call, **asked):
    """Return an error's code and status."""
    with pytest.raises(ClientError) as caught:
        call(**asked)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


def control(aws, path, body=None):
    """Ask the emulator's own endpoint."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{aws.url}/_emulator/{path}", data=data)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {"status": error.code, **json.load(error)}


def test_throttling_is_said_as_each_service_says_it(aws, cloud):
    """So often, and then no more."""
    aws.throttle("DescribeInstances", times=2)
    aws.throttle("GetServiceQuota", service="servicequotas", times=1)
    assert [code_of(cloud.ec2.describe_instances) for _ in range(2)] == [("RequestLimitExceeded", 503)] * 2
    cloud.ec2.describe_instances()
    asked = {"ServiceCode": "ec2", "QuotaCode": "L-DB2E81BA"}
    assert code_of(cloud.client("service-quotas").get_service_quota, **asked) == ("ThrottlingException", 400)


def test_an_error_can_come_before_or_after_the_work_was_done(aws, cloud):
    """Both are 500 to whoever asked."""
    template = cloud.template()
    aws.fail("CreateFleet", status=500)
    assert code_of(cloud.fleet, template=template) == ("InternalError", 500)
    assert aws.instances == ()
    aws.fail("CreateFleet", status=500, executed=True)
    assert code_of(cloud.fleet, template=template) == ("InternalError", 500)
    assert len(aws.instances) == 1


def test_an_answer_can_be_lost_before_or_after_the_work_was_done(aws, cloud):
    """The connection is closed."""
    fleet = cloud.fleet(cloud.template(), nodes=2)
    for executed, live in ((False, 2), (True, 1)):
        aws.drop("TerminateInstances", executed=executed)
        with pytest.raises((NoConnection, HTTPClientError)):
            cloud.ec2.terminate_instances(InstanceIds=fleet.instances[:1])
        assert [each.state for each in aws.instances].count("running") == live


def test_a_slow_operation_slows_no_other(aws, cloud):
    """Latency is of the request, not of the service."""
    aws.slow("DescribeVpcs", after=3600)
    asking = threading.Thread(target=cloud.ec2.describe_vpcs)
    asking.start()
    aws.proxy.wait_for("DescribeVpcs", "executed")
    cloud.ec2.describe_instances()
    assert aws.proxy.count("DescribeVpcs", "answered") == 0
    aws.proxy.close()  # ends what is delayed
    asking.join()
    assert aws.proxy.count("DescribeVpcs", "answered") == 1


@pytest.mark.parametrize("by", ["instances", "fleet"])
def test_a_terminate_can_lie(aws, cloud, script, by):
    """It answers as if, and the instance with its processes stays until one is told the truth."""
    fleet = cloud.fleet(cloud.template(script("sleep 300")))
    other = cloud.fleet(cloud.template())
    aws.settle()
    aws.terminate_lies(times=1, instances=fleet.instances)

    def end():
        if by == "fleet":
            said = cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
            return said["SuccessfulFleetDeletions"][0]["CurrentFleetState"]
        said = cloud.ec2.terminate_instances(InstanceIds=fleet.instances)
        return said["TerminatingInstances"][0]["CurrentState"]["Name"]

    cloud.ec2.terminate_instances(InstanceIds=other.instances)
    ending = {"fleet": "deleted_terminating", "instances": "shutting-down"}[by]
    assert end() == ending
    aws.settle()
    assert aws.instances[0].state == "running"
    assert aws.instances[0].pids
    assert end() == ending
    aws.settle()
    assert [each.state for each in aws.instances] == ["terminated"] * 2


def test_instances_and_their_tags_can_appear_late(aws, cloud, script):
    """They run all the while; describing one by id is an error, as it is on EC2."""
    aws.late(3600)
    fleet = cloud.fleet(cloud.template(script("sleep 300")))
    api = cloud.client("resourcegroupstaggingapi")
    filters = [{"Key": "mlinfra-prefect:lease", "Values": ["lease-1"]}]
    tagged = [{"Name": "tag:mlinfra-prefect:lease", "Values": ["lease-1"]}]
    aws.settle()
    assert aws.instances[0].pids
    assert cloud.ec2.describe_instances()["Reservations"] == []
    assert code_of(cloud.ec2.describe_instances, InstanceIds=fleet.instances)[0] == "InvalidInstanceID.NotFound"
    assert cloud.ec2.describe_tags()["Tags"] == []
    assert cloud.ec2.describe_volumes(Filters=tagged)["Volumes"] == []
    assert api.get_resources(TagFilters=filters)["ResourceTagMappingList"] == []
    aws.late(0)
    assert (
        cloud.ec2.describe_instances(Filters=tagged)["Reservations"][0]["Instances"][0]["InstanceId"]
        == fleet.instances[0]
    )
    assert len(cloud.ec2.describe_volumes(Filters=tagged)["Volumes"]) == 1
    assert len(api.get_resources(TagFilters=filters)["ResourceTagMappingList"]) == 3
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances)


def test_faults_end_together(aws, cloud):
    """`clear_faults`: those of the service, and those of the way to it."""
    aws.no_capacity()
    aws.quota("L-DB2E81BA", 0)
    aws.late(3600)
    aws.terminate_lies()
    aws.profile_not_seen(times=5)
    aws.throttle("*", times=None)
    aws.clear_faults()
    cloud.profile("node")
    fleet = cloud.fleet(cloud.template(profile="node"))
    assert len(cloud.ec2.describe_instances()["Reservations"]) == 1
    cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    assert aws.instances[0].state == "terminated"


def test_regions_are_apart_and_all_are_seen(aws, cloud):
    """A fault names its regions; the view has the instances of every one."""
    aws.no_capacity(regions=["us-*"])
    there = cloud.client("ec2", "eu-central-1")
    image = cloud.client("ssm", "eu-central-1").get_parameter(
        Name="/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    )["Parameter"]["Value"]
    there.run_instances(ImageId=image, InstanceType="m7i.large", MinCount=1, MaxCount=1)
    assert cloud.fleet(cloud.template()).instances == []
    assert [(each.region, each.zone) for each in aws.instances] == [("eu-central-1", "eu-central-1a")]
    assert cloud.ec2.describe_instances()["Reservations"] == []


# --- from another process --------------------------------------------------------------------------------------------


def test_another_process_sets_faults_and_sees_the_machines(aws, cloud, script):
    """Over the control endpoint, by the same names."""
    assert control(aws, "faults", {"fault": "no_capacity", "types": ["g5.*"], "left": 1}) == {"done": True}
    pools = [("g5.xlarge", "us-east-1a")]
    cloud.fleet(cloud.template(script("echo hello; sleep 300")), pools)
    assert cloud.fleet(cloud.template(), pools).codes == ["InsufficientInstanceCapacity"]
    assert control(aws, "settle", {}) == {"done": True}
    (shown,) = control(aws, "instances")
    assert (shown["state"], shown["user_data"], shown["type"]) == ("running", "run", "g5.xlarge")
    assert shown["pids"]
    told = control(aws, "log")
    assert "CreateFleet" in {each["operation"] for each in told["requests"]}
    assert "started" in {each["kind"] for each in told["machines"]}
    last = max(each["request"] for each in told["requests"])
    assert control(aws, f"log?since={last}")["requests"] == []
    assert control(aws, "faults", {"fault": "clear_faults"}) == {"done": True}
    assert len(cloud.fleet(cloud.template(), pools).instances) == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("faults", {"fault": "__exit__"}, 400, "no fault"),
        ("faults", {"fault": "late", "minutes": 1}, 400, "minutes"),
        ("faults", {"fault": "quota", "code": "L-1", "value": 0}, 400, "no quota"),
        ("faults", ["late"], 400, "object"),
        ("nothing", None, 404, "no such path"),
    ],
)
def test_what_the_control_endpoint_does_not_know_is_refused_in_a_sentence(aws, path, body, status, text):
    """And nothing else is reached through it."""
    said = control(aws, path, body)
    assert said["status"] == status
    assert text in said["error"]


def test_faults_by_name_are_the_methods_that_are_listed(aws):
    """No other attribute can be called by name."""
    with pytest.raises(InvalidInput, match="no_capacity"):
        aws.apply_fault("settle", {})


# --- the emulator itself ---------------------------------------------------------------------------------------------


def test_two_emulators_in_one_process_do_not_see_each_other(aws, cloud):
    """Accounts of their own; what one held is gone with it, names of buckets included."""
    from emulated_cloud import Cloud

    with Emulator() as other:
        there = Cloud(other)
        there.fleet(there.template())
        there.client("s3").create_bucket(Bucket="the-same-name")
        assert aws.instances == ()
        assert other.account != aws.account
        assert there.client("sts").get_caller_identity()["Account"] == other.account
    cloud.client("s3").create_bucket(Bucket="the-same-name")


def test_a_port_can_be_chosen_and_a_taken_one_is_an_error(aws):
    """And an error leaves nothing behind."""
    with pytest.raises(OSError, match="in use"):
        Emulator(port=int(aws.url.rpartition(":")[2]))
