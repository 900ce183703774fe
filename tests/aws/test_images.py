"""What a node boots is looked at before anything is paid for."""

from __future__ import annotations

import pytest
from aws_facts import nobody, proxy, served, told

from mlinfra_prefect.aws.images import PARAMETERS, Image, lookup_image, read_image
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.errors import InvalidInput, PermanentError, TemporaryError

__all__ = ["nobody", "proxy", "served", "told"]  # fixtures

REGION = "eu-central-1"


def image(**changed: object) -> dict[str, object]:
    """An image as `DescribeImages` tells it."""
    return {
        "ImageId": "ami-0abcdef1234567890", "Name": "acme-trainer-7", "State": "available", "Architecture": "x86_64",
        "RootDeviceType": "ebs", "RootDeviceName": "/dev/sda1", "VirtualizationType": "hvm",
        "PlatformDetails": "Linux/UNIX",
        "BlockDeviceMappings": [
            {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 75, "VolumeType": "gp3"}},
            {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"},
            {"DeviceName": "/dev/sdc", "Ebs": {"VolumeSize": 500}},
        ],
        **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"State": "pending"}, "is pending"),
        ({"Architecture": "arm64"}, "is for arm64"),
        ({"Platform": "windows"}, "is Windows"),
        ({"PlatformDetails": "Windows with SQL Server"}, "is Windows"),
        ({"RootDeviceType": "instance-store"}, "no EBS root disk"),
        ({"VirtualizationType": "paravirtual"}, "paravirtual"),
        ({"Name": "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261101"}, "no NVIDIA driver"),
        ({"Name": "al2023-ami-2023.9.20261101.0-kernel-6.1-x86_64"}, "no NVIDIA driver"),
    ],
)
def test_an_image_that_cannot_serve_is_refused_with_the_reason(changed, says):
    with pytest.raises(InvalidInput, match=says) as caught:
        read_image(image(**changed), "gpu", named=True)
    assert caught.value.field == "ami"


@pytest.mark.parametrize(
    "changed",
    [
        {"Name": "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu 24.04) 20261101"},
        {"Name": "ubuntu/images/hvm-ssd-gp3/ubuntu-noble", "Description": "with CUDA 13"},
        {"Tags": [{"Key": "driver", "Value": "nvidia-595"}]},
    ],
)
def test_an_image_that_says_it_has_a_driver_is_believed(changed):
    assert read_image(image(**changed), "gpu", named=True).remark == ""


def test_an_image_that_does_not_say_is_let_through_with_a_remark():
    found = read_image(image(), "gpu", named=True)
    assert "acceptance test" in found.remark
    assert found == Image("ami-0abcdef1234567890", "/dev/sda1", "acme-trainer-7", 75, found.remark)


def test_a_machine_without_gpus_needs_no_driver():
    stock = image(Name="ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-20261101")
    assert read_image(stock, "cpu", named=True).remark == ""


@pytest.fixture
def there(proxy, told) -> str:
    """The id of a Linux image that the region has."""
    found = client("ec2", REGION).describe_images(Owners=["amazon"])["Images"]
    return next(
        each["ImageId"]
        for each in found
        if each["Architecture"] == "x86_64" and each["RootDeviceType"] == "ebs" and not each.get("Platform")
    )


@pytest.mark.parametrize("kind", ["gpu", "cpu"])
def test_the_default_image_is_what_the_public_parameter_says_now(there, told, kind):
    told.parameters[PARAMETERS[kind][0]] = there
    found = lookup_image(REGION, kind)
    assert (found.id, found.remark) == (there, "")
    assert found.root_device.startswith("/dev/")
    assert found.name


def test_the_second_choice_is_taken_where_the_first_is_not_published(there, told):
    told.parameters[PARAMETERS["gpu"][1]] = there
    assert lookup_image(REGION, "gpu").id == there


def test_a_region_without_a_default_image_says_to_name_one(proxy, told):
    with pytest.raises(PermanentError, match="ami="):
        lookup_image(REGION, "gpu")


def test_a_named_image_is_looked_at_and_no_parameter_is_asked(there, proxy):
    before = proxy.requests
    assert lookup_image(REGION, "cpu", there).id == there
    assert proxy.count("GetParameter", since=before) == 0


def test_a_named_image_of_another_region_is_refused(proxy, told):
    with pytest.raises(InvalidInput, match=f"is not in {REGION}"):
        lookup_image(REGION, "gpu", "ami-0abcdef1234567890")


@pytest.mark.parametrize(
    ("operation", "code", "kind", "says"),
    [
        ("GetParameter", "AccessDeniedException", PermanentError, "ssm:GetParameter"),
        ("DescribeImages", "UnauthorizedOperation", PermanentError, "ec2:DescribeImages"),
        ("GetParameter", "ThrottlingException", TemporaryError, "throttles"),
    ],
)
def test_a_refusal_while_looking_is_said(there, told, proxy, operation, code, kind, says):
    told.parameters[PARAMETERS["gpu"][0]] = there
    proxy.fault(operation, status=400, code=code, times=None)
    with pytest.raises(kind, match=says):
        lookup_image(REGION, "gpu")


def test_nobody_is_told_to_log_in(proxy, told, nobody):
    with pytest.raises(PermanentError, match="there are no AWS credentials"):
        lookup_image(REGION, "gpu")
