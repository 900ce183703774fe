"""A stack with real Terraform: planned, applied, and destroyed whatever happened to its module meanwhile."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mlinfra_prefect.errors import InvalidInput, PermanentError, PlanStale, StateLocked, TerraformFailed
from mlinfra_prefect.terraform import PlannedChange, Stack, bundle, events, lock

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlinfra_prefect.terraform import Slots

    Write = Callable[..., Path]

BUILTIN = "terraform.io/builtin/terraform"
ONE = """
variable "text" { type = string }
resource "terraform_data" "one" { input = var.text }
output "text" { value = terraform_data.one.output }
"""
NO_PROCESS = Path("/nonexistent/terraform")


def _modes(directory: Path) -> dict[str, int]:
    return {
        str(path.relative_to(directory)): path.stat().st_mode & 0o777
        for path in [directory, *directory.rglob("*")]
        if not path.is_symlink()
    }


def _up(stack: Stack, module: Path, variables: dict[str, object], deadline: float, **more: object) -> None:
    stack.prepare(module, variables, deadline=deadline, **more)  # type: ignore[arg-type]
    stack.plan(deadline=deadline)
    stack.apply(deadline=deadline)


def _processes(stack: Stack) -> int:
    return len(list((stack.directory / "output").glob("*.err")))


def test_a_stack_lives_and_dies(stack: Stack, write_module: Write, deadline: float) -> None:
    """Prepare, plan, apply, destroy; each tells what there is, and everything on disk is private."""
    text = 'ü ${file("/etc/passwd")} %{ if true }\n"'
    stack.prepare(write_module(ONE), {"text": text}, deadline=deadline)
    planned = stack.plan(deadline=deadline)
    assert planned.changes == (PlannedChange("terraform_data.one", "terraform_data", "create", BUILTIN),)
    assert planned.providers == (BUILTIN,)
    assert planned.unresolved == ()
    assert json.loads(planned.raw_path.read_text())["variables"]["text"]["value"] == text
    assert stack.resources() == ()
    assert not stack.suspect

    seen: list[events.Event] = []
    applied = stack.apply(deadline=deadline, on_event=seen.append)
    assert applied.resources == stack.resources() == ("terraform_data.one",)
    assert applied.outputs == stack.outputs() == {"text": text}
    assert isinstance(seen[0], events.Version)
    assert [item.stage for item in seen if isinstance(item, events.Apply)] == ["start", "complete"]
    assert not any(isinstance(item, events.Diagnostic) for item in seen)

    modes = _modes(stack.directory)
    assert {name: oct(mode) for name, mode in modes.items() if mode not in {0o700, 0o600}} == {}
    assert modes["variables.tfvars.json"] == modes["plan.tfplan"] == modes["terraform.tfstate"] == 0o600

    gone = stack.destroy(deadline=deadline)
    assert gone.destroyed == ("terraform_data.one",)
    assert gone.remaining == stack.resources() == ()
    assert not stack.in_flight()
    assert not stack.suspect


def test_destroying_nothing_starts_no_process(
    tmp_path: Path, slots: Slots, stack: Stack, write_module: Write, deadline: float
) -> None:
    """No directory, no state, and an empty state are all success."""
    absent = Stack(tmp_path / "absent", engine=replace(stack.engine, path=NO_PROCESS), slots=slots, env={})
    assert absent.destroy(deadline=deadline).destroyed == ()
    assert (absent.resources(), absent.outputs(), absent.in_flight(), absent.suspect) == ((), {}, False, False)
    _up(stack, write_module(ONE), {"text": "a"}, deadline)
    stack.destroy(deadline=deadline)
    again = Stack(stack.directory, engine=replace(stack.engine, path=NO_PROCESS), slots=slots, env={})
    assert again.destroy(deadline=deadline).destroyed == ()


def test_a_module_of_the_built_in_provider_needs_no_init(stack: Stack, write_module: Write, deadline: float) -> None:
    """Preparing starts no process, planning starts two (plan and show)."""
    stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    assert not (stack.directory / "output").exists()
    stack.plan(deadline=deadline)
    assert _processes(stack) == 2


def test_a_local_module_is_initialised_and_applied(stack: Stack, write_module: Write, deadline: float) -> None:
    """Child modules beside the root work from the copy, and count and keys appear in addresses."""
    child = 'resource "terraform_data" "c" { for_each = toset(["k\\"1"]) }'
    root = 'module "m" {\n source = "../../modules/child"\n}\nresource "terraform_data" "r" { count = 2 }'
    library = write_module({"stacks/s/main.tf": root, "modules/child/main.tf": child}, "library")
    _up(stack, library / "stacks/s", {}, deadline, within=library)
    assert set(stack.resources()) == {
        'module.m.terraform_data.c["k\\"1"]', "terraform_data.r[0]", "terraform_data.r[1]",
    }  # fmt: skip
    shutil.rmtree(library)
    assert len(stack.destroy(deadline=deadline).destroyed) == 3


def test_an_unknown_variable_is_refused_by_name(stack: Stack, write_module: Write, deadline: float) -> None:
    """To Terraform it would be a warning; nothing is written before it is refused."""
    with pytest.raises(InvalidInput, match="txet") as caught:
        stack.prepare(write_module(ONE), {"txet": "a"}, deadline=deadline)
    assert caught.value.field == "txet"
    assert not stack.directory.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), b"x", {1, 2}])
def test_a_value_that_is_not_json_is_refused_by_name(
    stack: Stack, write_module: Write, deadline: float, value: object
) -> None:
    """Python would write NaN, which is not JSON."""
    with pytest.raises(InvalidInput) as caught:
        stack.prepare(write_module(ONE), {"text": value}, deadline=deadline)
    assert caught.value.field == "text"


def test_a_missing_variable_is_permanent(stack: Stack, write_module: Write, deadline: float) -> None:
    """Planning again would not help; the message names the variable."""
    stack.prepare(write_module(ONE), {}, deadline=deadline)
    with pytest.raises(PermanentError, match=r"No value for required variable.*text"):
        stack.plan(deadline=deadline)


def test_a_failed_apply_tells_its_diagnostics_and_keeps_what_exists(
    stack: Stack, write_module: Write, deadline: float
) -> None:
    """What was created before the failure is in the state and is destroyed."""
    root = write_module("""
        resource "terraform_data" "good" {}
        resource "terraform_data" "bad" {
          depends_on = [terraform_data.good]
          provisioner "local-exec" { command = "exit 7" }
        }
    """)
    stack.prepare(root, {}, deadline=deadline)
    stack.plan(deadline=deadline)
    with pytest.raises(TerraformFailed, match=r"local-exec provisioner error.*exit status 7"):
        stack.apply(deadline=deadline)
    assert set(stack.resources()) == {"terraform_data.good", "terraform_data.bad"}
    assert len(stack.destroy(deadline=deadline).destroyed) == 2


def test_a_plan_is_applied_once(stack: Stack, write_module: Write, deadline: float) -> None:
    """Terraform itself refuses the same plan again, and without a plan nothing starts."""
    with pytest.raises(PermanentError, match="not prepared"):
        stack.apply(deadline=deadline)
    stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    with pytest.raises(PermanentError, match="no plan"):
        stack.apply(deadline=deadline)
    stack.plan(deadline=deadline)
    stack.apply(deadline=deadline)
    with pytest.raises(PermanentError, match="stale"):
        stack.apply(deadline=deadline)


def test_a_plan_that_took_the_place_of_the_expected_one_is_not_applied(
    stack: Stack, slots: Slots, write_module: Write, deadline: float
) -> None:
    """Another process plans while this one waits for its turn: what is applied is what was agreed to, or nothing."""
    stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    stack.plan(deadline=deadline)
    agreed = stack.saved_plan()
    before = _processes(stack)
    with ThreadPoolExecutor(1) as pool:
        with slots.take(deadline), slots.take(deadline):
            applying = pool.submit(stack.apply, deadline=deadline, expected=agreed)
            with pytest.raises(TimeoutError):
                applying.result(timeout=0.3)
            plan = stack.directory / "plan.tfplan"
            former = plan.read_bytes()
            plan.write_bytes(former + b"another")
        with pytest.raises(PlanStale, match="was planned again"):
            applying.result(timeout=30)
    assert (_processes(stack), stack.resources()) == (before, ())
    plan.write_bytes(former)
    assert stack.apply(deadline=deadline, expected=agreed).resources == ("terraform_data.one",)


@pytest.mark.parametrize("content", [b"", b'{"version": 4, "resources": [', b"[]", b'{"version": 9}', b"\x00\xff"])
def test_a_broken_state_is_suspect_and_never_empty(
    stack: Stack, write_module: Write, deadline: float, content: bytes
) -> None:
    """Nothing is called gone because its state cannot be read."""
    stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    (stack.directory / "terraform.tfstate").write_bytes(content)
    for ask in (stack.resources, stack.outputs, lambda: stack.destroy(deadline=deadline)):
        with pytest.raises(TerraformFailed, match="state suspect"):
            ask()


def test_an_apply_that_left_no_state_is_suspect(stack: Stack, write_module: Write, deadline: float) -> None:
    """Absent state is nothing to destroy, but tags must decide whether that is all."""
    _up(stack, write_module(ONE), {"text": "a"}, deadline)
    assert not stack.suspect
    (stack.directory / "terraform.tfstate").unlink()
    assert stack.suspect


# --- the teardown bundle ---------------------------------------------------------------------------------------------

PROTECTED = """
variable "text" { type = string }
provider "terraform" { alias = "west" }
resource "terraform_data" "kept" {
  input    = var.text
  provider = terraform.west
  lifecycle { prevent_destroy = true }
}
resource "terraform_data" "other" { input = var.text }
"""


def _lose_the_copy(stack: Stack) -> None:
    shutil.rmtree(stack.directory / "root")


def _lose_the_variables(stack: Stack) -> None:
    (stack.directory / "variables.tfvars.json").unlink()


def _break_the_copy(stack: Stack) -> None:
    (stack.directory / "root/main.tf").write_text("")


def _lose_all_but_bundle_and_state(stack: Stack) -> None:
    for path in stack.directory.iterdir():
        if path.name not in {"bundle", "terraform.tfstate"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("module", [ONE, PROTECTED], ids=["plain", "prevent-destroy-and-alias"])
@pytest.mark.parametrize(
    "lose", [None, _lose_the_copy, _lose_the_variables, _break_the_copy, _lose_all_but_bundle_and_state]
)
def test_destroying_needs_only_the_bundle_and_the_state(
    stack: Stack, write_module: Write, deadline: float, module: str, lose: Callable[[Stack], None] | None
) -> None:
    """Module deleted, variables deleted, module edited, prevent_destroy, aliased provider: everything goes."""
    root = write_module(module)
    _up(stack, root, {"text": "a"}, deadline)
    before = stack.resources()
    shutil.rmtree(root)
    if lose:
        lose(stack)
    fresh = Stack(stack.directory, engine=stack.engine, slots=stack._runner.slots, env={})  # noqa: SLF001
    assert fresh.destroy(deadline=deadline).destroyed == before
    assert fresh.resources() == ()


def test_destroy_provisioners_run_while_the_module_is_intact(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float
) -> None:
    """The bundle is the second choice, because they do not run from it."""
    provisioner = f'provisioner "local-exec" {{\n when = destroy\n command = "touch {tmp_path}/ran"\n}}'
    _up(stack, write_module(f'resource "terraform_data" "a" {{\n {provisioner}\n}}'), {}, deadline)
    stack.destroy(deadline=deadline)
    assert (tmp_path / "ran").exists()


def test_without_module_and_bundle_destroy_says_so(stack: Stack, write_module: Write, deadline: float) -> None:
    """It never returns as if there were nothing."""
    _up(stack, write_module(ONE), {"text": "a"}, deadline)
    _lose_the_copy(stack)
    shutil.rmtree(stack.directory / "bundle")
    with pytest.raises(PermanentError, match=r"terraform_data\.one"):
        stack.destroy(deadline=deadline)


def test_a_resource_that_will_not_go_is_an_error(stack: Stack, write_module: Write, deadline: float) -> None:
    """The last diagnostics are raised, the others are gone, and a later try finishes."""
    root = write_module("""
        resource "terraform_data" "free" {}
        resource "terraform_data" "stuck" {
          provisioner "local-exec" {
            when = destroy
            command = "exit 9"
          }
        }
    """)
    _up(stack, root, {}, deadline)
    shutil.move(stack.directory / "bundle", stack.directory / "hidden")
    with pytest.raises(TerraformFailed, match="exit status 9"):
        stack.destroy(deadline=deadline)
    assert stack.resources() == ("terraform_data.stuck",)
    shutil.move(stack.directory / "hidden", stack.directory / "bundle")
    assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.stuck",)


def test_a_state_that_a_backend_keeps_is_read_and_destroyed(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float
) -> None:
    """The bundle carries the backend as it was initialised, including what came in as settings."""
    kept = tmp_path / "kept.tfstate"
    _up(stack, write_module(f'terraform {{\n backend "local" {{}}\n}}\n{ONE}'), {"text": "a"}, deadline,
        backend={"path": str(kept)})  # fmt: skip
    assert kept.exists()
    assert not (stack.directory / "terraform.tfstate").exists()
    assert stack.resources() == ("terraform_data.one",)
    assert stack.outputs() == {"text": "a"}
    _lose_the_copy(stack)
    assert stack.resources() == ("terraform_data.one",)
    assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.one",)
    assert json.loads(kept.read_text())["resources"] == []


def test_a_state_that_its_backend_did_not_take_is_stored_by_the_next_preparation(
    stack: Stack, write_module: Write, tmp_path: Path, deadline: float
) -> None:
    """What was made is in that file alone: a new copy of the module must not take it away."""
    kept, root = tmp_path / "kept.tfstate", write_module(f'terraform {{\n backend "local" {{}}\n}}\n{ONE}')
    _up(stack, root, {"text": "a"}, deadline, backend={"path": str(kept)})
    shutil.move(kept, stack.module / "errored.tfstate")
    assert stack.suspect
    assert stack.resources() == ()
    stack.prepare(root, {"text": "a"}, deadline=deadline, backend={"path": str(kept)})
    assert not stack.suspect
    assert stack.resources() == ("terraform_data.one",)
    assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.one",)


TRAPS = ['${file("/etc/hostname")}', "%{ if true }x%{ endif }", "$${a}", "%%{b}", "$$${c}", "$", "a$", "{}", 'ü\n"\\']


def test_a_literal_is_read_back_as_itself(stack: Stack, write_module: Write, deadline: float) -> None:
    """What is written into JSON syntax is never evaluated: real Terraform says so."""
    value = {"list": TRAPS, **{text: text for text in TRAPS}, "number": 1.5, "null": None, "yes": True}
    resource = {"resource": {"terraform_data": {"a": {"input": bundle.literal(value)}}}}
    shown = {"output": {"o": {"value": "${terraform_data.a.output}"}}}
    _up(stack, write_module({"main.tf.json": json.dumps({**resource, **shown})}), {}, deadline)
    assert stack.outputs()["o"] == value


def test_the_bundle_is_constant_and_names_what_is_not() -> None:
    """A variable alone becomes its value; any other expression is left out and told."""
    expressions = {
        "region": {"references": ["var.region"]},
        "profile": {"references": ["var.region"]},
        "access_key": {"constant_value": "${boom}"},
        "max_retries": {"constant_value": 3},
        "assume_role": [{"role_arn": {"references": ["var.arn"]}, "session_name": {"references": ["local.x"]}}],
        "default_tags": [{"tags": {"references": ["local.tags"]}}],
    }
    plan = {
        "variables": {"region": {"value": "eu-west-1"}, "arn": {"value": "arn:${x}"}},
        "configuration": {
            "provider_config": {
                "aws": {"name": "aws", "full_name": "registry.terraform.io/hashicorp/aws", "expressions": expressions},
                "aws.w": {"name": "aws", "alias": "w", "full_name": "registry.terraform.io/hashicorp/aws"},
                "module.m:aws.x": {
                    "name": "aws",
                    "module_address": "module.m",
                    "full_name": "x",
                    "expressions": {"a": {}},
                },
            }
        },
    }
    sources = {("aws", ""): {"region": "var.region", "profile": "lower(var.region)", "assume_role.role_arn": "var.arn"}}
    root = bundle.root(plan, sources, {"type": "s3", "config": {"bucket": "b", "key": "${k}", "profile": None}})
    assert root.document == {
        "terraform": {
            "required_providers": {"aws": {"source": "registry.terraform.io/hashicorp/aws"}},
            "backend": {"s3": {"bucket": "b", "key": "$${k}"}},
        },
        "provider": {
            "aws": [
                {
                    "region": "eu-west-1", "access_key": "$${boom}", "max_retries": 3,
                    "assume_role": [{"role_arn": "arn:$${x}"}],
                },
                {"alias": "w"},
            ]
        },
    }  # fmt: skip
    assert root.needs_init
    assert root.unresolved == (
        "aws: profile",
        "aws: assume_role.session_name",
        "module.m:aws.x: configured in a module",
    )


def test_the_bundle_names_the_engine(stack: Stack, write_module: Write, deadline: float) -> None:
    """Who destroys years later knows what applied."""
    stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    stack.plan(deadline=deadline)
    about = json.loads((stack.directory / "bundle/engine.json").read_text())
    expected = {"name": stack.engine.name, "version": stack.engine.version, "path": str(stack.engine.path)}
    assert expected.items() <= about.items()


def test_a_second_terraform_on_one_stack_is_refused(stack: Stack, write_module: Write, deadline: float) -> None:
    """Whoever holds the lock: nothing starts, nothing is rewritten."""
    _up(stack, write_module(ONE), {"text": "a"}, deadline)
    before = _processes(stack)
    held = lock.acquire(stack.lock_file)
    try:
        assert stack.in_flight()
        for act in (stack.plan, stack.apply, stack.destroy):
            with pytest.raises(StateLocked):
                act(deadline=deadline)
        with pytest.raises(StateLocked):
            stack.prepare(write_module(ONE), {"text": "a"}, deadline=deadline)
    finally:
        lock.release(held)
    assert not stack.in_flight()
    assert _processes(stack) == before
    assert stack.destroy(deadline=deadline).destroyed == ("terraform_data.one",)
