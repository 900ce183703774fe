"""The buckets of an environment as such: whether they are there and safe, and how they go again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlinfra_prefect.aws import sweeping
from mlinfra_prefect.aws.environment import account_here
from mlinfra_prefect.aws.sdk import client, code_of, refused
from mlinfra_prefect.errors import InvalidInput, NotYetDestroyed, PlanRejected

ABSENT = frozenset({"404", "NoSuchBucket", "NotFound"})
LONGEST_NAME = 63
"""Of a bucket (https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html)."""
STATES, STATE, LOCK = "terraform/", ".tfstate", ".tfstate.tflock"
"""Where the states lie in a state bucket, and how their names and those of their locks end."""
FEWEST_ZONES = 2
"""Capacity is a matter of zones: with one of them a lease has one place to try."""


def exists(bucket: str, region: str) -> bool:
    """Whether a bucket is there, and ours to use.

    Raises:
        MlinfraError: it is somebody else's, or AWS cannot be asked.
    """
    try:
        client("s3", region).head_bucket(Bucket=bucket, ExpectedBucketOwner=account_here())
    except Exception as error:
        if code_of(error)[0] in ABSENT:
            return False
        raise refused(error, f"looking at s3://{bucket} (s3:ListBucket)") from error
    return True


def regions_of(prefix: str, region: str) -> tuple[str, ...] | None:
    """How the names go on of this account's buckets that begin so; None: the login may not list them.

    Args:
        prefix: all of a name but the region that ends it.
        region: any, to ask from.

    Raises:
        MlinfraError: AWS cannot be asked.
    """
    try:
        names = [str(each["Name"]) for each in client("s3", region).list_buckets()["Buckets"]]
    except Exception as error:
        if code_of(error)[0] == "AccessDenied":
            return None
        raise refused(error, "listing buckets (s3:ListAllMyBuckets)") from error
    return tuple(sorted(each.removeprefix(prefix) for each in names if each.startswith(prefix)))


def check(bucket: str, region: str) -> None:
    """Refuse a state bucket that can lose or show what lies in it.

    Raises:
        PlanRejected: it is not versioned, or it may be public.
    """
    s3 = client("s3", region)
    try:
        versioned = s3.get_bucket_versioning(Bucket=bucket).get("Status") == "Enabled"
        try:
            block = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        except Exception as error:
            if code_of(error)[0] != "NoSuchPublicAccessBlockConfiguration":
                raise
            block = {}
    except Exception as error:
        raise refused(error, f"looking at s3://{bucket}") from error
    if not versioned:
        raise PlanRejected(
            f"The state bucket {bucket} is not versioned: an overwritten state would be lost. Nothing was created.",
            f"aws s3api put-bucket-versioning --bucket {bucket} --versioning-configuration Status=Enabled",
        )
    if not block or not all(block.values()):
        raise PlanRejected(
            f"The state bucket {bucket} may be made public. Nothing was created.",
            f"aws s3api put-public-access-block --bucket {bucket} --public-access-block-configuration "
            "BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true",
        )


def zones(region: str, most: int) -> list[str]:
    """The first zones of a region that this account may use.

    Raises:
        InvalidInput: there are too few, or no such region.
    """
    try:
        answer = client("ec2", region).describe_availability_zones(
            Filters=[{"Name": "state", "Values": ["available"]}, {"Name": "zone-type", "Values": ["availability-zone"]}]
        )
    except Exception as error:
        raise refused(error, f"listing the zones of {region} (ec2:DescribeAvailabilityZones)") from error
    found = sorted(str(each["ZoneName"]) for each in answer["AvailabilityZones"])[:most]
    if len(found) < FEWEST_ZONES:
        raise InvalidInput("region", f"{region} has {len(found)} zone(s) for this account", "Choose another region.")
    return found


def leased(environment: str, regions: Sequence[str]) -> list[str]:
    """What carries a lease of any ledger in an environment: ids of leases, with their ledgers."""
    return [
        f"{carried.lease_id} of ledger {carried.ledger_id}"
        for region in regions
        for carried in sweeping.carriers(client, region)
        if carried.environment == environment
    ]


def ledger_of(state_bucket: str, region: str) -> str | None:
    """The address of the ledger that lies beside an environment's states; None: none was begun there.

    Raises:
        MlinfraError: AWS cannot be asked.
    """
    try:
        client("s3", region).head_object(
            Bucket=state_bucket, Key="ledger/ledger.json", ExpectedBucketOwner=account_here()
        )
    except Exception as error:
        if code_of(error)[0] in ABSENT | {"NoSuchKey"}:
            return None
        raise refused(error, f"looking for a ledger in s3://{state_bucket}") from error
    return f"s3://{state_bucket}/ledger"


def state_key(part: str) -> str:
    """Where the state of one part of an environment lies in its bucket. Pure."""
    return f"{STATES}{part}{STATE}"


def states(state_bucket: str, region: str) -> tuple[str, ...]:
    """The parts of an environment whose states lie in its bucket; none where there is no bucket.

    Raises:
        MlinfraError: AWS cannot be asked.
    """
    return _names(state_bucket, region, STATE)


def locked(state_bucket: str, region: str) -> tuple[str, ...]:
    """The parts of an environment whose states a Terraform has locked, there or not yet there. Raises like `states`."""
    return _names(state_bucket, region, LOCK)


def _names(state_bucket: str, region: str, ending: str) -> tuple[str, ...]:
    try:
        pages = (
            client("s3", region)
            .get_paginator("list_objects_v2")
            .paginate(Bucket=state_bucket, Prefix=STATES, ExpectedBucketOwner=account_here())
        )
        keys = [str(each["Key"]) for page in pages for each in page.get("Contents", ())]
    except Exception as error:
        if code_of(error)[0] in ABSENT:
            return ()
        raise refused(error, f"looking for states in s3://{state_bucket}") from error
    return tuple(key.removeprefix(STATES).removesuffix(ending) for key in keys if key.endswith(ending))


def empty(bucket: str, region: str) -> None:
    """Delete everything in a bucket, every version of it. Idempotent; an absent bucket is empty.

    Raises:
        MlinfraError: something cannot be deleted.
    """
    s3 = client("s3", region)
    left: list[str] = []
    owner = account_here()
    try:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, ExpectedBucketOwner=owner):
            doomed: list[dict[str, Any]] = [
                {"Key": each["Key"], "VersionId": each["VersionId"]}
                for each in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
            ]
            if doomed:
                answer = s3.delete_objects(
                    Bucket=bucket, Delete={"Objects": doomed, "Quiet": True}, ExpectedBucketOwner=owner
                )
                left += [f"{each['Key']} ({each['Message']})" for each in answer.get("Errors", ())]
    except Exception as error:
        if code_of(error)[0] in ABSENT:
            return
        raise refused(error, f"emptying s3://{bucket}") from error
    if left:
        raise NotYetDestroyed(f"s3://{bucket} still has {', '.join(left[:3])} and {max(0, len(left) - 3)} more.")


def delete(bucket: str, region: str) -> None:
    """Delete a bucket with everything in it. Idempotent."""
    empty(bucket, region)
    try:
        client("s3", region).delete_bucket(Bucket=bucket, ExpectedBucketOwner=account_here())
    except Exception as error:
        if code_of(error)[0] not in ABSENT:
            raise refused(error, f"deleting s3://{bucket}") from error
