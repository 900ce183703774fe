"""What `init aws` made for an environment: written once beside the ledger, and found again by name and account.

Buckets have names that follow from environment, account and region, so any host that may log in to the account finds
the environment without being told. A copy lies in the home, so that a lease costs no call for it; what the copy says is
checked by whoever uses it: a subnet that is gone is an error of the fleet, never a silent other one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.aws.sdk import Place, client, code_of, here, refused
from mlinfra_prefect.errors import InvalidInput, LedgerUnreadable, NotInitialised
from mlinfra_prefect.model.names import Id, Line
from mlinfra_prefect.model.record import Moment, Record, parsed
from mlinfra_prefect.model.spelling import SecretReference

SCHEMA: Final = "mlinfra-prefect/aws-environment/1"
KEY = "environment.json"


class AwsRegion(Record):
    """The shared network of one region."""

    name: Line = Field(title="Region", description="Its name.", examples=["eu-central-1"])
    subnets: dict[str, str] = Field(title="Subnets", description="By zone.", examples=[{"eu-central-1a": "subnet-0a1"}])
    security_group: Line = Field(title="Security group", description="Of nodes; it lets nothing in.")
    public_ip: bool = Field(title="Public address", description="Whether nodes get one, as their way out.")
    kms_key: str = Field(default="", title="Key", description="That encrypts disks; empty: the account's own.")


class AwsEnvironment(Record):
    """One environment in one account."""

    schema_: Literal["mlinfra-prefect/aws-environment/1"] = Field(default=SCHEMA, alias="schema", title="Schema")
    name: Id = Field(title="Name", description="As requests name it.", examples=["dev"])
    account: Line = Field(title="Account", description="Its number.", examples=["123456789012"])
    home_region: Line = Field(title="Home region", description="Of its buckets.", examples=["eu-central-1"])
    profile: Literal["default", "hardened"] = Field(title="Profile", description="How its network is made.")
    egress: Literal["internet", "mirror", "none"] = Field(title="Egress", description="What nodes can reach.")
    state_bucket: Line = Field(title="State bucket", description="States and ledger; nodes cannot reach it.")
    artifact_bucket: Line = Field(title="Artifact bucket", description="Mailboxes of nodes, and checkpoints.")
    instance_profile: Line = Field(title="Instance profile", description="Of nodes.")
    node_role_id: Line = Field(title="Node role", description="Its unique id, part of a node's place in the bucket.")
    regions: tuple[AwsRegion, ...] = Field(title="Regions", description="The home region first.")
    mirrors: tuple[Line, ...] = Field(
        default=(), title="Mirrors", description="Ranges where package mirrors answer, for nodes with egress mirror.",
        examples=[["10.20.0.0/16"]],
    )  # fmt: skip
    input_buckets: tuple[Line, ...] = Field(
        default=(), title="Input buckets", description="From which the creator's role may take inputs.",
        examples=[["our-datasets"]],
    )  # fmt: skip
    secrets: tuple[SecretReference, ...] = Field(
        default=(), title="Secrets", description="References to what its nodes may read.",
        examples=[["aws-sm:hf-token", "ssm:/ours/wandb"]],
    )  # fmt: skip
    made_at: Moment = Field(title="Made at", description="When `init aws` was last done, in UTC.")

    def region(self, name: str) -> AwsRegion:
        """Return a region's network.

        Raises:
            InvalidInput: `init aws` did not make one there.
        """
        for each in self.regions:
            if each.name == name:
                return each
        there = [each.name for each in self.regions]
        options = " ".join(f"--region {each}" for each in (*there, name))
        raise InvalidInput(
            f"environments.{self.name}.aws.regions",
            f"{name} has no network of environment {self.name!r}; there is {', '.join(there)}",
            f"Run: mlinfra-prefect init aws --environment {self.name} {options}",
        )


def account() -> str:
    """Return the number of the account that the credentials belong to.

    Raises:
        MlinfraError: there are none, they have expired, or AWS cannot be reached.
    """
    sts = client("sts", own_region())
    try:
        return str(sts.get_caller_identity()["Account"])
    except Exception as error:
        raise refused(error, "asking who we are (sts:GetCallerIdentity)") from error


def account_here() -> str:
    """As `account`; this process asks once for each login that it has."""
    return _account(here())


@functools.lru_cache(maxsize=8)
def _account(place: Place) -> str:
    del place
    return account()


def own_region() -> str:
    """Return the region of the AWS configuration.

    Raises:
        InvalidInput: it names none.
        MlinfraError: it cannot be read.
    """
    for variable in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(variable):
            return os.environ[variable]
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        found = botocore.session.Session().get_config_variable("region")
    except BotoCoreError as error:  # a profile that is none
        raise refused(error, "reading the configuration of AWS") from error
    if not found:
        raise InvalidInput("AWS_REGION", "no region is configured", "Set AWS_REGION, or name one with --region.")
    return str(found)


def state_bucket(environment: str, account: str, region: str) -> str:
    """The name of an environment's state bucket. Pure."""
    return f"mlinfra-prefect-state-{environment}-{account}-{region}"


