"""Rule: the roles that an environment makes are enough for what they are for, in an account whose policies hold.

Creator: plan, lease, train, release. Reaper, in another home with the same ledger: take over and give back. In the
profile that is harder to please: `hardened`, whose nodes have no way out and whose disks and buckets have a key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from aws_place import REGION, Account, House, house_in, require_provider, until

from mlinfra_prefect.testing.aws import Emulator

PROJECT = Path(__file__).parent / "project"
DATA = "our-datasets"
CANARY = f"canary-{uuid.uuid4().hex}"
GRANTED = ("aws-sm:hf-token", "ssm:/ours/wandb")
CLIENT = """
import numpy as np
import aws_work
from mlinfra_prefect import gpu, lease
from mlinfra_prefect.aws.platform import AwsPlatform
from mlinfra_prefect.errors import InvalidInput, NodeError
with lease("cpu", platform="aws", max_minutes=15, grace_seconds=20) as infra:
    print(infra.run(aws_work.fit, np.arange(6.0)).metrics["mean"])
    print(infra.with_options(inputs={"rows": "s3://our-datasets/today/"}).run(aws_work.of_input, "rows"))
    print(infra.run(aws_work.version_of, "tiny"))
    secretive = infra.with_options(secrets={"TOKEN": "aws-sm:hf-token#token", "KEY": "ssm:/ours/wandb"})
    print(secretive.run(aws_work.of_secrets, "TOKEN", "KEY"))
    others = {"TOKEN": "aws-sm:not-granted"}
    try:
        gpu("cpu", platform="aws", secrets=others, max_minutes=15)(aws_work.of_secrets)("TOKEN")
    except InvalidInput as error:
        print(error)
    # A client that does not compare: the role decides.
    AwsPlatform.take_secrets = lambda self, environment, references: references
    try:
        infra.with_options(secrets=others).run(aws_work.of_secrets, "TOKEN")
    except NodeError as error:
        print(error)
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    require_provider(tmp_path_factory.mktemp("provider"))
    with Emulator(iam=True) as aws:
        found = Account(aws)
        yield found
        left = found.running()
    assert not left


@pytest.fixture(scope="module")
def house(account: Account) -> Iterator[House]:
    """A home whose environment an administrator made, and which has the creator's role from then on."""
    patch = pytest.MonkeyPatch()
    with house_in(account, patch) as made:
        try:
            account.client("s3").create_bucket(Bucket=DATA)
            account.client("s3").put_object(Bucket=DATA, Key="today/rows.txt", Body=b"1 2 3")
            keep_secrets(account)
            grants = [word for each in GRANTED for word in ("--secret", each)]
            said = made.says(
                "init", "aws", "--yes", "--region", REGION, "--profile", "hardened", "--input-bucket", DATA, *grants
            )
            assert said["made"]["secrets"] == list(GRANTED)
            made.env |= taken(account, "creator")
            made.env["MLINFRA_LEDGER"] = f"s3://{said['made']['state_bucket']}/ledger"
            yield made
        finally:
            patch.undo()


def keep_secrets(account: Account) -> None:
    """What the team keeps: two secrets that nodes are granted, and one that they are not."""
    kept = {"hf-token": json.dumps({"token": CANARY, "user": "us"}), "not-granted": CANARY}
    for name, text in kept.items():
        account.client("secretsmanager").create_secret(Name=name, SecretString=text)
    account.client("ssm").put_parameter(Name="/ours/wandb", Value=f"{CANARY}-2", Type="SecureString")


def holding(account: Account, house: House) -> list[str]:
    """Where the canary lies: files of the home and of all machines, and every version of every object."""
    places = [house.root, *{each.root for each in account.aws.instances}]
    found = [
        str(path) for place in places for path in place.rglob("*")
        if path.is_file() and not path.is_symlink() and CANARY.encode() in path.read_bytes()
    ]  # fmt: skip
    s3 = account.client("s3")
    looked = 0
    for bucket in s3.list_buckets()["Buckets"]:
        for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket["Name"]):
            for each in page.get("Versions", ()):
                told = s3.get_object(Bucket=bucket["Name"], Key=each["Key"], VersionId=each["VersionId"])
                looked += 1
                if CANARY.encode() in told["Body"].read():
                    found.append(f"{bucket['Name']}/{each['Key']}")
    assert looked > 10
    return found


def taken(account: Account, role: str) -> dict[str, str]:
    arn = f"arn:aws:iam::{account.aws.account}:role/mlinfra-prefect-{role}-dev"
    keys = account.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }  # fmt: skip


def project_that_needs_a_package(place: Path) -> Path:
    """The project of these tests, whose requirements file names a package that no interpreter here has."""
    shutil.copytree(PROJECT, place)
    wheel = place.parent / "tiny-1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr("tiny-1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.2\n")
        archive.writestr("tiny-1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.2.dist-info/RECORD", "")
    with (place / "pyproject.toml").open("a") as file:
        file.write('\n[tool.mlinfra-prefect]\nrequirements = "requirements.txt"\n')
    (place / "requirements.txt").write_text(f"# what a training needs\ntiny @ {wheel.as_uri()}\n")
    return place


def denied(account: Account) -> list[str]:
    """What anybody, the nodes too, was not allowed to do."""
    return [
        f"{each.operation} {each.path}" for each in account.aws.proxy.log
        if each.phase == "answered" and each.status in {401, 403}
    ]  # fmt: skip


def kill_what_keeps(house: House) -> None:
    """SIGKILL of the processes of a home that keep its leases, as if their host were gone."""
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("MLINFRA_HOME") == str(house.root)
            if ours and any("keeper" in word for word in process.cmdline()):
                process.kill()
        except (psutil.Error, OSError):
            continue


