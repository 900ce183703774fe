"""What somebody would do who has Terraform and not us: the same root, applied by hand.

An apply by hand uses the very plan that a lease saved, against a state that is as empty as the lease's was, so the
difference is what we add and nothing else. Terraform gets the environment that ours gets.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

from mlinfra_prefect.agent.identity import is_alive
from mlinfra_prefect.terraform.environment import environment
from tests.benchmarks.side_by_side import timed


class ByHand:
    """The root of one released lease, to be applied again.

    Args:
        engine: Terraform.
        attempt: the stack's directory of the lease's attempt (`Attempt.directory`).
        scratch: where states and copies go.
    """

    def __init__(self, engine: Path, attempt: Path, scratch: Path) -> None:
        self.engine, self.attempt = engine, attempt
        self.scratch = scratch
        self.spec = json.loads((attempt.parent / "agent-spec.json").read_bytes())
        self.env = environment(os.environ, {})

    def apply_saved_plan(self) -> float:
        """Seconds of `apply` of the lease's own plan."""
        root, state = self.attempt / "root", self._fresh() / "terraform.tfstate"
        seconds = self._run(root, "apply", f"-state={state}", str(self.attempt / "plan.tfplan"))
        self._destroy(root, f"-state={state}")
        return seconds

    def init_and_apply(self) -> float:
        """Seconds of `init` and `apply` from nothing."""
        root = self._fresh() / "root"
        root.mkdir()
        for file in self.attempt.joinpath("root").glob("*.tf"):
            shutil.copy(file, root)
        seconds = self._run(root, "init") + self._run(root, "apply", "-auto-approve", self._variables)
        self._destroy(root)
        return seconds

    @property
    def _variables(self) -> str:
        return f"-var-file={self.attempt / 'variables.tfvars.json'}"

    def _fresh(self) -> Path:
        """An empty scratch directory; the agent's directory and its grant as they were before its lease was applied."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(parents=True)
        node = Path(self.spec["node_dir"])
        shutil.rmtree(node, ignore_errors=True)
        node.mkdir(mode=0o700)
        grant = Path(self.spec["grant"])
        grant.touch(mode=0o600)
        grant.write_text(self.spec["grant_token"])
        return self.scratch

    def _run(self, root: Path, verb: str, *options: str) -> float:
        return timed([self.engine, verb, "-input=false", "-no-color", *options], cwd=root, env=self.env)

    def _destroy(self, root: Path, *options: str) -> None:
        said = json.loads(Path(self.spec["node_dir"], "agent.json").read_bytes())
        self._run(root, "destroy", "-auto-approve", self._variables, *options)
        until = time.monotonic() + 10
        while is_alive(int(said["pid"]), str(said["start_time"])):
            if time.monotonic() > until:
                raise RuntimeError("the agent lives on after a destroy by hand")
            time.sleep(0.01)