def artifact_bucket(environment: str, account: str, region: str) -> str:
    """The name of an environment's artifact bucket. Pure."""
    return f"mlinfra-prefect-artifacts-{environment}-{account}-{region}"


def save(made: AwsEnvironment, cache: Path) -> None:
    """Write an environment beside its ledger and into the home. Idempotent.

    Raises:
        MlinfraError: the bucket refuses it.
    """
    body = made.model_dump_json(by_alias=True, indent=1).encode()
    s3 = client("s3", made.home_region)
    try:
        s3.put_object(
            Bucket=made.state_bucket, Key=KEY, Body=body, ContentType="application/json",
            ExpectedBucketOwner=made.account,
        )  # fmt: skip
    except Exception as error:
        raise refused(error, f"writing s3://{made.state_bucket}/{KEY}") from error
    cache.mkdir(mode=0o700, exist_ok=True)
    write_json(cached(cache, made.name), json.loads(body))


def forget(name: str, cache: Path) -> None:
    """Forget the copy of an environment that lies in the home. Idempotent."""
    cached(cache, name).unlink(missing_ok=True)


def load(name: str, cache: Path) -> AwsEnvironment:
    """Return an environment: the home's copy, or what lies beside its ledger.

    Raises:
        NotInitialised: there is none in this account and region.
        MlinfraError: AWS cannot be asked.
    """
    return remembered(name, cache) or reload(name, cache)


def reload(name: str, cache: Path, region: str | None = None) -> AwsEnvironment:
    """Return an environment as it lies beside its ledger, and remember it: another host may have changed it.

    Args:
        name: of the environment.
        cache: the home's copies.
        region: its home region; None: the one of the AWS configuration.

    Raises:
        NotInitialised, MlinfraError: as `load`.
    """
    found = look_up(name, region)
    if found is None:
        raise NotInitialised(
            f"Environment {name!r} is not initialised on AWS in {region or own_region()} of account {account()}.",
            f"Run: mlinfra-prefect init aws --environment {name}",
        )
    cache.mkdir(mode=0o700, exist_ok=True)
    write_json(cached(cache, name), json.loads(found.model_dump_json(by_alias=True)))
    return found


def remembered(name: str, cache: Path) -> AwsEnvironment | None:
    """Return the home's copy of an environment; None: it has none. Asks nobody."""
    kept = read_json_if_there(cached(cache, name))
    if kept is None or kept.get("schema") != SCHEMA:
        return None
    return parsed(AwsEnvironment, kept, prefix=str(cached(cache, name)))


def look_up(name: str, region: str | None = None) -> AwsEnvironment | None:
    """Return what lies beside the ledger of an environment in its home region; None: nothing does.

    Args:
        name: of the environment.
        region: its home region; None: the one of the AWS configuration.

    Raises:
        LedgerUnreadable: what lies there is no such record.
        MlinfraError: AWS cannot be asked.
    """
    region = region or own_region()
    mine = account()
    bucket = state_bucket(name, mine, region)
    try:
        body = client("s3", region).get_object(Bucket=bucket, Key=KEY, ExpectedBucketOwner=mine)["Body"].read()
    except Exception as error:
        if code_of(error)[0] in {"NoSuchBucket", "NoSuchKey", "404"}:
            return None
        raise refused(error, f"reading s3://{bucket}/{KEY}") from error
    # Names of buckets can be guessed, and whoever made this one first may have written anything into it.
    expected = (mine, region, bucket, artifact_bucket(name, mine, region))
    with contextlib.suppress(ValueError):
        found = AwsEnvironment.model_validate_json(body)
        if (found.account, found.home_region, found.state_bucket, found.artifact_bucket) == expected:
            return found
    raise LedgerUnreadable(
        f"s3://{bucket}/{KEY} cannot be read: it was cut off, is of other buckets, or was written by a newer version.",
        f"Install the newest version, or write it again: mlinfra-prefect init aws --environment {name}",
    )


def cached(cache: Path, name: str) -> Path:
    """Where the home's copy of an environment lies. Pure."""
    return cache / f"{name}.json"
