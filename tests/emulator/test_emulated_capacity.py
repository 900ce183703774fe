"""No capacity, quotas and prices come in the shapes in which AWS answers them."""

from __future__ import annotations

import json

import pytest
from botocore.exceptions import ClientError
from emulated_cloud import TAGS

from mlinfra_prefect.errors import InvalidInput

G, G_SPOT, STANDARD = "L-DB2E81BA", "L-3819A6DF", "L-1216C47A"


def tags_of(found):
    """Return a described thing's own tags."""
    return {each["Key"]: each["Value"] for each in found if not each["Key"].startswith("aws:")}


def refused(call, **asked):
    """Return the code and HTTP status of a refusal."""
    with pytest.raises(ClientError) as caught:
        call(**asked)
    return caught.value.response["Error"]["Code"], caught.value.response["ResponseMetadata"]["HTTPStatusCode"]


# --- fleets ----------------------------------------------------------------------------------------------------------


def test_a_fleet_takes_the_first_pool_with_capacity_and_tells_of_the_others(aws, cloud):
    """200, one error for each pool that was tried and had none, and nothing of those that weren't tried."""
    aws.no_capacity(zones=["us-east-1a"])
    aws.no_capacity(types=["g5.*"], zones=["us-east-1b"])
    pools = [
        ("g5.xlarge", "us-east-1a"),
        ("g5.xlarge", "us-east-1b"),
        ("g6.xlarge", "us-east-1b"),
        ("g5.xlarge", "us-east-1c"),
    ]
    fleet = cloud.fleet(cloud.template(), pools)
    assert fleet.codes == ["InsufficientInstanceCapacity"] * 2
    said = [each["LaunchTemplateAndOverrides"]["Overrides"] for each in fleet.errors]
    assert [(each["InstanceType"], each["SubnetId"]) for each in said] == [
        ("g5.xlarge", cloud.subnets["us-east-1a"]), ("g5.xlarge", cloud.subnets["us-east-1b"]),
    ]  # fmt: skip
    assert {each["Lifecycle"] for each in fleet.errors} == {"on-demand"}
    assert "us-east-1a" in fleet.errors[0]["ErrorMessage"]
    (found,) = aws.instances
    assert (found.type, found.zone, found.fleet_id) == ("g6.xlarge", "us-east-1b", fleet.id)


@pytest.mark.parametrize(
    ("market", "code"), [("on-demand", "InsufficientInstanceCapacity"), ("spot", "UnfulfillableCapacity")]
)
def test_a_fleet_without_any_capacity_is_there_and_empty(aws, cloud, market, code):
    """Errors, no instances, a fleet that is found by its id only, and can be deleted."""
    aws.no_capacity(markets=[market])
    fleet = cloud.fleet(cloud.template(spot=market == "spot"), market=market)
    assert (fleet.codes, fleet.instances) == ([code], [])
    assert aws.instances == ()
    (found,) = cloud.ec2.describe_fleets(FleetIds=[fleet.id])["Fleets"]
    assert (found["FulfilledCapacity"], found["Instances"]) == (0, [])
    assert [each["ErrorCode"] for each in found["Errors"]] == [code]
    assert cloud.ec2.describe_fleets()["Fleets"] == []
    deleted = cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    assert [each["FleetId"] for each in deleted["SuccessfulFleetDeletions"]] == [fleet.id]


def test_a_fleet_gets_what_there_is(aws, cloud):
    """Two of three wanted: partial capacity is a success with errors."""
    aws.no_capacity(left=2)
    fleet = cloud.fleet(cloud.template(), [("g5.xlarge", "us-east-1a"), ("g5.xlarge", "us-east-1b")], nodes=3)
    assert len(fleet.instances) == 2
    assert fleet.codes == ["InsufficientInstanceCapacity"] * 2
    assert cloud.fleet(cloud.template()).instances == []


def test_a_fleet_with_a_least_capacity_starts_all_of_it_or_nothing(aws, cloud):
    """MinTargetCapacity."""
    aws.no_capacity(left=1)
    least = {"OnDemandOptions": {"MinTargetCapacity": 2, "SingleInstanceType": True}}
    fleet = cloud.fleet(cloud.template(), nodes=2, request=least)
    assert (fleet.instances, aws.instances) == ([], ())


