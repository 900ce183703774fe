"""The gate on plans of the real engine and the real AWS provider, against the emulator: our stacks, and bad ones.

The recorded plans beside this file are of the same stacks; here it is seen that they still say what the provider says.
Where a stack has changed, ``MLINFRA_RECORD_PLANS=1`` records them again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from mlinfra_prefect.errors import PlanRejected, TerraformFailed
from mlinfra_prefect.terraform import Slots, Stack, find_engine, gate, idle_price, planned
from mlinfra_prefect.terraform.layout import Layout
from mlinfra_prefect.testing.emulator import MotoServer

HERE = Path(__file__).parent
HCL = HERE.parent.parent / "terraform"
TAGS = {
    "mlinfra-prefect:ledger": "led", "mlinfra-prefect:lease": "lea-1", "mlinfra-prefect:attempt": "1",
    "mlinfra-prefect:flow-run": "none", "mlinfra-prefect:owner": "ada", "mlinfra-prefect:environment": "dev",
    "mlinfra-prefect:deadline": "1700000000",
}  # fmt: skip
SHARED_TAGS = {"mlinfra-prefect:environment": "dev", "mlinfra-prefect:shared": "true"}
GPU = {
    "mlinfra": {
        "ledger_id": "led", "lease_id": "lea-1", "attempt": 1, "deadline": "1700000000", "environment": "dev",
        "tags": TAGS,
    },
    "region": "us-east-1", "candidates": [
        {"instance_type": "g6.xlarge", "zone": "us-east-1a", "subnet_id": "subnet-0a1b2c", "max_price": "1.0"},
        {"instance_type": "g6.xlarge", "zone": "us-east-1b", "subnet_id": "subnet-0a1b2d"},
    ],
    "image_id": "ami-0a1b2c", "instance_profile": "p", "security_group_ids": ["sg-0a1b2c"], "dead_man_minutes": 60,
    "boot": "e30=",
}  # fmt: skip
OTHERS = """
terraform {
  required_providers {
    aws = { source = "hashicorp/aws", version = "~> 5.0" }
  }
}
provider "aws" {
  region = "us-east-1"
  default_tags {
    tags = var.tags
  }
}
variable "tags" { type = map(string) }

