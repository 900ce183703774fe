"""What a plan's JSON leaves out is read from the module's text, in every module that Terraform reads."""

from __future__ import annotations

import json

import pytest

from mlinfra_prefect.errors import PlanRejected
from mlinfra_prefect.terraform import gate, gate_source

EPHEMERAL, SHARED = gate.Policy(), gate.Policy(ephemeral=False)
PREVENTS = 'resource "aws_ebs_volume" "x" {\n  lifecycle {\n    prevent_destroy = true\n  }\n}\n'


def rules(root, policy=EPHEMERAL) -> list[tuple[str, str]]:
    return [(finding.address, finding.rule) for finding in gate_source.check(root, policy)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("main.tf", PREVENTS),
        ("override.tofu", PREVENTS),
        ("main.tf", PREVENTS.replace("= true", "= var.keep # OpenTofu allows this")),
        ("main.tf.json", json.dumps({"resource": {"aws_ebs_volume": {"x": {"lifecycle": {"prevent_destroy": True}}}}})),
    ],
)
def test_prevent_destroy_is_found_in_every_syntax(write_module, name, text):
    """Terraform leaves it out of its plans, and it would keep an attempt from being given back."""
    root = write_module({name: text})
    assert rules(root) == [(f"{name}: aws_ebs_volume.x", "prevent-destroy")]
    assert rules(root, SHARED) == []


def test_prevent_destroy_that_is_false_is_nothing(write_module):
    """It is the default."""
    assert rules(write_module(PREVENTS.replace("true", "false"))) == []


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('data "external" "x" {\n  program = ["sh", "-c", "true"]\n}\n', "main.tf: data.external.x"),
        ('data "aws_lambda_invocation" "x" {}\n', "main.tf: data.aws_lambda_invocation.x"),
        ('resource "terraform_data" "x" {\n  provisioner "local-exec" {\n    command = "true"\n  }\n}\n',
         "main.tf: terraform_data.x"),
    ],
)  # fmt: skip
def test_programs_are_found_before_they_run(write_module, text, address):
    """A data source runs while Terraform plans: no plan can be looked at before."""
    root = write_module(text)
    assert rules(root) == rules(root, SHARED) == [(address, "program-runs")]
    assert rules(root, gate.Policy(allow_programs=True)) == []


@pytest.mark.parametrize(
    ("kind", "block"), [("aws_security_group", "ingress"), ("aws_instance", "ebs_block_device")]
)  # fmt: skip
def test_a_dynamic_block_that_a_plan_may_hide_is_refused(write_module, kind, block):
    """Of some blocks a plan says the same whether they are unknown or not there."""
    text = f'resource "{kind}" "x" {{\n  dynamic "{block}" {{\n    for_each = var.x\n    content {{}}\n  }}\n}}\n'
    assert rules(write_module(text)) == [(f"main.tf: {kind}.x", "plan-unreadable")]
    assert rules(write_module(text.replace(kind, "aws_launch_template"), name="other")) == []


def test_modules_that_are_called_are_read_and_others_are_not(write_module):
    """The list that init wrote down says which: an example beside the module is no part of it."""
    root = write_module({
        "stack/main.tf": 'module "a" {\n  source = "../a"\n}\n',
        "a/main.tf": PREVENTS,
        "stack/examples/main.tf": PREVENTS,
        "stack/.terraform/modules/modules.json": json.dumps({
            "Modules": [{"Key": "", "Source": "", "Dir": "."}, {"Key": "a", "Source": "../a", "Dir": "../a"}]
        }),
    }) / "stack"  # fmt: skip
    assert [rule for _, rule in rules(root)] == ["prevent-destroy"]


def test_what_cannot_be_read_is_refused(write_module):
    """A list of modules, or a file, that is not what it should be."""
    root = write_module({"main.tf": "locals {}\n", ".terraform/modules/modules.json": "{"})
    assert [rule for _, rule in rules(root)] == ["plan-unreadable"]
    other = write_module({"main.tf.json": "{"}, name="other")
    assert rules(other) == [("main.tf.json", "plan-unreadable")]


def test_the_text_is_enforced_with_the_plan(write_module):
    """One error for both."""
    document = {"format_version": "1.2", "configuration": {"root_module": {}}, "resource_changes": []}
    gate.enforce(document, EPHEMERAL, module=write_module("locals {}\n"))
    with pytest.raises(PlanRejected, match="prevent_destroy"):
        gate.enforce(document, EPHEMERAL, module=write_module(PREVENTS, name="other"))
