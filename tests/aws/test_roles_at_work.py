"""Rule: the roles that an environment makes are enough for what they are for, in an account whose policies hold.

Creator: plan, lease, train, release. Reaper, in another home with the same ledger: take over and give back. In the
profile that is harder to please: `hardened`, whose nodes have no way out and whose disks and buckets have a key.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from aws_place import REGION, Account, House, house_in, require_provider, until

from mlinfra_prefect.testing.aws import Emulator

PROJECT = Path(__file__).parent / "project"
DATA = "our-datasets"
CLIENT = """
import numpy as np
import aws_work
from mlinfra_prefect import lease
with lease("cpu", platform="aws", max_minutes=15, grace_seconds=20) as infra:
    print(infra.run(aws_work.fit, np.arange(6.0)).metrics["mean"])
    print(infra.with_options(inputs={"rows": "s3://our-datasets/today/"}).run(aws_work.of_input, "rows"))
    print(infra.run(aws_work.version_of, "tiny"))
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
            said = made.says(
                "init", "aws", "--yes", "--region", REGION, "--profile", "hardened", "--input-bucket", DATA
            )
            made.env |= taken(account, "creator")
            made.env["MLINFRA_LEDGER"] = f"s3://{said['made']['state_bucket']}/ledger"
            yield made
        finally:
            patch.undo()


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


def test_the_creator_may_plan_lease_train_and_give_back(account: Account, house: House, tmp_path: Path) -> None:
    """Nothing is refused; inputs come from a granted bucket, and packages as the project's file says."""
    assert house.cli("plan", "cpu", "--platform", "aws").returncode == 0
    project = project_that_needs_a_package(tmp_path / "project")
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT], env=house.environment(PYTHONPATH=str(project)), cwd=project,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (0, "2.5\n1 2 3\n1.2\n"), ran.stderr
    assert not account.running()
    assert denied(account) == []


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
