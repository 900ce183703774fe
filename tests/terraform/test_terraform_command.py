"""Argument vectors and environments are values: they are compared, nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.terraform import command
from mlinfra_prefect.terraform.environment import environment

TF = Path("/a b/terraform")
COMMON = ["-input=false", "-json", "-no-color", "-lock-timeout=20s"]


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (
            command.init(TF, locked=False, backend={}),
            ["init", "-input=false", "-json", "-no-color"],
        ),
        (
            command.init(TF, locked=True, backend={"key": "a=b", "bucket": "c"}, reconfigure=True),
            [
                "init", "-input=false", "-json", "-no-color", "-lockfile=readonly", "-reconfigure",
                "-backend-config=bucket=c", "-backend-config=key=a=b",
            ],
        ),
        (
            command.plan(TF, out=Path("/s/p"), var_file=Path("/s/v.json"), state=Path("/s/t")),
            ["plan", *COMMON, "-out=/s/p", "-var-file=/s/v.json", "-state=/s/t"],
        ),
        (
            command.plan(TF, out=Path("/s/p"), var_file=Path("/s/v.json"), state=None),
            ["plan", *COMMON, "-out=/s/p", "-var-file=/s/v.json"],
        ),
        (command.show(TF, Path("/s/p")), ["show", "-json", "-no-color", "/s/p"]),
        (command.apply(TF, Path("/s/p"), state=Path("/s/t")), ["apply", *COMMON, "-state=/s/t", "/s/p"]),
        (
            command.destroy(TF, state=Path("/s/t"), var_file=Path("/s/v.json")),
            ["destroy", *COMMON, "-auto-approve", "-var-file=/s/v.json", "-state=/s/t"],
        ),
        (command.destroy(TF, state=None, var_file=None), ["destroy", *COMMON, "-auto-approve"]),
        (command.state_pull(TF), ["state", "pull"]),
        (command.state_push(TF, Path("/s/e")), ["state", "push", "-lock-timeout=20s", "/s/e"]),
    ],
)  # fmt: skip
def test_an_argument_vector_holds_exactly_the_options_it_should(built: list[str], expected: list[str]) -> None:
    """No -force, no variables on the command line, and a program path with a space stays one argument."""
    assert built == [str(TF), *expected]


def test_building_reads_no_state_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python-terraform reads ./terraform.tfstate when it is made; a broken one there must not matter."""
    (tmp_path / "terraform.tfstate").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert command.state_pull(TF)


def test_only_allowed_variables_are_inherited(tmp_path: Path) -> None:
    """What could change arguments, variables, logs, state or credentials does not reach Terraform."""
    parent = {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "HTTPS_PROXY": "p", "SSL_CERT_FILE": "c",
        "TF_CLI_ARGS": "-lock=false", "TF_CLI_ARGS_apply": "x", "TF_VAR_x": "1", "TF_LOG": "trace",
        "TF_LOG_PATH": "/l", "TF_WORKSPACE": "w", "TF_DATA_DIR": "/d", "AWS_SECRET_ACCESS_KEY": "s", "CANARY": "c",
        "TF_CLI_CONFIG_FILE": str(tmp_path / "missing"), "TF_PLUGIN_CACHE_DIR": str(tmp_path / "missing"),
    }  # fmt: skip
    assert environment(parent, {"AWS_REGION": "r"}) == {
        "PATH": "/bin", "HOME": "/h", "LC_ALL": "C", "HTTPS_PROXY": "p", "SSL_CERT_FILE": "c", "AWS_REGION": "r",
        "TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1",
    }  # fmt: skip


def test_a_configuration_file_and_a_plugin_cache_are_passed_where_they_exist(tmp_path: Path) -> None:
    """The user's own mirror settings keep working."""
    (tmp_path / "rc").touch()
    parent = {"TF_CLI_CONFIG_FILE": str(tmp_path / "rc"), "TF_PLUGIN_CACHE_DIR": str(tmp_path)}
    assert parent.items() <= environment(parent, {}).items()


@pytest.mark.parametrize(
    "name", ["TF_CLI_ARGS", "TF_CLI_ARGS_plan", "TF_VAR_x", "TF_LOG", "TF_WORKSPACE", "TF_DATA_DIR"]
)
def test_not_even_the_caller_may_change_what_an_operation_does(name: str) -> None:
    """The error carries the name of the variable."""
    with pytest.raises(InvalidInput) as caught:
        environment({}, {name: "x"})
    assert caught.value.field == name
