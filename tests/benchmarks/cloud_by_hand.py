"""What somebody would do on AWS who has Terraform and not us: the lease's own stack, and the root that people write.

The first is the very plan that a lease saved, applied from the state of `init` that the lease had: the difference is
what we add. The second is one `aws_instance` and a security group, with nothing switched off and nothing thought of.
What is made by hand is ended through the API and not by Terraform, because no line asks how long that takes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.terraform.environment import environment
from mlinfra_prefect.testing.emulator import REGION

SECONDS = 600.0
BARE = """
terraform {{
  required_providers {{
    aws = {{
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }}
  }}
}}

provider "aws" {{
  region      = "{region}"
  max_retries = var.tries
}}

variable "tries" {{
  default = 25 # the provider's own
}}

variable "zone" {{
  default = "{region}c"
}}

resource "aws_security_group" "node" {{
  name_prefix = "bench-"
  egress {{
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }}
}}

resource "aws_instance" "node" {{
  ami                    = "{image}"
  instance_type          = "{type}"
  availability_zone      = var.zone
  vpc_security_group_ids = [aws_security_group.node.id]
}}
"""


def no_provider(engine: Path) -> str:
    """Why the AWS provider cannot be had; empty where a registry or a local mirror has it."""
    with tempfile.TemporaryDirectory(prefix="mlb-") as place:
        hand = Hand(engine, Path(place))
        hand.env |= {"TF_REGISTRY_CLIENT_TIMEOUT": "15", "TF_REGISTRY_DISCOVERY_RETRY": "0"}
        root = hand.bare_root("ami-0", "t3.micro")
        try:
            hand.run(root, "init")
        except RuntimeError as error:
            told = next((line for line in str(error).splitlines() if line.startswith("Error: ")), "its init failed")
            return f"the AWS provider can be had neither from a registry nor from a local mirror ({told})"
    return ""


class Hand:
    """Terraform in the environment that ours gets.

    Args:
        engine: Terraform.
        scratch: where roots and states go.
    """

    def __init__(self, engine: Path, scratch: Path) -> None:
        self.engine, self.scratch = engine, scratch
        self.env = environment(os.environ, cloud_access.variables())

    def run(self, root: Path, verb: str, *options: str, fails: bool = False) -> float:
        """Seconds of one command.

        Raises:
            RuntimeError: it failed, or it did not where it should (`fails`).
        """
        argv = [str(self.engine), verb, "-input=false", "-no-color", *options]
        began = time.perf_counter()
        done = subprocess.run(
            argv, cwd=root, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=SECONDS, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        if (done.returncode != 0) != fails:
            raise RuntimeError(f"{argv} returned {done.returncode}: {done.stdout.decode(errors='replace')[-2000:]}")
        return seconds

    def fleet(self, root: Path, attempt: Path) -> tuple[float, float]:
        """Seconds of `plan` and of `apply` of a released lease's stack; what is applied is the plan that it saved.

        Args:
            root: the stack's root module, initialised.
            attempt: the stack's directory of the lease's attempt.
        """
        place = self._fresh("fleet")
        state = place / "terraform.tfstate"
        variables = f"-var-file={attempt / 'variables.tfvars.json'}"
        planned = self.run(root, "plan", variables, f"-state={state}", f"-out={place / 'plan'}")
        applied = self.run(root, "apply", f"-state={state}", str(attempt / "plan.tfplan"))
        outputs = json.loads(state.read_bytes())["outputs"]
        ec2 = client("ec2", REGION)
        ec2.delete_fleets(FleetIds=[outputs["fleet_id"]["value"]], TerminateInstances=True)
        ec2.delete_launch_template(LaunchTemplateId=outputs["launch_template_id"]["value"])
        return planned, applied

    def bare(self, attempt: Path) -> tuple[float, float, float]:
        """Seconds of `init`, `plan` and `apply` of the root that people write, for the same image and type."""
        root = self._bare_root(attempt)
        seconds = (
            self.run(root, "init"), self.run(root, "plan", "-out=plan"), self.run(root, "apply", "plan"),
        )  # fmt: skip
        _end(root)
        return seconds

    def zone_by_zone(self, attempt: Path, zones: Sequence[str]) -> float:
        """Seconds until that root is applied, where all zones but the last have no capacity; without its `init`.

        The provider tries a zone without capacity again for most of an hour (hashicorp/terraform-provider-aws#43193).
        Whoever tries zone by zone has to know that, and lets it try once.
        """
        root = self._bare_root(attempt)
        self.run(root, "init")
        *without, last = zones
        once = ("-auto-approve", "-var=tries=1")
        seconds = sum(self.run(root, "apply", *once, f"-var=zone={zone}", fails=True) for zone in without)
        seconds += self.run(root, "apply", *once, f"-var=zone={last}")
        _end(root)
        return seconds

    def bare_root(self, image: str, kind: str) -> Path:
        """The root that people write, in a directory of its own."""
        root = self._fresh("bare")
        (root / "main.tf").write_text(BARE.format(region=REGION, image=image, type=kind))
        return root

    def _bare_root(self, attempt: Path) -> Path:
        said = json.loads((attempt / "variables.tfvars.json").read_bytes())
        return self.bare_root(said["image_id"], said["candidates"][0]["instance_type"])

    def _fresh(self, name: str) -> Path:
        place = self.scratch / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        return place


def _end(root: Path) -> None:
    """End the instance of a bare root; its security group goes with the emulator."""
    resources = json.loads((root / "terraform.tfstate").read_bytes())["resources"]
    ids = [each["instances"][0]["attributes"]["id"] for each in resources if each["type"] == "aws_instance"]
    client("ec2", REGION).terminate_instances(InstanceIds=ids)
