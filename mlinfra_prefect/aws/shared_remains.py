"""What an environment shares and no state may name any more: looked for by name and tag before its states go.

A Terraform that was killed before it could write its state leaves what it had made. These few are what cannot be
without the others: whoever sees none of them sees nothing that costs money or gives a right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mlinfra_prefect.aws import buckets, tags
from mlinfra_prefect.aws.environment import artifact_bucket
from mlinfra_prefect.aws.sdk import client, code_of, refused

ROLES = ("node", "creator", "reaper", "dead-man")
POLICIES = ("ending", "creating", "storing")
_GOING = frozenset({"PendingDeletion", "PendingReplicaDeletion"})


def look(environment: str, account: str, regions: Sequence[str]) -> tuple[str, ...]:
    """The networks, keys, roles with what belongs to them, and the artifact bucket of an environment that are there.

    By names for people.

    Raises:
        MlinfraError: AWS cannot be asked, which is not *nothing found*.
    """
    home = regions[0]
    found = [f"network {each} in {region}" for region in regions for each in _networks(environment, region)]
    found += [f"key {each} in {home}" for each in _keys(environment, home)]
    found += [f"role {each}" for each in roles(environment, home)]
    iam = client("iam", home)
    node = _role("node", environment)
    if _is_there(lambda: iam.get_instance_profile(InstanceProfileName=node), f"instance profile {node}"):
        found.append(f"instance profile {node}")
    for kind in POLICIES:
        name = f"mlinfra-prefect-{kind}-{environment}"
        arn = f"arn:{iam.meta.partition}:iam::{account}:policy/{name}"
        if _is_there(functools.partial(iam.get_policy, PolicyArn=arn), f"policy {name}"):
            found.append(f"policy {name}")
    bucket = artifact_bucket(environment, account, home)
    if buckets.exists(bucket, home):
        found.append(f"bucket {bucket}")
    return tuple(found)


def roles(environment: str, region: str) -> tuple[str, ...]:
    """The roles of an environment that are there: they are the account's, in whatever region it is. Raises like `look`.

    Args:
        environment: its name.
        region: any, to ask from.
    """
    iam = client("iam", region)
    names = [_role(kind, environment) for kind in ROLES]
    return tuple(each for each in names if _is_there(functools.partial(iam.get_role, RoleName=each), f"role {each}"))


def _role(kind: str, environment: str) -> str:
    return f"mlinfra-prefect-{kind}-{environment}"


def _keys(environment: str, region: str) -> list[str]:
    """Keys that carry the shared tags and are not about to go. One that its own policy hides from us is not ours."""
    kms, found = client("kms", region), []
    try:
        keys = [each["KeyId"] for page in kms.get_paginator("list_keys").paginate() for each in page["Keys"]]
    except Exception as error:
        raise refused(error, f"looking for keys in {region} (kms:ListKeys)") from error
    wanted = tags.shared(environment).items()
    for key in keys:
        try:
            told = {each["TagKey"]: each["TagValue"] for each in kms.list_resource_tags(KeyId=key).get("Tags", ())}
            if wanted <= told.items() and kms.describe_key(KeyId=key)["KeyMetadata"]["KeyState"] not in _GOING:
                found.append(str(key))
        except Exception as error:
            if code_of(error)[0] not in {"AccessDeniedException", "NotFoundException"}:
                raise refused(error, f"looking at key {key} in {region} (kms:ListResourceTags)") from error
    return found


def _networks(environment: str, region: str) -> list[str]:
    filters: list[dict[str, Any]] = [
        {"Name": f"tag:{name}", "Values": [value]} for name, value in tags.shared(environment).items()
    ]
    try:
        return [str(each["VpcId"]) for each in client("ec2", region).describe_vpcs(Filters=filters)["Vpcs"]]
    except Exception as error:
        raise refused(error, f"looking for networks in {region} (ec2:DescribeVpcs)") from error


def _is_there(ask: Callable[[], object], what: str) -> bool:
    try:
        ask()
    except Exception as error:
        if code_of(error)[0] == "NoSuchEntity":
            return False
        raise refused(error, f"looking for {what}") from error
    return True
