"""Makes one instance in moto as EC2 makes it from a launch template: whole, where moto's fleets leave half of it out.

moto's instant fleet drops the instance profile, the disks, the network interface, the shutdown behaviour, and the tags
of what isn't the instance. Ours depend on all of them: sweeps find volumes by their tags, and the dead-man counts on
``terminate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mlinfra_prefect.testing.aws.account import Account
from mlinfra_prefect.testing.aws.capacity import Pool
from mlinfra_prefect.testing.aws.wire import Refused

Tags = dict[str, dict[str, str]]
"""By resource type, such as ``instance`` or ``network-interface``."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What one instance is made from.

    Args:
        pool: type, zone, region and market.
        data: of a launch template, with the overrides in it, by the API's own names.
        tags: further tags, over those in `data`.
    """

    pool: Pool
    data: Mapping[str, Any]
    tags: Tags = field(default_factory=dict)


def tag_specifications(said: list[dict[str, Any]]) -> Tags:
    """Return tags by resource type from what a request or a template says. Pure."""
    found: Tags = {}
    for each in said:
        tags = each.get("Tags") or each.get("Tag") or []
        found.setdefault(each["ResourceType"], {}).update({tag["Key"]: tag.get("Value", "") for tag in tags})
    return found


def zone_of(account: Account, region: str, subnet: str) -> str:
    """Return the zone of a subnet.

    Raises:
        Refused: there is none.
    """
    for by_id in account.ec2(region).subnets.values():
        if subnet in by_id:
            return str(by_id[subnet].availability_zone)
    raise Refused("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")


def launch_refusal(account: Account, region: str, data: Mapping[str, Any]) -> Refused | None:
    """Return EC2's refusal of a launch whose image or instance profile isn't there, or None."""
    image, profile = data.get("ImageId", ""), data.get("IamInstanceProfile") or {}
    if image not in account.ec2(region).amis:
        return Refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
    return no_profile(profile) if profile and not _profile_exists(account, profile) else None


def launched(account: Account, launch: Launch) -> Any:
    """Make an instance, and return moto's.

    Raises:
        Refused: as EC2 refuses: a group or a subnet isn't there.
    """
    from moto.core.exceptions import ServiceException

    ec2, data = account.ec2(launch.pool.region), launch.data
    tags = tag_specifications(data.get("TagSpecifications") or [])
    for kind, more in launch.tags.items():
        tags[kind] = tags.get(kind, {}) | more
    try:
        raw = _made(ec2, launch, tags)
    except ServiceException as error:
        raise Refused(str(error.code), str(error.message)) from None
    completed(account, launch.pool.region, raw, tags, data.get("IamInstanceProfile") or {})
    return raw


def completed(account: Account, region: str, raw: Any, tags: Tags, profile: Mapping[str, str]) -> None:
    """Give one of moto's instances what moto leaves out. Idempotent."""
    ec2 = account.ec2(region)
    for nic in raw.nics.values():
        nic.add_tags(tags.get("network-interface", {}))
        if nic.device_index == 0:
            nic.delete_on_termination = True  # EC2's default for an interface made with the instance
    attached = {device.volume_id for _, device in raw.get_block_device_mapping}
    for volume_id, volume in list(ec2.volumes.items()):
        if volume_id in attached:
            volume.add_tags(tags.get("volume", {}))
        elif volume.attachment is not None and volume.attachment.instance is raw:
            del ec2.volumes[volume_id]  # moto made a root disk of its own before the template's took its place
    if profile and raw.id not in ec2.iam_instance_profile_associations:
        ec2.associate_iam_instance_profile(
            instance_id=raw.id, iam_instance_profile_name=profile.get("Name"),
            iam_instance_profile_arn=profile.get("Arn"),
        )  # fmt: skip


def spot_requested(account: Account, launch: Launch, raw: Any) -> str:
    """Make the one-time spot request that an instance answers, and return its id."""
    from moto.ec2.models.spot_requests import SpotInstanceRequest
    from moto.ec2.utils import random_spot_request_id

    class Answered(SpotInstanceRequest):  # type: ignore[misc]
        """A request whose instance is there already."""

        create_time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")

        def launch_instance(self) -> Any:
            return raw

    ec2 = account.ec2(launch.pool.region)
    tags = tag_specifications(launch.data.get("TagSpecifications") or [])
    tags["spot-instances-request"] = tags.get("spot-instances-request", {}) | launch.tags.get(
        "spot-instances-request", {}
    )
    request = Answered(
        ec2, random_spot_request_id(), str(launch.data.get("MaxPrice") or ""), raw.image_id, "one-time", None, None,
        None, None, "", [], None, raw.instance_type, launch.pool.zone, None, None, monitoring_enabled=False,
        subnet_id=raw.subnet_id, tags=tags, spot_fleet_id=None, instance_interruption_behaviour=None,
    )  # fmt: skip
    ec2.spot_instance_requests[request.id] = request
    raw.spot_instance_request_id = request.id
    return str(request.id)