def test_pools_are_tried_by_priority_or_by_price(aws, cloud):
    """Prioritized: as numbered. Lowest price, which is the default: the cheap one first, wherever it stands."""
    dear_first = [("g5.12xlarge", "us-east-1a"), ("g5.xlarge", "us-east-1a")]
    assert cloud.fleet(cloud.template(), dear_first).said["Instances"][0]["InstanceType"] == "g5.12xlarge"
    lowest = {"OnDemandOptions": {"AllocationStrategy": "lowest-price"}}
    assert cloud.fleet(cloud.template(), dear_first, request=lowest).said["Instances"][0]["InstanceType"] == "g5.xlarge"


def test_what_is_wrong_with_a_launch_is_a_fleet_s_error(aws, cloud):
    """No such image, profile or type in that zone, a price too low: each pool says it, the request succeeds."""
    assert cloud.fleet(cloud.template(ImageId="ami-00000000000000000")).codes == ["InvalidAMIID.NotFound"]
    assert cloud.fleet(cloud.template(profile="nobody")).codes == ["InvalidParameterValue"]
    assert cloud.fleet(cloud.template(), [("g5.xlarge", "us-east-1e")]).codes == ["Unsupported"]
    cheap = cloud.fleet(cloud.template(spot=True), market="spot", override={"MaxPrice": "0.01"})
    assert cheap.codes == ["SpotMaxPriceTooLow"]
    assert aws.instances == ()
    assert refused(cloud.fleet, template="lt-0123456789abcdef0")[0].startswith("InvalidLaunchTemplateId")


def test_a_profile_that_is_not_seen_yet_is_refused_in_every_pool(aws, cloud):
    """As in the seconds after it was made; the next launch sees it."""
    cloud.profile("node")
    template = cloud.template(profile="node")
    aws.profile_not_seen(times=1)
    fleet = cloud.fleet(template, [("g5.xlarge", "us-east-1a"), ("g5.xlarge", "us-east-1b")])
    assert fleet.codes == ["InvalidParameterValue"] * 2
    assert "iamInstanceProfile.name" in fleet.errors[0]["ErrorMessage"]
    assert len(cloud.fleet(template).instances) == 1