@pytest.fixture(scope="module")
def ran(house: House, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """What a flow with the creator's role printed, from `plan` to its receipt."""
    assert house.cli("plan", "cpu", "--platform", "aws").returncode == 0
    project = project_that_needs_a_package(tmp_path_factory.mktemp("project") / "project")
    return subprocess.run(
        [sys.executable, "-c", CLIENT], env=house.environment(PYTHONPATH=str(project)), cwd=project,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_the_creator_may_plan_lease_train_and_give_back(
    account: Account, ran: subprocess.CompletedProcess[str]
) -> None:
    """Nothing is refused; inputs come from a granted bucket, and packages as the project's file says."""
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[:3] == ["2.5", "1 2 3", "1.2"]
    assert not account.running()
    assert denied(account) == []


def test_a_training_has_its_secrets_and_nothing_else_has(
    account: Account, house: House, ran: subprocess.CompletedProcess[str]
) -> None:
    """The node reads what it was granted; home, bucket, ledger, logs and other processes never see a value."""
    assert ran.returncode == 0, ran.stderr
    known = [hashlib.sha256(each.encode()).hexdigest() for each in (CANARY, f"{CANARY}-2")]
    assert ran.stdout.splitlines()[3] == repr({"hashes": known, "files": [], "processes": []})
    assert CANARY not in ran.stdout + ran.stderr
    assert holding(account, house) == []


def test_a_secret_that_is_not_granted_is_refused_by_the_client_and_by_the_role(
    account: Account, house: House, ran: subprocess.CompletedProcess[str]
) -> None:
    """The one says how to grant it, before anything is rented; the other holds where nobody asked the first."""
    assert ran.returncode == 0, ran.stderr
    first, second = ran.stdout.splitlines()[4:]
    assert first.startswith("secrets.TOKEN: environment 'dev' grants its nodes no aws-sm:not-granted. Run: mlinfra-")
    grants = "--secret aws-sm:hf-token --secret ssm:/ours/wandb --secret aws-sm:not-granted"
    assert first.endswith(f"init aws --environment dev --region {REGION} --profile hardened {grants}")
    assert "secrets.TOKEN: aws-sm:not-granted: the node's role may not read it (AccessDeniedException)" in second
    asked = [
        each.status for each in account.aws.proxy.log
        if each.phase == "answered" and each.operation in {"GetSecretValue", "GetParameter"} and each.status != 200
    ]  # fmt: skip
    assert asked == [400]
    assert len(house.says("ps", "--all")) == 1


@pytest.fixture(scope="module")
def lease(house: House) -> str:
    """A lease that its client has left to itself."""
    return str(house.says("up", "cpu", "--platform", "aws", "--name", "left")["id"])


def test_a_node_of_a_hardened_environment_is_shut_in(account: Account, house: House, lease: str) -> None:
    """No public address and no route to the internet, its disk under the environment's key, secrets by endpoints."""
    made = json.loads((house.home.aws / "dev.json").read_text())
    (region,) = made["regions"]
    assert (made["profile"], made["egress"], region["public_ip"]) == ("hardened", "none", False)
    ec2 = account.client("ec2")
    (machine,) = account.of(lease)
    (instance,) = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"]
    assert instance["SubnetId"] in region["subnets"].values()
    addresses = [each.get("Association", {}).get("PublicIp") for each in instance["NetworkInterfaces"]]
    assert [instance.get("PublicIpAddress"), *addresses] == [None, None]
    volumes = [each["Ebs"]["VolumeId"] for each in instance["BlockDeviceMappings"]]
    assert {(each["Encrypted"], each["KmsKeyId"]) for each in ec2.describe_volumes(VolumeIds=volumes)["Volumes"]} == {
        (True, region["kms_key"])
    }
    assert account.client("kms").describe_key(KeyId=region["kms_key"])["KeyMetadata"]["KeyManager"] == "CUSTOMER"
    (endpoints, routes) = (
        ec2.describe_vpc_endpoints(Filters=[{"Name": "vpc-id", "Values": [instance["VpcId"]]}])["VpcEndpoints"],
        ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [instance["VpcId"]]}])["RouteTables"],
    )
    services = {(each["VpcEndpointType"], each["ServiceName"].rpartition(".")[2]) for each in endpoints}
    assert services == {("Gateway", "s3"), ("Interface", "secretsmanager"), ("Interface", "ssm")}
    assert not [way for each in routes for way in each["Routes"] if way.get("DestinationCidrBlock") == "0.0.0.0/0"]


def test_the_reaper_may_take_over_in_another_home_and_give_back(account: Account, house: House, lease: str) -> None:
    """The home that made it, and its Terraform state, are out of reach: tags decide, in two clean looks."""
    assert account.of(lease)
    kill_what_keeps(house)
    other = House(account, house.root.parent / "other")
    other.home.ensure()
    other.env |= taken(account, "reaper") | {"MLINFRA_LEDGER": house.env["MLINFRA_LEDGER"]}
    assert other.cli("reap").returncode == 0
    assert account.of(lease), "it lives until its deadline"
    given_back = other.cli("release", lease)
    assert given_back.returncode == 0, given_back.stderr
    assert "clean: the last two looks found nothing" in given_back.stdout
    until(lambda: not account.running(), "the machine has ended")
    assert not {each for each in account.tagged() if each.startswith("LaunchTemplates")}
    assert denied(account) == []
    refused = other.cli("up", "cpu", "--platform", "aws")
    assert refused.returncode == 1
    assert "lack the permission ssm:GetParameter" in refused.stderr
    assert not account.running()