resource "aws_instance" "bare" {
  ami           = "ami-0a1b2c"
  instance_type = "g6.xlarge"
}
resource "aws_instance" "good" {
  ami                                  = "ami-0a1b2c"
  instance_type                        = "g6.xlarge"
  instance_initiated_shutdown_behavior = "terminate"
  associate_public_ip_address          = false
  tags                                 = var.tags
  volume_tags                          = var.tags
  metadata_options { http_tokens = "required" }
  root_block_device { encrypted = true }
}
resource "aws_autoscaling_group" "group" {
  availability_zones = ["us-east-1a"]
  min_size           = 0
  max_size           = 1
  launch_template { id = "lt-0a1b2c" }
}
resource "aws_spot_instance_request" "spot" {
  ami           = "ami-0a1b2c"
  instance_type = "g6.xlarge"
}
resource "aws_security_group" "open" {
  ingress {
    protocol    = "tcp"
    from_port   = 22
    to_port     = 22
    cidr_blocks = ["0.0.0.0/0"]
  }
}
resource "aws_ebs_volume" "kept" {
  availability_zone = "us-east-1a"
  size              = 1
  encrypted         = true
  lifecycle { prevent_destroy = true }
  provisioner "local-exec" { command = "true" }
}
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    """Plans a root module with the real provider; returns the document, what is unresolved, and the module's copy."""
    home = tmp_path_factory.mktemp("gate")
    engine = find_engine(None, cache_dir=home / "engines")
    with MotoServer() as moto:

        def run(root, variables, within=None):
            directory = Path(tmp_path_factory.mktemp("stack"))
            stack = Stack(directory, engine=engine, slots=Slots(home / "slots", limit=1), env=moto.environment, grace=5)
            try:
                stack.prepare(root, variables, deadline=time.time() + 120, within=within)
            except TerraformFailed as error:
                if "provider" in error.message and "Failed to" in error.message:
                    why = "the AWS provider can be had neither from a registry nor from a local mirror"
                    if os.environ.get("MLINFRA_REQUIRE_AWS_PROVIDER"):
                        pytest.fail(why, pytrace=False)
                    pytest.skip(why)
                raise
            changes = stack.plan(deadline=time.time() + 120)
            return planned.load(changes.raw_path), changes.unresolved, Layout(directory).workdir

        yield run


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Our Terraform without the backend of the shared stack: no bucket is needed to plan it."""
    directory = Path(tmp_path_factory.mktemp("hcl")) / "terraform"
    shutil.copytree(HCL, directory)
    (directory / "stacks" / "aws-shared" / "backend.tf").unlink(missing_ok=True)
    return directory


def places(findings) -> set[tuple[str, str]]:
    return {(finding.address, finding.rule) for finding in findings}


def recorded(name):
    return json.loads((HERE / "plans" / f"{name}.json").read_text())


def compare(document, name):
    """The recorded plan is of the same resources, and costs the same; or it is recorded now."""
    if os.environ.get("MLINFRA_RECORD_PLANS"):
        (HERE / "plans" / f"{name}.json").write_text(json.dumps(trimmed(document), indent=1) + "\n")
    known = recorded(name)
    assert addresses(document) == addresses(known)
    assert idle_price.idle(document).lines == idle_price.idle(known).lines


def addresses(document) -> list[tuple[str, ...]]:
    return [(item["address"], *item["change"]["actions"]) for item in document["resource_changes"]]


LONG = {"user_data": "IyEvYmluL2Jhc2gK", "policy": "{}", "assume_role_policy": "{}", "dashboard_body": "{}",
        "filename": "dead-man.zip"}  # fmt: skip
REFERRING = {"aws_ec2_fleet", "aws_launch_template", "aws_security_group"}


def trimmed(document) -> dict:
    """What the gate and the price read of a plan, without long texts and what is not set."""

    def change(item):
        after = item["change"]["after"]
        kept = after and {
            key: LONG.get(key, value) for key, value in after.items() if value is not None or key.startswith("tags")
        }
        words = {key: item["change"][key] for key in ("actions", "after_unknown")}
        return {**item, "change": {**words, "after": kept}}

    def block(item):
        kept = ("address", "mode", "type", "name", *(("expressions",) if item["type"] in REFERRING else ()))
        return {key: item[key] for key in kept if key in item}

    def module(content):
        calls = {
            name: {"source": call["source"], "module": module(call["module"])}
            for name, call in content.get("module_calls", {}).items()
        }
        return {"resources": [block(item) for item in content.get("resources", [])], "module_calls": calls}

    configuration = document["configuration"]
    return {
        **{key: document[key] for key in ("format_version", "terraform_version", "complete", "errored")},
        "resource_changes": [change(item) for item in document["resource_changes"]],
        "configuration": {
            "provider_config": configuration["provider_config"], "root_module": module(configuration["root_module"])
        },
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("market", "public"), [("spot", True), ("on-demand", False)])
def test_the_stack_of_an_attempt_passes(plan, stacks, market, public):
    """With its seven tags, in both markets; and the recorded plan is of this stack."""
    variables = {**GPU, "market": market, "public_ip": public}
    document, unresolved, module = plan(stacks / "stacks" / "aws-gpu", variables, within=stacks)
    policy = gate.Policy(required_tags=TAGS, egress="internet" if public else "none", max_instances=1)
    gate.enforce(document, policy, unresolved=unresolved, module=module)
    if market == "spot":
        compare(document, "aws-gpu")
    with pytest.raises(PlanRejected, match="tags-wrong"):
        gate.enforce(document, gate.Policy(required_tags={**TAGS, "mlinfra-prefect:lease": "lea-2"}))


@pytest.mark.slow
@pytest.mark.parametrize(("profile", "egress"), [("default", "internet"), ("hardened", "mirror")])
def test_the_shared_stack_passes_and_has_its_price(plan, stacks, tmp_path, profile, egress):
    """The default profile costs less than a dollar a month at rest; the hardened one its endpoints and its key."""
    archive = tmp_path / "dead-man.zip"
    archive.write_bytes(b"nothing runs it")
    digest = base64.b64encode(hashlib.sha256(archive.read_bytes()).digest()).decode()
    variables = {
        "environment": "dev", "region": "us-east-1", "zones": ["us-east-1a", "us-east-1b"], "profile": profile,
        "egress": egress, "state_bucket": "mlinfra-prefect-state-dev", "dashboard": True,
        "artifact_bucket": "mlinfra-prefect-artifacts-dev", "dead_man": {"archive": str(archive), "sha256": digest},
    }  # fmt: skip
    document, unresolved, module = plan(stacks / "stacks" / "aws-shared", variables, within=stacks)
    policy = gate.Policy.shared(SHARED_TAGS, profile=profile, egress=egress)
    gate.enforce(document, policy, unresolved=unresolved, module=module)
    price = idle_price.idle(document)
    assert price.unknown == ()
    compare(document, f"aws-shared-{profile}")
    assert (price.usd_per_month < idle_price.DEFAULT_LIMIT_USD) == (profile == "default")


def recorded_price(name) -> float:
    return idle_price.idle(recorded(name)).usd_per_month


@pytest.mark.slow
def test_what_people_write_is_refused_for_what_is_wrong_with_it(plan, write_own):
    """An instance, a group, a spot request, an open port, a kept disk: all of it is said, and the good one passes."""
    document, unresolved, module = plan(write_own, {"tags": TAGS})
    found = gate.check(document, gate.Policy(required_tags=TAGS), unresolved=unresolved)
    assert places(found) >= {
        ("aws_instance.bare", "tags-missing"), ("aws_instance.bare", "imds-v1"),
        ("aws_instance.bare", "shutdown-stops"), ("aws_instance.bare", "disk-unencrypted"),
        ("aws_autoscaling_group.group", "meter-unknown"), ("aws_autoscaling_group.group", "tags-missing"),
        ("aws_autoscaling_group.group", "template-not-in-plan"),
        ("aws_spot_instance_request.spot", "tags-not-at-launch"), ("aws_spot_instance_request.spot", "meter-unknown"),
        ("aws_security_group.open", "ingress-refused"), ("aws_security_group.open", "public-ingress"),
        ("aws_ebs_volume.kept", "program-runs"),
    }  # fmt: skip
    assert "aws_instance.good" not in {finding.address for finding in found}
    # Default tags do reach the instance itself, and not its disks.
    missing = [item.message for item in found if item.address == "aws_instance.bare" and item.rule == "tags-missing"]
    assert missing == [message for message in missing if "volume_tags" in message] != []
    with pytest.raises(PlanRejected, match="prevent-destroy"):
        gate.enforce(document, gate.Policy(), module=module)


@pytest.fixture
def write_own(write_module):
    return write_module(OTHERS)


# --- the recorded plans, which need no provider ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "profile", "egress"),
    [("aws-shared-default", "default", "internet"), ("aws-shared-hardened", "hardened", "mirror")],
)
def test_the_recorded_shared_plans_pass(name, profile, egress):
    """With the tags of an environment, and with those of another one they do not."""
    assert gate.check(recorded(name), gate.Policy.shared(SHARED_TAGS, profile=profile, egress=egress)) == ()
    other = {**SHARED_TAGS, "mlinfra-prefect:environment": "prod"}
    told = gate.check(recorded(name), gate.Policy.shared(other, profile=profile, egress=egress))
    assert {finding.rule for finding in told} == {"tags-wrong"}


def test_the_default_profile_is_nearly_free_and_the_hardened_one_has_its_price():
    """Two endpoints in two zones each, and one key."""
    assert recorded_price("aws-shared-default") < idle_price.DEFAULT_LIMIT_USD
    assert recorded_price("aws-shared-hardened") == pytest.approx(2 * 2 * 0.01 * 730 + 1.0)
    assert idle_price.idle(recorded("aws-shared-hardened")).unknown == ()


def test_the_hardened_plan_breaks_the_default_policy():
    """Its endpoints are reached by an ingress rule, which only the hardened profile may have."""
    told = gate.check(recorded("aws-shared-hardened"), gate.Policy.shared(SHARED_TAGS))
    assert {finding.rule for finding in told} == {"ingress-refused"}


def test_the_default_plan_breaks_a_closed_egress():
    """It has a gateway to the internet."""
    told = gate.check(recorded("aws-shared-default"), gate.Policy.shared(SHARED_TAGS, egress="none"))
    assert [(finding.rule, finding.address.split(".")[-1]) for finding in told] == [("public-ip", "this[0]")]