def test_everything_a_fleet_starts_has_the_template_s_tags(aws, cloud):
    """Instance, volume, interface and spot request: sweeps find them by nothing else."""
    cloud.profile("node")
    fleet = cloud.fleet(
        cloud.template(profile="node", spot=True), market="spot",
        request={"TagSpecifications": [{"ResourceType": "fleet", "Tags": [{"Key": "of", "Value": "the fleet"}]}]},
    )  # fmt: skip
    (instance,) = cloud.ec2.describe_instances()["Reservations"][0]["Instances"]
    assert tags_of(instance["Tags"]) == TAGS
    assert {each["Key"] for each in instance["Tags"] if each["Key"].startswith("aws:")} == {
        "aws:ec2:fleet-id", "aws:ec2launchtemplate:id", "aws:ec2launchtemplate:version",
    }  # fmt: skip
    assert instance["InstanceLifecycle"] == "spot"
    assert instance["IamInstanceProfile"]["Arn"].endswith(":instance-profile/node")
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    (volume,) = cloud.ec2.describe_volumes()["Volumes"]
    assert (tags_of(volume["Tags"]), volume["Size"], volume["Encrypted"]) == (TAGS, 50, True)
    (interface,) = cloud.ec2.describe_network_interfaces()["NetworkInterfaces"]
    assert tags_of(interface["TagSet"]) == TAGS
    (request,) = cloud.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert (tags_of(request["Tags"]), request["InstanceId"], request["State"], request["Type"]) == (
        TAGS, fleet.instances[0], "active", "one-time",
    )  # fmt: skip
    kept = cloud.ec2.describe_instance_attribute(
        InstanceId=fleet.instances[0], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert kept["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    api = cloud.client("resourcegroupstaggingapi")
    filters = [{"Key": "mlinfra-prefect:lease", "Values": ["lease-1"]}]
    kinds = sorted(
        each["ResourceARN"].split(":")[5].split("/")[0]
        for each in api.get_resources(TagFilters=filters)["ResourceTagMappingList"]
    )
    assert kinds == ["instance", "network-interface", "spot-instance-request", "volume"]
    of_fleet = api.get_resources(TagFilters=[{"Key": "of"}])["ResourceTagMappingList"]
    assert [each["ResourceARN"].split("/")[-1] for each in of_fleet] == [fleet.id]
    cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    (request,) = cloud.ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert request["State"] == "closed"


def test_a_fleet_whose_instance_was_ended_before_can_be_deleted(aws, cloud):
    """moto's cannot."""
    fleet = cloud.fleet(cloud.template(), nodes=2)
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances[:1])
    deleted = cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    assert deleted["SuccessfulFleetDeletions"][0]["CurrentFleetState"] == "deleted_terminating"
    assert {each.state for each in aws.instances} == {"terminated"}
    assert cloud.ec2.describe_fleets(FleetIds=[fleet.id])["Fleets"][0]["FleetState"] == "deleted"
    again = cloud.ec2.delete_fleets(FleetIds=[fleet.id], TerminateInstances=True)
    assert again["UnsuccessfulFleetDeletions"] == []


def test_an_instant_fleet_goes_with_its_instances_or_not_at_all(aws, cloud):
    """And one that isn't there is a failure in the answer, not of the request."""
    fleet = cloud.fleet(cloud.template())
    kept = cloud.ec2.delete_fleets(
        FleetIds=[fleet.id, "fleet-00000000-0000-0000-0000-000000000000"], TerminateInstances=False
    )
    assert [each["Error"]["Code"] for each in kept["UnsuccessfulFleetDeletions"]] == [
        "fleetNotInDeletableState", "fleetIdDoesNotExist",
    ]  # fmt: skip
    assert aws.instances[0].state == "running"


def test_a_request_that_is_sent_again_with_its_token_starts_nothing_new(aws, cloud):
    """What the SDK does after an answer that never came: the fleet of the first time is answered."""
    template = cloud.template()
    token = {"ClientToken": "once"}
    aws.drop("CreateFleet", executed=True)
    with pytest.raises(Exception, match=r"(?i)connection"):
        cloud.fleet(template, request=token)
    first = aws.instances[0]
    fleet = cloud.fleet(template, request=token)
    assert (fleet.id, fleet.instances) == (first.fleet_id, [first.id])
    asked = {"ImageId": cloud.image, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1, "ClientToken": "twice"}
    one = cloud.ec2.run_instances(**asked)["Instances"][0]["InstanceId"]
    assert cloud.ec2.run_instances(**asked)["Instances"][0]["InstanceId"] == one
    assert len(aws.instances) == 2


# --- RunInstances ----------------------------------------------------------------------------------------------------


def test_run_instances_is_refused_where_there_is_no_capacity(aws, cloud):
    """In the zone that is asked for, or in all where none is."""
    asked = {"ImageId": cloud.image, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1}
    aws.no_capacity(types=["g5.xlarge"], zones=["us-east-1a"])
    assert refused(cloud.ec2.run_instances, **asked, SubnetId=cloud.subnets["us-east-1a"]) == (
        "InsufficientInstanceCapacity",
        500,
    )
    cloud.ec2.run_instances(**asked)
    aws.no_capacity(types=["g5.xlarge"])
    assert refused(cloud.ec2.run_instances, **asked)[0] == "InsufficientInstanceCapacity"


def test_run_instances_from_a_template_has_all_of_it(aws, cloud):
    """Profile, shutdown behaviour and the tags of volume and interface, which moto leaves out."""
    cloud.profile("node")
    template = cloud.template(profile="node", InstanceType="g5.xlarge", NetworkInterfaces=[])
    said = {"LaunchTemplate": {"LaunchTemplateId": template}, "MinCount": 1, "MaxCount": 1}
    (instance,) = cloud.ec2.run_instances(**said)["Instances"]
    described = cloud.ec2.describe_instances()["Reservations"][0]["Instances"][0]
    assert described["IamInstanceProfile"]["Arn"].endswith("/node")
    kept = cloud.ec2.describe_instance_attribute(
        InstanceId=instance["InstanceId"], Attribute="instanceInitiatedShutdownBehavior"
    )
    assert kept["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
    assert {tuple(sorted(tags_of(each["Tags"]).items())) for each in cloud.ec2.describe_volumes()["Volumes"]} == {
        tuple(sorted(TAGS.items()))
    }
    assert tags_of(cloud.ec2.describe_network_interfaces()["NetworkInterfaces"][0]["TagSet"]) == TAGS
    cloud.ec2.terminate_instances(InstanceIds=[instance["InstanceId"]])
    assert cloud.ec2.describe_network_interfaces()["NetworkInterfaces"] == []


# --- quotas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "market", "error"),
    [(G, "on-demand", "VcpuLimitExceeded"), (G_SPOT, "spot", "MaxSpotInstanceCountExceeded")],
)
def test_a_quota_is_said_and_kept(aws, cloud, code, market, error):
    """8 vCPUs are two g5.xlarge; the third is refused, in a fleet and alone; other quotas are not touched."""
    aws.quota(code, 8)
    quotas = cloud.client("service-quotas")
    assert quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"] == 8
    assert quotas.get_aws_default_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"] == 192
    fleet = cloud.fleet(cloud.template(spot=market == "spot"), market=market, nodes=3)
    assert (len(fleet.instances), fleet.codes) == (2, [error])
    options = {"InstanceMarketOptions": {"MarketType": "spot"}} if market == "spot" else {}
    asked = {"ImageId": cloud.image, "MinCount": 1, "MaxCount": 1, **options}
    assert refused(cloud.ec2.run_instances, InstanceType="g5.xlarge", **asked) == (error, 400)
    cloud.ec2.run_instances(InstanceType="m7i.large", **asked)
    cloud.ec2.terminate_instances(InstanceIds=fleet.instances)
    assert len(cloud.fleet(cloud.template(spot=market == "spot"), market=market).instances) == 1


def test_quotas_are_of_a_region(aws, cloud):
    """Set for one, they hold there only."""
    aws.quota(G, 0, region="us-east-1")
    assert cloud.fleet(cloud.template()).codes == ["VcpuLimitExceeded"]
    there = cloud.client("service-quotas", "eu-central-1")
    assert there.get_service_quota(ServiceCode="ec2", QuotaCode=G)["Quota"]["Value"] == 192
    listed = {
        each["QuotaCode"]: each["Value"]
        for each in cloud.client("service-quotas").list_service_quotas(ServiceCode="ec2")["Quotas"]
    }
    assert listed[G] == 0
    assert {"L-417A185B", "L-7212CCBC", "L-C4BD4855", STANDARD, "L-34B43A08", G_SPOT} < set(listed)


def test_unknown_quotas_are_refused(aws, cloud):
    """By the service as AWS does it, and by the method in a sentence."""
    assert (
        refused(cloud.client("service-quotas").get_service_quota, ServiceCode="ec2", QuotaCode="L-00000000")[0]
        == "NoSuchResourceException"
    )
    with pytest.raises(InvalidInput, match="L-DB2E81BA"):
        aws.quota("L-00000000", 1)


# --- prices and images -----------------------------------------------------------------------------------------------


def test_spot_prices_are_below_on_demand_and_differ_by_zone(cloud):
    """Over the API, page by page, for the types and zones asked for."""
    said = cloud.ec2.describe_spot_price_history(InstanceTypes=["g5.xlarge"], ProductDescriptions=["Linux/UNIX"])[
        "SpotPriceHistory"
    ]
    prices = {each["AvailabilityZone"]: float(each["SpotPrice"]) for each in said}
    assert len(set(prices.values())) > 1
    pricing = cloud.client("pricing")
    wanted = {"instanceType": "g5.xlarge", "regionCode": "us-east-1", "operatingSystem": "Linux"}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    (product,) = (
        json.loads(each) for each in pricing.get_products(ServiceCode="AmazonEC2", Filters=filters)["PriceList"]
    )
    (offer,) = product["terms"]["OnDemand"].values()
    (dimension,) = offer["priceDimensions"].values()
    assert float(dimension["pricePerUnit"]["USD"]) == 1.006
    assert 0 < max(prices.values()) < 1.006
    pages = cloud.ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=["g5.xlarge", "g6.xlarge"], PaginationConfig={"PageSize": 3}
    )
    lines = [
        (each["InstanceType"], each["AvailabilityZone"], each["ProductDescription"])
        for page in pages
        for each in page["SpotPriceHistory"]
    ]
    assert len(lines) == len(set(lines)) > 10


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_public_images_are_found_and_known_to_ec2(cloud, region):
    """By parameter, with the root device that the real image has."""
    ssm, ec2 = cloud.client("ssm", region), cloud.client("ec2", region)
    names = {
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id": "/dev/sda1",
        "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id": "/dev/sda1",
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64": "/dev/xvda",
        "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id": "/dev/sda1",
    }
    found = {each["Name"]: each["Value"] for each in ssm.get_parameters(Names=list(names))["Parameters"]}
    assert set(found) == set(names)
    images = {each["ImageId"]: each for each in ec2.describe_images(ImageIds=list(found.values()))["Images"]}
    assert {name: images[found[name]]["RootDeviceName"] for name in names} == names
