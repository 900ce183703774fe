"""An account whose environment is planted by hand in a second: of what `init aws` makes, what a lease needs."""

from __future__ import annotations

import json
from typing import Any

import boto3

from mlinfra_prefect.chaos.cloud import Cloud


class PlantedCloud(Cloud):
    """With the default network's subnets, two buckets, and a role that nobody checks."""

    def initialise(self) -> None:
        region, number = self.regions[0], str(self._client("sts").get_caller_identity()["Account"])
        ec2, iam, s3 = self._client("ec2"), self._client("iam"), self._client("s3")
        buckets = [f"mlinfra-prefect-{what}-dev-{number}-{region}" for what in ("state", "artifacts")]
        for bucket in buckets:
            s3.create_bucket(Bucket=bucket)
        role = iam.create_role(RoleName="node", AssumeRolePolicyDocument="{}")["Role"]["RoleId"]
        iam.create_instance_profile(InstanceProfileName="node")
        iam.add_role_to_instance_profile(InstanceProfileName="node", RoleName="node")
        subnets = {each["AvailabilityZone"]: each["SubnetId"] for each in ec2.describe_subnets()["Subnets"][:3]}
        group = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["GroupId"]
        told = {
            "schema": "mlinfra-prefect/aws-environment/1", "name": "dev", "account": number, "home_region": region,
            "profile": "default", "egress": "internet", "state_bucket": buckets[0], "artifact_bucket": buckets[1],
            "instance_profile": "node", "node_role_id": role, "made_at": "2026-01-01T00:00:00Z",
            "regions": [
                {"name": region, "subnets": subnets, "security_group": group, "public_ip": True, "kms_key": ""},
            ],
        }  # fmt: skip
        self.note.parent.mkdir(parents=True)
        self.note.write_text(json.dumps(told))

    def _client(self, service: str) -> Any:
        return boto3.client(
            service, region_name=self.regions[0], endpoint_url=self.url, aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )  # fmt: skip
