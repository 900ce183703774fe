"""An emulated account with a home that uses it: what the tests of the whole path share, and who judges them.

The provider is looked for in one place only, `require_provider`: where it can be had neither from a registry nor from a
mirror on this host the tests that apply Terraform are skipped, or fail where somebody wants to be sure of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

from mlinfra_prefect.aws import environment as environments
from mlinfra_prefect.aws.environment import AwsEnvironment, AwsRegion
from mlinfra_prefect.errors import EngineMissing, TerraformFailed
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.terraform import Slots, Stack, find_engine
from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.records import MOMENT

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or CHECKOUT / ".cache")
REQUIRED = "MLINFRA_REQUIRE_AWS_PROVIDER"
NO_PROVIDER = "the AWS provider can be had neither from a registry nor from a local mirror"
REGION = "us-east-1"
SECOND = "us-west-2"
PATIENCE = 120.0
"""Seconds after which something that should have happened will not."""
READS = ("Describe", "List", "Get", "Head", "GET ", "HEAD ", "AssumeRole")
"""Beginnings of the names of operations that change nothing."""


def require_provider(place: Path) -> None:
    """Skip where there is no engine or no AWS provider; fail instead where `REQUIRED` is set. Cheap the second time."""
    try:
        _provided(place)
    except (EngineMissing, TerraformFailed) as error:
        if isinstance(error, TerraformFailed) and "provider" not in error.message:
            raise
        why = NO_PROVIDER if isinstance(error, TerraformFailed) else str(error)
        if os.environ.get(REQUIRED):
            pytest.fail(f"{why} ({REQUIRED}=1): {error}", pytrace=False)
        pytest.skip(why)


@functools.cache
def _provided(place: Path) -> None:
    module = place / "provider"
    module.mkdir()
    (module / "main.tf").write_text(
        'terraform {\n  required_providers {\n    aws = {\n      source  = "hashicorp/aws"\n      version = "~> 5.0"\n'
        "    }\n  }\n}\n"
    )
    stack = Stack(
        place / "stack",
        engine=find_engine(None, cache_dir=CACHE),
        slots=Slots(place / "slots", limit=1),
        env={},
        grace=5,
    )
    stack.prepare(module, {}, deadline=time.time() + PATIENCE)


@dataclass
class Account:
    """An emulator, and what is in it. The judge asks EC2 itself, of everything, tagged or not."""

    aws: Emulator
    _clients: dict[tuple[str, str], Any] = field(default_factory=dict)
    _images: dict[str, str] = field(default_factory=dict)

    def client(self, service: str, region: str = REGION) -> Any:
        """A client of the tests' own; those of the product are what is judged."""
        if (service, region) not in self._clients:
            keys = self.aws.environment
            self._clients[service, region] = boto3.client(
                service, endpoint_url=self.aws.url, region_name=region,
                aws_access_key_id=keys["AWS_ACCESS_KEY_ID"], aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            )  # fmt: skip
        return self._clients[service, region]

    def answered_badly(self, since: int) -> list[str]:
        """What was not carried out well after the first `since` requests, for who asks why a test failed."""
        badly = [each for each in self.aws.proxy.log if each.request > since and each.phase in {"executed", "dropped"}]
        return [f"{each.request} {each.operation} {each.phase} {each.status}" for each in badly if each.status != 200]

    def running(self, region: str = "") -> dict[str, dict[str, str]]:
        """Every instance that has not ended, in all regions or in one: its tags by its id."""
        return {
            each["InstanceId"]: {tag["Key"]: tag["Value"] for tag in each.get("Tags", [])}
            for name in ([region] if region else [REGION, SECOND])
            for group in self.client("ec2", name).describe_instances()["Reservations"]
            for each in group["Instances"]
            if each["State"]["Name"] not in {"terminated", "shutting-down"}
        }

    def of(self, lease_id: str) -> set[str]:
        """The machines that carry a lease's tag and have not ended, in all regions."""
        return {each for each, said in self.running().items() if said.get("mlinfra-prefect:lease") == lease_id}

    def tagged(self, region: str = REGION) -> set[str]:
        """Everything that carries a tag of ours and exists: what a lease or an environment left."""
        found = set()
        ec2 = self.client("ec2", region)
        for name, key, filtered in (
            ("describe_launch_templates", "LaunchTemplates", "LaunchTemplateId"),
            ("describe_volumes", "Volumes", "VolumeId"),
            ("describe_vpcs", "Vpcs", "VpcId"),
            ("describe_subnets", "Subnets", "SubnetId"),
            ("describe_security_groups", "SecurityGroups", "GroupId"),
            ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
            ("describe_route_tables", "RouteTables", "RouteTableId"),
            ("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
        ):
            for each in getattr(ec2, name)()[key]:
                ours = any(tag["Key"].startswith("mlinfra-prefect:") for tag in each.get("Tags", []))
                if ours and each.get("State") not in {"deleted", "deleting"}:
                    found.add(f"{key} {each[filtered]}")
        found |= {f"Bucket {each['Name']}" for each in self.client("s3").list_buckets()["Buckets"]}
        iam = self.client("iam")
        found |= {f"Role {each['RoleName']}" for each in iam.list_roles()["Roles"] if "mlinfra" in each["RoleName"]}
        found |= {f"Profile {each['InstanceProfileName']}" for each in iam.list_instance_profiles()["InstanceProfiles"]}
        found |= {f"Policy {each['PolicyName']}" for each in iam.list_policies(Scope="Local")["Policies"]}
        found |= {f"Function {each['FunctionName']}" for each in self.client("lambda").list_functions()["Functions"]}
        found |= {f"Rule {each['Name']}" for each in self.client("events").list_rules()["Rules"]}
        found |= {f"Log {each['logGroupName']}" for each in self.client("logs").describe_log_groups()["logGroups"]}
        dashboards = self.client("cloudwatch", region).list_dashboards()["DashboardEntries"]
        found |= {f"Dashboard {each['DashboardName']}" for each in dashboards}
        kms = self.client("kms", region)
        for each in kms.list_keys()["Keys"]:
            if kms.describe_key(KeyId=each["KeyId"])["KeyMetadata"]["KeyState"] != "PendingDeletion":
                found.add(f"Key {each['KeyId']}")
        return found | {f"Instance {each}" for each in self.running(region)}

    def plant(self, tags: dict[str, str], region: str = REGION) -> str:
        """Run a machine by hand; its id."""
        ec2 = self.client("ec2", region)
        if region not in self._images:
            self._images[region] = ec2.register_image(Name="of a test")["ImageId"]
        image = self._images[region]
        spec = [{"ResourceType": "instance", "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}]
        made = ec2.run_instances(
            ImageId=image,
            InstanceType="m5.large",
            MinCount=1,
            MaxCount=1,
            **({"TagSpecifications": spec} if tags else {}),
        )
        return str(made["Instances"][0]["InstanceId"])

    def end(self, *instances: str, region: str = REGION) -> None:
        self.client("ec2", region).terminate_instances(InstanceIds=list(instances))

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """Within it nobody may ask for anything that changes the account."""
        since = self.aws.proxy.requests
        yield
        # A plan locks its state while it reads it, and machines that run speak.
        asked = {
            each.operation for each in self.aws.proxy.log
            if each.phase == "received" and each.request > since
            and ".tflock" not in each.path and "/nodes/" not in each.path
        }  # fmt: skip
        changing = {each for each in asked if not each.startswith(READS)}
        assert not changing, f"asked for {changing}"


@dataclass
class House:
    """A home that uses the account, and the command line in it."""

    account: Account
    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Home:
        return Home(self.root)

    def environment(self, **env: str) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items()
            if not name.startswith(("AWS_", "MLINFRA_")) and name not in {"COLUMNS", "NO_COLOR", "FORCE_COLOR"}
        }  # fmt: skip
        mine = {
            "MLINFRA_HOME": str(self.root), "MLINFRA_CACHE": str(CACHE), "MLINFRA_KEEPER_PLACE": "process",
            "COLUMNS": "240",
        }  # fmt: skip
        return kept | self.account.aws.environment | mine | self.env | env

    def cli(
        self, *words: str, seconds: float = 280.0, stdin: str | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        return subprocess.run(
            [sys.executable, "-m", "mlinfra_prefect", *words], check=False, capture_output=True, text=True,
            env=self.environment(**env), timeout=seconds, cwd=self.root.parent, input=stdin,
            **({} if stdin is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip

    def says(self, *words: str, **env: str) -> Any:
        """Run a verb that has to succeed; its JSON."""
        since = self.account.aws.proxy.requests
        done = self.cli(*words, "--json", **env)
        assert done.returncode == 0, f"{done.stderr}\nasked: {self.account.answered_badly(since)}"
        return json.loads(done.stdout)

    def refuses(self, *words: str, code: int = 1, **env: str) -> str:
        """Run a verb that has to fail with one line on standard error, and nothing changed; that line."""
        with self.account.unchanged():
            done = self.cli(*words, **env)
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        (line,) = done.stderr.splitlines()
        return line


def usable(house: House, name: str = "dev", regions: tuple[str, ...] = (REGION,)) -> AwsEnvironment:
    """Write an environment down that nobody made: its subnets are the account's default ones. Needs no Terraform."""
    account = house.account
    made = AwsEnvironment(
        name=name, account=account.aws.account, home_region=regions[0], profile="default", egress="internet",
        state_bucket=environments.state_bucket(name, account.aws.account, regions[0]),
        artifact_bucket=environments.artifact_bucket(name, account.aws.account, regions[0]),
        instance_profile="nodes", node_role_id="AROAEXAMPLE", made_at=MOMENT,
        regions=tuple(
            AwsRegion(
                name=region, security_group="sg-0a1b2c", public_ip=True,
                subnets={
                    each["AvailabilityZone"]: each["SubnetId"]
                    for each in account.client("ec2", region).describe_subnets()["Subnets"][:3]
                },
            )
            for region in regions
        ),
    )  # fmt: skip
    for bucket in (made.state_bucket, made.artifact_bucket):
        account.client("s3", regions[0]).create_bucket(Bucket=bucket)
    account.client("s3", regions[0]).put_object(
        Bucket=made.state_bucket, Key=environments.KEY, Body=made.model_dump_json(by_alias=True).encode()
    )
    return made


@contextlib.contextmanager
def house_in(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A fresh home of the account, which this process uses too; with a short name, for sockets have short ones."""
    place = Path(tempfile.mkdtemp(prefix="mla-"))
    house = House(account, place / "home")
    house.home.ensure()
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLINFRA_"))]:
        monkeypatch.delenv(name)
    for name, value in house.environment().items():
        if name.startswith(("AWS_", "MLINFRA_")):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    try:
        yield house
    finally:
        shutil.rmtree(place, ignore_errors=True)


def context_of(house: House) -> Context:
    """The story of a house, in this process."""
    return Context(house.home)


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until something holds; returns what it is."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.1)
    return found
