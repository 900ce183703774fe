"""The machine images that AWS names by public SSM parameters, in every region, and that moto does not have.

Each is an image that EC2 of the emulator knows, with the root device that the real one has; those called Nvidia have a
driver, the others none, and so it is with ``nvidia-smi`` on the machines made from them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_MADE = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PublicImage:
    """One image, and the parameter that leads to it in each region."""

    parameter: str
    name: str
    owner: str
    root_device: str

    def id(self, region: str) -> str:
        """Its id in a region: always the same. Pure."""
        return f"ami-{hashlib.sha256(f'{region} {self.name}'.encode()).hexdigest()[:17]}"


def _deep_learning(system: str, version: str) -> PublicImage:
    place = f"/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-{system}/latest/ami-id"
    device = "/dev/xvda" if system.startswith("amazon") else "/dev/sda1"
    return PublicImage(
        place, f"Deep Learning Base OSS Nvidia Driver GPU AMI ({version}) 20261101", "898082745236", device
    )


def _ubuntu(release: str, codename: str) -> PublicImage:
    place = f"/aws/service/canonical/ubuntu/server/{release}/stable/current/amd64/hvm/ebs-gp3/ami-id"
    name = f"ubuntu/images/hvm-ssd-gp3/ubuntu-{codename}-{release}-amd64-server-20261101"
    return PublicImage(place, name, "099720109477", "/dev/sda1")


IMAGES = (
    _deep_learning("ubuntu-24.04", "Ubuntu 24.04"),
    _deep_learning("ubuntu-22.04", "Ubuntu 22.04"),
    _deep_learning("amazon-linux-2023", "Amazon Linux 2023"),
    _ubuntu("24.04", "noble"),
    _ubuntu("22.04", "jammy"),
    PublicImage(
        "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
        "al2023-ami-2023.9.20261101.0-kernel-6.1-x86_64", "137112412989", "/dev/xvda",
    ),
)  # fmt: skip


def add_images(ec2: Any) -> None:
    """Give one region of moto's EC2 the images. Idempotent."""
    from moto.ec2.models.amis import Ami

    for each in IMAGES:
        ami_id = each.id(ec2.region_name)
        if ami_id not in ec2.amis:
            ec2.amis[ami_id] = Ami(
                ec2, ami_id, name=each.name, description=each.name, owner_id=each.owner, owner_alias="amazon",
                public=True, virtualization_type="hvm", architecture="x86_64", creation_date=_MADE,
                image_location=f"amazon/{each.name}", hypervisor="xen", root_device_type="ebs",
                root_device_name=each.root_device, region_name=ec2.region_name, boot_mode="uefi-preferred",
            )  # fmt: skip


def add_parameters(ssm: Any, region: str, account: str) -> None:
    """Give one region of moto's SSM the parameters that it lacks. Idempotent."""
    from moto.ssm.models import Parameter

    for each in IMAGES:
        # Looking makes moto load its own: Amazon Linux's is there, and says an image that its EC2 has too.
        if not ssm._parameters[each.parameter]:  # noqa: SLF001 (the public way refuses names that begin with /aws)
            ssm._parameters[each.parameter].append(Parameter(  # noqa: SLF001
                account_id=account, name=each.parameter, value=each.id(region), parameter_type="String",
                description=each.name, allowed_pattern=None, keyid=None, last_modified_date=_MADE, version=1,
                data_type="aws:ec2:image",
            ))  # fmt: skip
