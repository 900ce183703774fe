"""What an environment shares and no state may name any more: looked for by name and tag before its states go.

A Terraform that was killed before it could write its state leaves what it had made. These few are what cannot be
without the others: whoever sees none of them sees nothing that costs money or gives a right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlinfra_prefect.aws import buckets, tags
from mlinfra_prefect.aws.environment import artifact_bucket
from mlinfra_prefect.aws.sdk import client, code_of, refused

ROLES = ("node", "creator", "reaper", "dead-man")


def look(environment: str, account: str, regions: Sequence[str]) -> tuple[str, ...]:
    """The networks, roles and the artifact bucket of an environment that are there, by names for people.

    Raises:
        MlinfraError: AWS cannot be asked, which is not *nothing found*.
    """
    found = [f"network {each} in {region}" for region in regions for each in _networks(environment, region)]
    found += [
        f"role {name}" for kind in ROLES if _is_there(name := f"mlinfra-prefect-{kind}-{environment}", regions[0])
    ]
    bucket = artifact_bucket(environment, account, regions[0])
    if buckets.exists(bucket, regions[0]):
        found.append(f"bucket {bucket}")
    return tuple(found)


def _networks(environment: str, region: str) -> list[str]:
    filters: list[dict[str, Any]] = [
        {"Name": f"tag:{name}", "Values": [value]} for name, value in tags.shared(environment).items()
    ]
    try:
        return [str(each["VpcId"]) for each in client("ec2", region).describe_vpcs(Filters=filters)["Vpcs"]]
    except Exception as error:
        raise refused(error, f"looking for networks in {region} (ec2:DescribeVpcs)") from error


def _is_there(role: str, region: str) -> bool:
    try:
        client("iam", region).get_role(RoleName=role)
    except Exception as error:
        if code_of(error)[0] == "NoSuchEntity":
            return False
        raise refused(error, f"looking for role {role} (iam:GetRole)") from error
    return True
