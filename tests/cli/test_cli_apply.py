"""`apply FILE` and `plan FILE --check`: what a CI job relies on. The endpoints are records: no server is started."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlinfra_prefect.cli.app import app
from mlinfra_prefect.lifecycle.declaration_file import read_declaration
from mlinfra_prefect.model.endpoint import Version
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.records import MOMENT, SHA256, sample_artifact

EXAMPLE = Path(__file__).parents[2] / "examples" / "reconcile"
SERVING = Version(
    version=1, share=100, state="serving", sha256=SHA256, artifact=sample_artifact(), promoted_at=MOMENT
)  # fmt: skip
KEYS = {"endpoint", "environment", "field", "from", "to", "action", "done"}


@pytest.fixture
def declare(cli: Any, tmp_path: Path) -> Callable[[str], str]:
    """Writes a declaration and returns its path."""

    def declare(text: str) -> str:
        path = tmp_path / "endpoints.yaml"
        path.write_text(text)
        return str(path)

    return declare


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


def retire_seconds(cli: Any, record: str) -> float:
    told = json.loads(cli("show", record, "--json").stdout)
    return float(told["record"]["serving"]["retire_seconds"])


def test_check_ends_with_2_on_changes_and_with_0_on_none(cli, write, declare):
    """`plan --check` and `apply --check` say the same and change nothing; a plan without it has not failed."""
    churn = write("endpoint", "churn", versions=(SERVING,))
    write("endpoint", "stray", versions=(SERVING,))
    path = declare("endpoints:\n- name: churn\n  retire_seconds: 600\n  replicas: 2\n")
    for verb in ("plan", "apply"):
        done = cli(verb, path, "--check", "--json")
        assert (done.returncode, done.stderr) == (2, "")
        told = json.loads(done.stdout)
        assert told["applied"] is False
        assert all(set(change) == KEYS for change in told["changes"])
        assert [(each["field"], each["from"], each["to"], each["action"]) for each in told["changes"]] == [
            ("retire_seconds", 30.0, 600.0, "set"),
            ("replicas", 1, 2, "rollout"),
        ]
        assert [each["endpoint"] for each in told["undeclared"]] == ["stray"]
    done = cli("plan", path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 changes to be applied." in done.stdout
    assert "declare them: stray." in done.stdout
    assert retire_seconds(cli, churn) == 30
    path = declare("endpoints:\n- name: churn\n  retire_seconds: 30\n  shares: {1: 100}\n")
    done = cli("plan", path, "--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("No changes")


def test_what_is_applied_is_not_applied_again(cli, write, declare):
    """The second time there are no changes, and both times the exit code is 0."""
    churn = write("endpoint", "churn", versions=(SERVING,))
    path = declare("endpoints:\n- name: churn\n  retire_seconds: 600\n  expires_minutes: 60\n")
    first = cli("apply", path, "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["applied"] is True
    assert [(each["field"], each["done"]) for each in told["changes"]] == [
        ("retire_seconds", True),
        ("expires_minutes", True),
    ]
    assert retire_seconds(cli, churn) == 600
    again = cli("apply", path)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.startswith("No changes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("endpoints:\n- {name: churn, retire_seconds: 9}\n- {name: churn, replicas: two}\n", "churn.replicas: "),
        ("endpoints:\n- {name: churn, retire_seconds: '9'}\n", "churn.retire_seconds: "),
        ("endpoints:\n- {name: churn, replicas: true}\n", "churn.replicas: "),
        ("endpoints:\n- {name: churn, replica: 2}\n", "churn.replica: is not a field"),
        ("endpoints:\n- {name: churn, replicas: }\n", "churn.replicas: is empty"),
        ("endpoints:\n- {name: churn, shares: {1: 50, 2: 40}}\n", "churn.shares: must sum to 100"),
        ("endpoints:\n- {name: churn, shares: {1: 100, 2: 0}}\n", "churn.shares: 0 is not a percentage"),
        ("endpoints:\n- {name: churn, retire_seconds: 9, shares: {7: 100}}\n", "churn.shares: there is no version 7"),
        ("endpoints:\n- {name: churn, model: a0, shares: {1: 100}}\n", "churn.shares: cannot stand beside model"),
        ("endpoints:\n- {name: churn, expires: never, expires_minutes: 5}\n", "churn.expires: cannot stand beside"),
        ("endpoints:\n- {name: churn, retire_seconds: 9}\n- {name: churn}\n", "'churn' of environment 'dev' is"),
        ("endpoints:\n- name: churn\n  replicas: 2\n  replicas: 3\n", "line 4: 'replicas' is there twice"),
        ("endpoints:\n- {name: churn, retire_seconds: 9}\n- {name: nowhere}\n", "nowhere: there is no such endpoint"),
        ("endpoints:\n- {name: churn, retire_seconds: 9}\n- {name: new, model: a1}\n", "new.model: Artifact 'a1'"),
        ("endpoints:\n- {name: churn, environment: moon}\n", "churn.environment: 'moon' is not an environment"),
        ("endpoints: [&a {name: churn, retire_seconds: 9}, *a]\n", "aliases"),
        ("endpoints: []\n", "must be a list, and not an empty one"),
        ("endpoints: [churn]\n", "endpoints.1: must be fields of an endpoint"),
        ("endpoints: [{name: churn}]\nendpoint: 1\n", "endpoint: is not a field"),
        ("endpoints:\n- {name: churn, replicas: !!int ''}\n", "cannot be read"),
        ("endpoints:\n- {name: 2026-99-99}\n", "cannot be read"),
        ("endpoints:\n- {name: " + "x" * 70_000 + "}\n", "bytes"),
        ("accelerator: cpu\n", "declares no endpoints"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence_and_nothing_is_changed(cli, write, declare, text, said):
    """Everything is looked at before anything is done, also where another entry of the file is right."""
    churn = write("endpoint", "churn", versions=(SERVING,))
    done = cli("apply", declare(text))
    assert (done.returncode, done.stdout) == (2, "")
    assert only_line(done.stderr).startswith("error: ")
    assert "endpoints.yaml: " in done.stderr
    assert said in done.stderr
    assert retire_seconds(cli, churn) == 30


@pytest.mark.parametrize(
    "words",
    [
        ["plan", "{}", "--check"],
        ["apply", "{}", "--check"],
        ["plan", "cpu", "--check"],
        ["plan", "missing.yaml", "--check"],
    ],
)
def test_with_check_wrong_input_is_1_so_that_2_means_changes(cli, declare, words):
    """A pipeline must not take a broken file for one with changes."""
    path = declare("endpoints:\n- {name: churn, replicas: two}\n")
    done = cli(*[word.format(path) for word in words])
    assert (done.returncode, done.stdout) == (1, "")
    assert only_line(done.stderr).startswith("error: ")


def test_fields_of_a_request_do_not_go_with_a_declaration(cli, declare):
    """`plan endpoints.yaml --max-usd 5` would be silently ignored otherwise."""
    done = cli("plan", declare("endpoints: [{name: churn}]\n"), "--max-usd", "5")
    assert done.returncode == 2
    assert only_line(done.stderr).startswith("error: max_usd: is a field of a request")


def test_pruning_takes_a_yes_and_releases_only_what_is_not_declared(cli, write, declare):
    """Without --prune undeclared endpoints are listed, without --yes they are named and kept."""
    churn = write("endpoint", "churn", versions=(SERVING,))
    stray = write("endpoint", "stray", versions=(SERVING,))
    path = declare("endpoints:\n- {name: churn, retire_seconds: 600}\n")
    refused = cli("apply", path, "--prune")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert only_line(refused.stderr).startswith("error: prune: would release stray")
    assert retire_seconds(cli, churn) == 30
    planned = cli("apply", path, "--prune", "--check", "--json")
    assert planned.returncode == 2
    assert [(each["endpoint"], each["action"]) for each in json.loads(planned.stdout)["changes"]] == [
        ("churn", "set"),
        ("stray", "release"),
    ]
    done = cli("apply", path, "--prune", "--yes")
    assert done.returncode == 0, done.stderr
    states = {each["id"]: each["state"] for each in json.loads(cli("ps", "--all", "--json").stdout)}
    assert states == {churn: "ready", stray: "released"}


def test_a_rollout_in_flight_is_left_alone(cli, write, declare):
    """What is being rolled out is not disturbed: nothing of the file is applied, and the next try may succeed."""
    canary = SERVING.revised(version=2, share=10, state="canary")
    write("endpoint", "churn", versions=(SERVING.revised(share=90), canary))
    quiet = write("endpoint", "quiet", versions=(SERVING,))
    path = declare("endpoints:\n- {name: quiet, retire_seconds: 600}\n- {name: churn, replicas: 2}\n")
    done = cli("apply", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "endpoints.churn: version 2 is being rolled out" in only_line(done.stderr)
    assert retire_seconds(cli, quiet) == 30


def test_an_endpoint_that_is_going_is_said_to_be(cli, write, declare):
    """It is neither changed nor made anew under the same name."""
    write("endpoint", "churn", State.STUCK, versions=(SERVING,))
    done = cli("apply", declare("endpoints: [{name: churn}]\n"))
    assert done.returncode == 1
    assert "endpoints.churn: it is being given back" in only_line(done.stderr)


def test_the_example_of_a_pipeline_uses_what_there_is():
    """Every command of the workflow parses, and reads a file that loads."""
    workflow = yaml.safe_load((EXAMPLE / "github-actions.yaml").read_text())
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    lines = [line.strip() for step in steps for line in step.get("run", "").splitlines()]
    verbs = [shlex.split(line.split("||")[0].split("|")[0]) for line in lines if line.startswith("mlinfra-prefect ")]
    assert {words[1] for words in verbs} == {"plan", "apply"}
    for words in verbs:
        app.parse_args(words[1:], exit_on_error=False, print_error=False)
        assert read_declaration(EXAMPLE / words[2]).endpoints
    assert workflow[True].keys() >= {"pull_request", "push", "schedule"}  # YAML reads `on` as true
