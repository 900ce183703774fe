"""An AWS account of one test's own, behind the fault proxy; what it plants and counts uses none of our code."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from moto.ec2.models import ec2_backends

from mlinfra_prefect.testing.emulator import MotoServer

REGION, OTHER_REGION = "us-east-1", "eu-west-1"
LEDGER, LEASE, ENVIRONMENT = "7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11", "l0f3c5d7e9b1a2c4d6e8f-1", "dev"
DEADLINE = 1_767_225_600
TRIES = 3
_numbers = itertools.count(1)


def tagged(**changed: str) -> dict[str, str]:
    """The seven tags, written here once more: the tests must not read what they judge."""
    values = {
        "ledger": LEDGER, "lease": LEASE, "attempt": "1", "flow-run": "none", "owner": "ada",
        "environment": ENVIRONMENT, "deadline": str(DEADLINE),
    }  # fmt: skip
    return {f"mlinfra-prefect:{key}": value for key, value in (values | changed).items()}


SHARED = {"mlinfra-prefect:environment": ENVIRONMENT, "mlinfra-prefect:shared": "true"}


class Account:
    """An account: plants things, and says what lives in it."""

    def __init__(self, server: MotoServer, number: str) -> None:
        self.server, self.number = server, number
        self._images: dict[str, str] = {}

    def clients(self, service: str, region: str) -> Any:
        """What our code is given."""
        return client(self.server.url, service, region)

    def calls(self, since: int = 0) -> list[str]:
        """The operations that were asked for, in order."""
        seen = [each for each in self.server.proxy.log if each.phase == "received" and each.request > since]
        return [each.operation for each in seen]

    def counted(self, work: Callable[[], Any]) -> tuple[Any, list[str]]:
        """Do some work, and return the operations that it asked for."""
        before = self.server.proxy.requests
        result = work()
        return result, self.calls(before)

    # --- planting ----------------------------------------------------------------------------------------------------

    def image(self, region: str = REGION) -> str:
        if region not in self._images:
            self._images[region] = self.clients("ec2", region).register_image(Name="of a test")["ImageId"]
        return self._images[region]

    def subnet(self, region: str = REGION) -> dict[str, Any]:
        return self.clients("ec2", region).describe_subnets()["Subnets"][0]

    def template(self, tags: dict[str, str], region: str = REGION) -> str:
        data = {
            "ImageId": self.image(region), "InstanceType": "m5.large",
            "TagSpecifications": spec(tags, "instance", "volume", "network-interface", "spot-instances-request"),
        }  # fmt: skip
        made = self.clients("ec2", region).create_launch_template(
            LaunchTemplateName=f"t{next(_numbers)}", LaunchTemplateData=data,
            TagSpecifications=spec(tags, "launch-template"),
        )  # fmt: skip
        return made["LaunchTemplate"]["LaunchTemplateId"]

    def fleet(
        self, tags: dict[str, str], *, market: str = "on-demand", count: int = 1, region: str = REGION
    ) -> tuple[str, tuple[str, ...]]:  # fmt: skip
        """An instant fleet as the stack makes it: its id, and those of its instances."""
        override = {"InstanceType": "m5.large", "SubnetId": self.subnet(region)["SubnetId"]}
        launch = {"LaunchTemplateSpecification": {"LaunchTemplateId": self.template(tags, region), "Version": "1"}}
        made = self.clients("ec2", region).create_fleet(
            Type="instant", LaunchTemplateConfigs=[{**launch, "Overrides": [override]}],
            TargetCapacitySpecification={"TotalTargetCapacity": count, "DefaultTargetCapacityType": market},
            TagSpecifications=spec(tags, "fleet"),
        )  # fmt: skip
        return made["FleetId"], tuple(one for each in made["Instances"] for one in each["InstanceIds"])

    def instance(self, tags: dict[str, str], *, region: str = REGION, protected: bool = False) -> str:
        made = self.clients("ec2", region).run_instances(
            ImageId=self.image(region), InstanceType="m5.large", MinCount=1, MaxCount=1,
            TagSpecifications=spec(tags, "instance"),
        )  # fmt: skip
        instance = made["Instances"][0]["InstanceId"]
        if protected:  # moto keeps the protection, and reads it from no request
            ec2_backends[self.number][region].get_instance(instance).disable_api_termination = True
        return instance

    def volume(self, tags: dict[str, str], *, region: str = REGION) -> str:
        made = self.clients("ec2", region).create_volume(
            AvailabilityZone=f"{region}a", Size=1, TagSpecifications=spec(tags, "volume")
        )
        return made["VolumeId"]

    def group(self, tags: dict[str, str], *, region: str = REGION) -> str:
        made = self.clients("ec2", region).create_security_group(
            GroupName=f"g{next(_numbers)}", Description="of a test", VpcId=self.subnet(region)["VpcId"],
            TagSpecifications=spec(tags, "security-group"),
        )  # fmt: skip
        return made["GroupId"]

    def interface(self, tags: dict[str, str], *, region: str = REGION, groups: Iterable[str] = ()) -> str:
        made = self.clients("ec2", region).create_network_interface(
            SubnetId=self.subnet(region)["SubnetId"], Groups=list(groups),
            TagSpecifications=spec(tags, "network-interface"),
        )  # fmt: skip
        return made["NetworkInterface"]["NetworkInterfaceId"]

    def address(self, tags: dict[str, str], *, region: str = REGION) -> str:
        made = self.clients("ec2", region).allocate_address(Domain="vpc", TagSpecifications=spec(tags, "elastic-ip"))
        return made["AllocationId"]

    def everything(self, tags: dict[str, str], region: str = REGION) -> set[str]:
        """One of each kind, a spot fleet and an on-demand one among them; their ids."""
        before = self.living(region)
        self.fleet(tags, region=region)
        self.fleet(tags, market="spot", region=region)
        group = self.group(tags, region=region)
        self.interface(tags, region=region, groups=[group])
        self.volume(tags, region=region)
        self.address(tags, region=region)
        return self.living(region) - before

    # --- judging -----------------------------------------------------------------------------------------------------

    def living(self, region: str = REGION) -> set[str]:
        """Every id of the kinds that we sweep, tagged or not, that exists and has not ended."""
        ec2 = self.clients("ec2", region)
        found = {
            each["InstanceId"]
            for group in ec2.describe_instances()["Reservations"]
            for each in group["Instances"]
            if each["State"]["Name"] in {"pending", "running", "stopping", "stopped"}
        }
        fleets = ec2.describe_fleets()["Fleets"]
        found |= {each["FleetId"] for each in fleets if not each["FleetState"].startswith("deleted")}
        requests = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
        found |= {each["SpotInstanceRequestId"] for each in requests if each["State"] in {"open", "active"}}
        found |= {each["VolumeId"] for each in ec2.describe_volumes()["Volumes"]}
        interfaces = ec2.describe_network_interfaces()["NetworkInterfaces"]
        # moto keeps the interfaces of ended instances, AWS does not.
        found |= {
            each["NetworkInterfaceId"] for each in interfaces if not (each.get("Attachment") or {}).get("InstanceId")
        }
        found |= {each["GroupId"] for each in ec2.describe_security_groups()["SecurityGroups"]}
        found |= {each["AllocationId"] for each in ec2.describe_addresses()["Addresses"]}
        return found | {each["LaunchTemplateId"] for each in ec2.describe_launch_templates()["LaunchTemplates"]}


@functools.cache
def client(url: str, service: str, region: str) -> Any:
    """One for all tests of a module: it takes longer to make than a test to run."""
    return boto3.session.Session().client(
        service, region_name=region, endpoint_url=url, aws_access_key_id="testing", aws_secret_access_key="testing",
        config=Config(retries={"mode": "standard", "total_max_attempts": TRIES}, read_timeout=5),
    )  # fmt: skip


def spec(tags: dict[str, str], *kinds: str) -> list[dict[str, Any]]:
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    return [{"ResourceType": kind, "Tags": pairs} for kind in kinds]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[MotoServer, list[str]]]:
    """moto, and which account the next request is of."""
    current = [""]

    def behind(application: Any) -> Any:
        def of_account(environ: dict[str, Any], start: Any) -> Any:
            return application({**environ, "HTTP_X_MOTO_ACCOUNT_ID": current[0]}, start)

        return of_account

    with MotoServer(behind=behind) as made:
        yield made, current


@pytest.fixture
def account(server: tuple[MotoServer, list[str]], monkeypatch: pytest.MonkeyPatch) -> Account:
    """An empty account behind a proxy without faults; nobody else's tests see it."""
    made, current = server
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # hundreds, and one is enough
    made.proxy.clear()
    current[0] = f"7{next(_numbers):011d}"
    return Account(made, current[0])
