"""Runs the modules with the real engine and the real AWS provider, in a copy: nothing is written into the checkout.

The provider is looked for once on a host, in a registry or in a local mirror, and every root links to what was found.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlinfra_prefect.terraform.engine import Engine
from mlinfra_prefect.terraform.environment import environment

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = CHECKOUT / "terraform"
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or CHECKOUT / ".cache")
AWS_MODULES = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.glob("modules/*"))
AWS_STACKS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.glob("stacks/aws-*"))
REQUIRED = "MLINFRA_REQUIRE_AWS_PROVIDER"
"""Set where the provider has to be there: then its absence fails what it would otherwise skip."""
NO_PROVIDER = "the AWS provider can be had neither from a registry nor from a local mirror"
SECONDS = 240
PROVIDER = """
terraform {
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.0"
    }
  }
}
"""
TAGS = {
    f"mlinfra-prefect:{key}": value
    for key, value in {
        "ledger": "ledger-1", "lease": "lease-1", "attempt": "1", "flow-run": "none", "owner": "ada",
        "environment": "dev", "deadline": "1900000000",
    }.items()
}  # fmt: skip
ACCOUNT = "123456789012"
"""moto's."""


class NoProvider(Exception):
    """There is no AWS provider on this host, and none to be fetched."""


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    returncode: int
    out: str


@dataclass
class Modules:
    """A copy of the modules, and Terraform in it."""

    engine: Engine
    place: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shutil.copytree(SOURCES, self.place / "terraform")

    def run(self, root: Path, *arguments: str, env: dict[str, str] | None = None) -> Ended:
        """Run Terraform in a directory; any exit status is returned."""
        whole = {**environment(os.environ, self.env), **(env or {})}
        done = subprocess.run(
            [self.engine.path, *arguments], cwd=root, env=whole, stdin=subprocess.DEVNULL, timeout=SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return Ended(done.returncode, done.stdout)

    def must(self, root: Path, *arguments: str, env: dict[str, str] | None = None) -> str:
        """Run Terraform in a directory; it has to succeed."""
        done = self.run(root, *arguments, env=env)
        assert done.returncode == 0, f"terraform {' '.join(arguments)} in {root}:\n{done.out}"
        return done.out

    def provider(self) -> Path:
        """The directory of provider packages, found once on this host.

        Raises:
            NoProvider: there is none.
        """
        root = CACHE / "terraform-provider"
        root.mkdir(parents=True, exist_ok=True)
        found = root / ".terraform" / "providers"
        with FileLock(root / "lock"):
            if not any(found.glob("*/*/*/*/*/terraform-provider-aws*")):
                (root / "main.tf").write_text(PROVIDER)
                asked = self.run(
                    root, "init", "-input=false", "-no-color", "-backend=false", "-upgrade",
                    env={"TF_REGISTRY_CLIENT_TIMEOUT": "15", "TF_REGISTRY_DISCOVERY_RETRY": "0"},
                )  # fmt: skip
                if asked.returncode:
                    raise NoProvider(asked.out)
        return found

    def init(self, root: Path) -> None:
        """Initialise a directory; its backend is left out."""
        (root / "backend.tf").unlink(missing_ok=True)
        self.must(root, "init", "-input=false", "-no-color", f"-plugin-dir={self.provider()}")

    def root(self, name: str, text: str) -> Path:
        """A root module of the tests' own beside the copy, as a reader of the READMEs has it."""
        directory = self.place / name
        directory.mkdir()
        (directory / "terraform").symlink_to(self.place / "terraform", target_is_directory=True)
        (directory / "main.tf").write_text(text)
        return directory

    def plan(self, root: Path, variables: dict[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of a plan of an initialised directory."""
        options = ["-input=false", "-no-color", "-out=plan"]
        if variables is not None:
            (root / "variables.json").write_text(json.dumps(variables))
            options.append("-var-file=variables.json")
        self.must(root, "plan", *options)
        return dict(json.loads(self.must(root, "show", "-json", "plan")))


def planned(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The resources that a plan creates: address, type and values."""
    return [
        {"address": each["address"], "type": each["type"], "values": each["change"]["after"]}
        for each in document["resource_changes"]
        if each["mode"] == "managed" and each["change"]["actions"] == ["create"]
    ]


def examples() -> dict[str, str]:
    """The block of each README of a module or stack for AWS, by its directory."""
    found = {}
    for name in (*AWS_MODULES, *AWS_STACKS):
        blocks = re.findall(r"^```hcl\n(.*?)^```", (SOURCES / name / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        assert len(blocks) == 1, f"{name}/README.md has {len(blocks)} blocks of HCL, and needs one"
        found[name] = blocks[0]
    return found


def environment_variables(**changed: Any) -> dict[str, Any]:
    """The variables of stack aws-shared, in the default profile."""
    return {
        "environment": "dev", "region": "us-east-1", "zones": ["us-east-1a", "us-east-1b", "us-east-1c"],
        "state_bucket": f"mlinfra-prefect-state-dev-{ACCOUNT}-us-east-1",
        "artifact_bucket": f"mlinfra-prefect-artifacts-dev-{ACCOUNT}-us-east-1",
        "dead_man": {"archive": "dead-man.zip", "sha256": "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="},
        "dashboard": True, **changed,
    }  # fmt: skip