def _made(ec2: Any, launch: Launch, tags: Tags) -> Any:
    data, pool = launch.data, launch.pool
    given = data.get("NetworkInterfaces") or []
    nics = [dict(each) for each in given] or [{"DeviceIndex": 0, "DeleteOnTermination": True}]
    for number, nic in enumerate(nics):
        nic["DeviceIndex"] = int(nic.get("DeviceIndex", number))
        nic["Groups"] = list(nic.get("Groups") or [])
        nic["AssociatePublicIpAddress"] = _truth(nic.get("AssociatePublicIpAddress"))
    primary = nics[0]
    disks = [each for each in data.get("BlockDeviceMappings") or [] if each.get("Ebs")]
    more: dict[str, Any] = {}
    if disks:
        more["block_device_mappings"] = [
            {**each, "Ebs": {**each["Ebs"], "Encrypted": bool(_truth(each["Ebs"].get("Encrypted"))),
                             "DeleteOnTermination": _truth(each["Ebs"].get("DeleteOnTermination")) is not False}}
            for each in disks
        ]  # fmt: skip
    if pool.market == "spot":
        more["lifecycle"] = "spot"
    reservation = ec2.run_instances(
        data.get("ImageId", ""), 1, data.get("UserData"), list(data.get("SecurityGroups") or []),
        instance_type=pool.type, is_instance_type_default=False, region_name=pool.region, placement=None,
        subnet_id=data.get("SubnetId") or primary.get("SubnetId") or _default_subnet(ec2, pool.zone),
        key_name=data.get("KeyName"), nics=nics,
        security_group_ids=list(data.get("SecurityGroupIds") or []),
        associate_public_ip=primary["AssociatePublicIpAddress"], tags=tags,
        ebs_optimized=bool(_truth(data.get("EbsOptimized"))),
        instance_initiated_shutdown_behavior=data.get("InstanceInitiatedShutdownBehavior"),
        metadata_options=dict(data.get("MetadataOptions") or {}),
        monitoring_state="enabled" if _truth((data.get("Monitoring") or {}).get("Enabled")) else "disabled",
        **more,
    )  # fmt: skip
    raw = reservation.instances[0]
    if not any(name == raw.root_device_name for name, _ in raw.get_block_device_mapping) and disks:
        # Only further disks were named: the image's own root disk is there all the same.
        raw.add_block_device(8, raw.root_device_name, None, encrypted=False, delete_on_termination=True,
                             kms_key_id=None, volume_type="gp3")  # fmt: skip
    return raw


def _default_subnet(ec2: Any, zone: str) -> str:
    found = ec2.get_default_subnets().get(zone)
    if found is None:
        raise Refused("MissingInput", f"No default subnet for availability zone: '{zone}'.")
    return str(found.id)


def _profile_exists(account: Account, profile: Mapping[str, str]) -> bool:
    from moto.core.exceptions import ServiceException
    from moto.ec2.utils import filter_iam_instance_profiles

    name, arn = profile.get("Name"), profile.get("Arn")
    try:
        found = filter_iam_instance_profiles(
            account.id, partition="aws", iam_instance_profile_arn=arn, iam_instance_profile_name=name
        )
    except ServiceException:
        return False
    return found is not None


def no_profile(profile: Mapping[str, str]) -> Refused:
    """Return EC2's refusal of an instance profile that it does not see: one just made is not seen at once. Pure."""
    part = "name" if profile.get("Name") else "arn"
    value = profile.get("Name") or profile.get("Arn")
    return Refused(
        "InvalidParameterValue",
        f"Value ({value}) for parameter iamInstanceProfile.{part} is invalid. Invalid IAM Instance Profile {part}",
    )


def _truth(value: Any) -> bool | None:
    """Read a flag that moto may have kept as text. Pure."""
    return None if value in {None, ""} else str(value).lower() == "true"
