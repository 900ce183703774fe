"""The real Terraform and the real provider make a node on the emulator, which boots as `gpu-node` says, and end it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from mlinfra_prefect.terraform.engine import find_engine
from mlinfra_prefect.testing.aws import user_data

MODULE = Path(__file__).parents[2] / "terraform" / "modules" / "gpu-node"
AGENT = b'import json, os, sys\nprint("AGENT", sys.argv[1], os.environ["MLINFRA_NODE_ROOT"], sys.argv[2], flush=True)\n'
TAGS = {
    f"mlinfra-prefect:{name}": f"{name}-1"
    for name in ("ledger", "lease", "attempt", "flow-run", "owner", "environment", "deadline")
}


class Terraform:
    """One root module in a directory."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self.program = find_engine(None, cache_dir=directory / "engine").path
        self.directory, self.environment = directory, environment

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return subprocess.run(
            [self.program, *arguments, "-no-color"], cwd=self.directory, env=kept | self.environment, text=True,
            stdin=subprocess.DEVNULL, capture_output=True, timeout=240, check=False,
        )  # fmt: skip


@pytest.mark.slow
def test_a_node_of_the_real_module_boots_and_is_destroyed(aws, cloud, tmp_path):
    """Its user data is known byte for byte, its agent comes from the bucket, the fleet's errors reach the state."""
    cloud.profile("node")
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="artifacts")
    s3.put_object(Bucket="artifacts", Key="agents/agent.pyz", Body=AGENT)
    boot = {
        "schema": "mlinfra-prefect/boot/1", "agent_sha256": hashlib.sha256(AGENT).hexdigest(),
        "agent_url": s3.generate_presigned_url("get_object", {"Bucket": "artifacts", "Key": "agents/agent.pyz"}),
    }  # fmt: skip
    told = base64.b64encode(json.dumps(boot).encode()).decode()
    zones = ["us-east-1a", "us-east-1b"]
    aws.no_capacity(zones=zones[:1])
    group = cloud.ec2.create_security_group(
        GroupName="node", Description="node", VpcId=cloud.ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    )
    root = {
        "terraform": {"required_providers": {"aws": {"source": "hashicorp/aws", "version": "~> 5.0"}}},
        "provider": {"aws": {"region": "us-east-1"}},
        "module": {"node": {
            "source": str(MODULE), "name": "node-1", "tags": TAGS, "image_id": cloud.image, "boot": told,
            "candidates": [
                {"instance_type": "g5.xlarge", "zone": each, "subnet_id": cloud.subnets[each]} for each in zones
            ],
            "instance_profile": "node", "security_group_ids": [group["GroupId"]], "public_ip": True,
            "dead_man_minutes": 120,
        }},
        "output": {"ids": {"value": "${module.node.instance_ids}"}},
    }  # fmt: skip
    tmp_path.joinpath("main.tf.json").write_text(json.dumps(root))
    terraform = Terraform(tmp_path, aws.environment)
    began = terraform.run("init", "-input=false")
    if began.returncode and "hashicorp/aws" in began.stderr:
        why = "the AWS provider can be had neither from a registry nor from a local mirror"
        if os.environ.get("MLINFRA_REQUIRE_AWS_PROVIDER"):
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    assert began.returncode == 0, began.stderr
    applied = terraform.run("apply", "-auto-approve", "-input=false")
    assert applied.returncode == 0, applied.stderr
    (instance,) = aws.instances
    assert json.loads(terraform.run("output", "-json").stdout)["ids"]["value"] == [instance.id]
    assert (instance.zone, instance.user_data) == ("us-east-1b", "run")
    assert user_data.is_ours(instance.root.joinpath("user-data").read_bytes())
    assert {key: value for key, value in instance.tags.items() if not key.startswith("aws:")} == TAGS
    until = time.monotonic() + 20
    while "AGENT" not in aws.instances[0].console:
        assert time.monotonic() < until, aws.instances[0].console
        time.sleep(0.05)
    assert f"AGENT courier {instance.root}/node {told}" in aws.instances[0].console
    destroyed = terraform.run("destroy", "-auto-approve", "-input=false")
    assert destroyed.returncode == 0, destroyed.stderr
    aws.settle()
    assert aws.instances[0].state == "terminated"
    assert cloud.ec2.describe_launch_templates()["LaunchTemplates"] == []
    assert cloud.ec2.describe_volumes()["Volumes"] == []
    assert cloud.ec2.describe_network_interfaces()["NetworkInterfaces"] == []
