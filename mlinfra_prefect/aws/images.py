"""What a node boots: the current public image with driver and toolkit, or the one that a request names.

AWS and Canonical publish the newest id of each image as a parameter, so no id is written down here to grow old. An
image that cannot boot our machines, or that is plainly without a driver, is refused before anything is paid for; one
that does not say what it holds is let through, and the acceptance test on the node finds out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from mlinfra_prefect.aws.sdk import client, code_of, refused
from mlinfra_prefect.errors import InvalidInput, MlinfraError, PermanentError

_DEEP_LEARNING: Final = "/aws/service/deeplearning/ami/x86_64/{}/latest/ami-id"
PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    # All on Ubuntu 24.04, whose Python is `PYTHON`; that of Ubuntu 22.04 is 3.10, too old for the agent.
    "gpu": (
        _DEEP_LEARNING.format("base-oss-nvidia-driver-gpu-ubuntu-24.04"),
        _DEEP_LEARNING.format("base-with-single-cuda-ubuntu-24.04"),
    ),
    "cpu": ("/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id",),
}
"""The public parameters that hold the current image of a region, first choice first."""
PYTHON: Final = "3.12"
"""The minor version that the agent, and with it a training, finds on each of them (boot.sh takes the newest)."""
NO_SUCH: Final = frozenset({"InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable"})
_HAS_DRIVER = re.compile(r"nvidia|cuda|gpu|deep.?learning|dlami|tensorrt|pytorch|tensorflow", re.IGNORECASE)
_STOCK = re.compile(
    r"^(ubuntu(-\w+)?/images|al20\d\d-ami-|amzn2?-ami-|debian-\d|RHEL-|suse-|CentOS|Fedora)", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Image:
    """A machine image that can be booted."""

    id: str
    root_device: str
    """Such as ``/dev/sda1``."""
    name: str
    disk_gib: int = 0
    """The least that a root disk must have for it."""
    remark: str = ""
    """What could not be seen; empty: nothing."""


def lookup_image(region: str, kind: Literal["gpu", "cpu"], ami: str | None = None) -> Image:
    """Return the image that a node of a region boots: two calls, nothing is remembered, so it is the current one.

    Args:
        region: of AWS; ids of images differ from region to region.
        kind: whether the node has GPUs.
        ami: what the request names; None: the default image of that kind.

    Raises:
        InvalidInput: the named image is not there, cannot boot an x86-64 machine, or is plainly without a driver.
        PermanentError: the region has no default image, or a permission is missing (``ssm:GetParameter``,
            ``ec2:DescribeImages``).
        TemporaryError: AWS throttles or is not reached.
    """
    image_id = ami or _default(region, kind)
    try:
        told = client("ec2", region).describe_images(ImageIds=[image_id])["Images"]
    except Exception as error:
        if ami and code_of(error)[0] in NO_SUCH:
            raise _unusable(ami, f"is not in {region}, or not shared with this account") from error
        raise refused(error, f"looking at the image {image_id} of {region}") from error
    if not told:
        raise _unusable(image_id, f"is not in {region}, or not shared with this account")
    return read_image(told[0], kind, named=ami is not None)


def read_image(told: Mapping[str, Any], kind: Literal["gpu", "cpu"], *, named: bool) -> Image:
    """Read one of `DescribeImages`, and refuse what cannot serve. Pure.

    Args:
        told: the image.
        kind: of the node.
        named: whether the request named it; the default image is trusted to have what it is published for.

    Raises:
        InvalidInput: it cannot.
    """
    image_id, name = str(told["ImageId"]), str(told.get("Name") or told["ImageId"])
    problem = _problem(told)
    if problem:
        raise _unusable(image_id, problem)
    remark = ""
    if kind == "gpu" and named:
        tags = " ".join(f"{tag.get('Key')}={tag.get('Value')}" for tag in told.get("Tags") or ())
        if not _HAS_DRIVER.search(f"{name} {told.get('Description') or ''} {tags}"):
            if _STOCK.match(name):
                raise _unusable(image_id, f"({name}) has no NVIDIA driver, and the request asks for GPUs")
            remark = (
                f"Nothing in the name, description or tags of {image_id} says that it has an NVIDIA driver; "
                "the acceptance test on the node will tell."
            )
    root = str(told["RootDeviceName"])
    sizes = [
        int(mapping["Ebs"].get("VolumeSize") or 0)
        for mapping in told.get("BlockDeviceMappings") or ()
        if mapping.get("DeviceName") == root and mapping.get("Ebs")
    ]
    return Image(id=image_id, root_device=root, name=name, disk_gib=max(sizes, default=0), remark=remark)


def _problem(told: Mapping[str, Any]) -> str:
    """Say why an image cannot boot one of our machines; empty: it can."""
    if told.get("State") != "available":
        return f"is {told.get('State') or 'in an unknown state'}, not available"
    if told.get("Architecture") != "x86_64":
        return f"is for {told.get('Architecture')}, and only x86_64 machines are rented"
    if "windows" in f"{told.get('Platform') or ''} {told.get('PlatformDetails') or ''}".lower():
        return "is Windows, and nodes run Linux"
    if told.get("RootDeviceType") != "ebs" or not told.get("RootDeviceName"):
        return "has no EBS root disk"
    if told.get("VirtualizationType", "hvm") != "hvm":
        return f"needs {told['VirtualizationType']} virtualisation, which no current machine has"
    return ""


def _default(region: str, kind: Literal["gpu", "cpu"]) -> str:
    problem: MlinfraError | None = None
    for parameter in PARAMETERS[kind]:
        doing = f"looking up the current image of {region} (ssm:GetParameter)"
        try:
            return str(client("ssm", region).get_parameter(Name=parameter)["Parameter"]["Value"])
        except Exception as error:
            if code_of(error)[0] != "ParameterNotFound":
                raise refused(error, doing) from error
            problem = PermanentError(
                f"{region} publishes no default image for {kind} machines ({parameter} is not there).",
                "Name an image of that region with ami=, or take another region.",
            )
    assert problem is not None
    raise problem


def _unusable(ami: str, why: str) -> InvalidInput:
    return InvalidInput(
        "ami", f"{ami} {why}", "Name another image of that region, or none: one with driver and toolkit is found."
    )
