"""The stack of an attempt for real: applied by our own driver against the emulated AWS, destroyed without a rest."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from modules_harness import CACHE, SOURCES, TAGS, Modules

from mlinfra_prefect.terraform import Slots, Stack, gate, planned
from mlinfra_prefect.testing.emulator import REGION, MotoServer

PROFILE = "mlinfra-prefect-node-dev"


@pytest.fixture(scope="module")
def client(moto: MotoServer) -> Callable[[str], Any]:
    """A client of the emulated account."""
    keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    return lambda service: boto3.client(service, endpoint_url=moto.url, region_name=REGION, **keys)


@pytest.fixture(scope="module")
def variables(client: Callable[[str], Any]) -> dict[str, Any]:
    """What the stack is told, for the account's default network."""
    iam, ec2 = client("iam"), client("ec2")
    iam.create_instance_profile(InstanceProfileName=PROFILE)
    iam.create_role(RoleName=PROFILE, AssumeRolePolicyDocument="{}")
    iam.add_role_to_instance_profile(InstanceProfileName=PROFILE, RoleName=PROFILE)
    subnets = sorted((each["AvailabilityZone"], each["SubnetId"]) for each in ec2.describe_subnets()["Subnets"])[:2]
    return {
        "mlinfra": {
            "ledger_id": "ledger-1", "lease_id": "lease-1", "attempt": 1, "deadline": "1900000000.0",
            "environment": "dev", "tags": TAGS,
        },
        "region": REGION,
        "candidates": [
            {"instance_type": kind, "zone": zone, "subnet_id": subnet}
            for kind in ("g5.xlarge", "g6.xlarge") for zone, subnet in subnets
        ],
        "image_id": ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        "instance_profile": PROFILE,
        "security_group_ids": [ec2.describe_security_groups()["SecurityGroups"][0]["GroupId"]],
        "public_ip": True, "dead_man_minutes": 60, "boot": "e30=",
    }  # fmt: skip


@pytest.fixture
def stack(modules: Modules, tmp_path: Path) -> Stack:
    """An attempt's stack, as a lease has it."""
    return Stack(
        tmp_path / "stack", engine=modules.engine, slots=Slots(tmp_path / "slots", limit=1), env=modules.env, grace=5
    )


def prepare(stack: Stack, variables: dict[str, Any]) -> float:
    deadline = time.time() + 240
    stack.prepare(
        SOURCES / "stacks" / "aws-gpu",
        variables,
        deadline=deadline,
        within=SOURCES,
        init_cache=CACHE / "terraform-init",
    )
    return deadline


def living(client: Callable[[str], Any]) -> dict[str, list[dict[str, Any]]]:
    """Everything in the account that an attempt can have, tagged or not."""
    ec2 = client("ec2")
    machines = [each for found in ec2.describe_instances()["Reservations"] for each in found["Instances"]]
    return {
        "instances": [each for each in machines if each["State"]["Name"] not in {"shutting-down", "terminated"}],
        "volumes": ec2.describe_volumes()["Volumes"],
        "fleets": [each for each in ec2.describe_fleets()["Fleets"] if not each["FleetState"].startswith("deleted")],
        "templates": ec2.describe_launch_templates()["LaunchTemplates"],
    }


def tags(thing: dict[str, Any]) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in thing["Tags"] if not each["Key"].startswith("aws:")}


@pytest.mark.parametrize("market", ["on-demand", "spot"])
def test_an_attempt_is_tagged_from_birth_and_leaves_nothing(
    market: str, stack: Stack, variables: dict[str, Any], client: Callable[[str], Any]
) -> None:
    """The outputs name what exists, everything billed carries all seven tags, and a destroy takes it all."""
    deadline = prepare(stack, {**variables, "market": market})
    changes = stack.plan(deadline=deadline)
    gate.enforce(planned.load(changes.raw_path), gate.Policy(required_tags=TAGS), unresolved=changes.unresolved)
    assert living(client) == {"instances": [], "volumes": [], "fleets": [], "templates": []}

    outputs = stack.apply(deadline=deadline).outputs
    found = living(client)
    (machine,) = found["instances"]
    assert outputs["nodes"] == [{"id": machine["InstanceId"], "platform": "aws", "region": REGION}]
    assert [each["FleetId"] for each in found["fleets"]] == [outputs["fleet_id"]]
    assert [each["LaunchTemplateId"] for each in found["templates"]] == [outputs["launch_template_id"]]
    for kind, things in found.items():
        assert [tags(each) for each in things] == [TAGS] * len(things), kind
        assert things, kind
    assert machine["InstanceType"] in {"g5.xlarge", "g6.xlarge"}

    assert stack.destroy(deadline=deadline).remaining == ()
    assert living(client) == {"instances": [], "volumes": [], "fleets": [], "templates": []}
