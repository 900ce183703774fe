"""The clients of an emulator, and what a fleet needs: as the module `gpu-node` makes it, without Terraform."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import boto3
from botocore.config import Config

from mlinfra_prefect.testing.aws import Emulator

PARAMETER = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
TAGS = {"mlinfra-prefect:ledger": "ledger-1", "mlinfra-prefect:lease": "lease-1"}


class Cloud:
    """The clients of an emulator, and what a fleet needs."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.ec2 = self.client("ec2")
        images = self.client("ssm").get_parameter(Name=PARAMETER)
        self.image = images["Parameter"]["Value"]
        self.subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in self.ec2.describe_subnets()["Subnets"]}

    def client(self, service: str, region: str = "us-east-1", **keys: str) -> Any:
        """Return a client that tries once."""
        there = self.emulator.environment
        return boto3.client(
            service, endpoint_url=self.emulator.url, region_name=region,
            aws_access_key_id=keys.get("key", there["AWS_ACCESS_KEY_ID"]),
            aws_secret_access_key=keys.get("secret", there["AWS_SECRET_ACCESS_KEY"]),
            aws_session_token=keys.get("token"), config=Config(retries={"total_max_attempts": 1}),
        )  # fmt: skip

    def profile(self, name: str = "node") -> str:
        """Make a role with an instance profile, and return the role's unique id."""
        iam = self.client("iam")
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]
        iam.create_instance_profile(InstanceProfileName=name)
        iam.add_role_to_instance_profile(InstanceProfileName=name, RoleName=name)
        return role["RoleId"]

    def template(self, data: str = "", *, profile: str = "", spot: bool = False, **more: Any) -> str:
        """Make a launch template as the module `gpu-node` makes it, and return its id."""
        kinds = ["instance", "volume", "network-interface", *(["spot-instances-request"] if spot else [])]
        said = {
            "ImageId": self.image, "InstanceInitiatedShutdownBehavior": "terminate",
            "MetadataOptions": {"HttpTokens": "required"},
            "NetworkInterfaces": [{"DeviceIndex": 0, "AssociatePublicIpAddress": True, "DeleteOnTermination": True}],
            "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 50, "Encrypted": True}}],
            "TagSpecifications": [
                {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in TAGS.items()]}
                for kind in kinds
            ],
            **({"UserData": data} if data else {}), **({"IamInstanceProfile": {"Name": profile}} if profile else {}),
            **more,
        }  # fmt: skip
        name = f"template-{len(self.ec2.describe_launch_templates()['LaunchTemplates'])}"
        made = self.ec2.create_launch_template(LaunchTemplateName=name, LaunchTemplateData=said)
        return made["LaunchTemplate"]["LaunchTemplateId"]

    def fleet(
        self, template: str, pools: list[tuple[str, str]] | None = None, *, market: str = "on-demand", nodes: int = 1,
        **more: Any,
    ) -> SimpleNamespace:  # fmt: skip
        """Ask for an instant fleet over (type, zone) pools; the answer, its error codes and its instance ids."""
        asked = self.ec2.create_fleet(
            Type="instant",
            LaunchTemplateConfigs=[{
                "LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "$Latest"},
                "Overrides": [
                    {
                        "InstanceType": kind, "SubnetId": self.subnets[zone], "Priority": number,
                        **more.get("override", {}),
                    }
                    for number, (kind, zone) in enumerate(pools or [("g5.xlarge", "us-east-1a")])
                ],
            }],
            TargetCapacitySpecification={"TotalTargetCapacity": nodes, "DefaultTargetCapacityType": market},
            **{
                **({"OnDemandOptions": {"AllocationStrategy": "prioritized"}} if market == "on-demand" else {}),
                **more.get("request", {}),
            },
        )  # fmt: skip
        return SimpleNamespace(
            id=asked["FleetId"], said=asked, codes=[each["ErrorCode"] for each in asked["Errors"]],
            errors=asked["Errors"], instances=[number for each in asked["Instances"] for number in each["InstanceIds"]],
        )  # fmt: skip
