"""A module is read and copied without starting anything, and nothing leaves its directory unasked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.terraform import blocks, module

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Write = Callable[..., Path]

TRICKY = r"""
# variable "commented" {}
// variable "commented_too" {}
/* variable "block_commented" {
} */
locals {
  text = "variable \"quoted\" {} ${join(",", ["}", "{"])} $${not} %{ if true }x%{ endif }"
  doc  = <<-EOT
    variable "heredoc" {}
    { unbalanced "
  EOT
}
variable "one" { type = string }
variable "two" {
  type = object({ a = string }) # }
  default = { a = "}" }
}
variable three {}
resource "terraform_data" "x" {
  input = jsonencode({ variable = "inner" })
}
"""


def test_declared_variables_are_found_whatever_stands_around_them(write_module: Write) -> None:
    """Comments, strings, templates and here-documents are not blocks; JSON syntax counts."""
    root = write_module({"main.tf": TRICKY, "more.tf.json": '{"variable": {"four": {"type": "string"}}}'})
    found = module.inspect(root)
    assert found.variables == {"one", "two", "three", "four"}
    assert not found.needs_init


def test_raw_attributes_are_the_text_of_their_expressions() -> None:
    """Nested blocks are found, comments behind an expression are not part of it."""
    text = 'provider "aws" {\n region = var.region # why\n alias = "west"\n assume_role { role_arn = var.arn }\n}'
    (block,) = blocks.native(text)
    assert block.attributes == {"region": "var.region", "alias": '"west"'}
    assert block.blocks[0].attributes == {"role_arn": "var.arn"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('resource "terraform_data" "a" {}', False),
        ('data "terraform_remote_state" "a" {}', False),
        ('provider "terraform" { alias = "b" }\nresource "terraform_data" "a" { provider = terraform.b }', False),
        ('terraform { required_version = ">= 1.10" }', False),
        ('terraform {\n required_providers {\n terraform = { source = "terraform.io/builtin/terraform" }\n}\n}', False),
        ('terraform {\n required_providers {\n terraform = { source = "a/terraform" }\n}\n}', True),
        ('terraform {\n required_providers {\n aws = { source = "hashicorp/aws" }\n}\n}', True),
        ('terraform {\n backend "s3" {}\n}', True),
        ('resource "aws_instance" "a" {}', True),
        ('data "http" "a" {}', True),
        ('ephemeral "random_password" "a" {}', True),
        ('provider "aws" {}', True),
        ('resource "terraform_data" "a" { provider = other }', True),
        ('module "a" { source = "./a" }', True),
        ('check "a" {\n data "http" "b" {}\n}', True),
    ],
)
def test_init_is_skipped_only_where_it_is_certainly_not_needed(write_module: Write, text: str, expected: bool) -> None:  # noqa: FBT001
    """Anything but the built-in provider, and anything unknown, means init."""
    root = write_module({"main.tf": text, "a/main.tf": ""})
    assert module.inspect(root).needs_init is expected


def test_only_what_cannot_act_by_itself_is_copied(write_module: Write, tmp_path: Path) -> None:
    """State, variable files and hidden files stay behind; templates, scripts and the lock file come along."""
    root = write_module({
        "main.tf": 'variable "a" {}', "terraform.tfstate": "{}", "terraform.tfstate.backup": "{}",
        "x.auto.tfvars": "", "terraform.tfvars": "", "y.tfvars.json": "{}", ".env": "secret", ".terraform/x": "",
        ".terraform.lock.hcl": "", "user-data.sh.tftpl": "t", "bin/run.sh": "#!/bin/sh",
    })  # fmt: skip
    (root / "bin/run.sh").chmod(0o755)
    found = module.inspect(root)
    module.copy(found, tmp_path / "copy")
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied == {"main.tf", ".terraform.lock.hcl", "user-data.sh.tftpl", "bin/run.sh"}
    assert found.locked
    assert (tmp_path / "copy/bin/run.sh").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "copy/main.tf").stat().st_mode & 0o777 == 0o600


def test_a_link_that_leaves_the_module_is_refused(write_module: Write, tmp_path: Path) -> None:
    """A file link, a directory link and a module call alike; a link inside is fine."""
    (tmp_path / "secret.tf").write_text('variable "a" {}')
    root = write_module({"main.tf": 'variable "a" {}'})
    (root / "inside.tf.example").symlink_to(root / "main.tf")
    assert module.inspect(root)
    (root / "out.tf").symlink_to(tmp_path / "secret.tf")
    with pytest.raises(InvalidInput, match="outside"):
        module.inspect(root)
    (root / "out.tf").unlink()
    (root / "linked").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(InvalidInput, match="linked directory"):
        module.inspect(root)
    (root / "linked").unlink()
    (root / "call.tf").write_text('module "a" { source = "../secrets" }')
    with pytest.raises(InvalidInput, match="outside"):
        module.inspect(root)


def test_a_special_file_is_refused(write_module: Write) -> None:
    """Reading a FIFO would block for ever."""
    root = write_module({"main.tf": 'variable "a" {}'})
    os.mkfifo(root / "pipe")
    with pytest.raises(InvalidInput, match="regular file"):
        module.inspect(root)


def test_modules_beside_the_root_come_along_where_they_are_allowed(write_module: Write) -> None:
    """They keep their place relative to the root module; what nobody calls stays behind."""
    library = write_module(
        {
            "stacks/one/main.tf": 'module "a" { source = "../../modules/a" }',
            "modules/a/main.tf": 'module "b" { source = "../b" }',
            "modules/b/main.tf": 'variable "in_b" {}',
            "modules/c/main.tf": "",
        },
        "library",
    )
    found = module.inspect(library / "stacks/one", within=library)
    assert set(found.files) == {"stacks/one/main.tf", "modules/a/main.tf", "modules/b/main.tf"}
    assert found.workdir == "stacks/one"
    with pytest.raises(InvalidInput, match="outside"):
        module.inspect(library / "stacks/one")


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"readme.md": ""}, "holds no Terraform module"),
        ({"main.tf.json": "{"}, "cannot be read"),
        ({"main.tf": "terraform {\n cloud {}\n}"}, "cloud"),
        ({"main.tf": 'variable "a" {}', "big": "x" * (16 * 1024 * 1024)}, "at most"),
    ],
)
def test_a_directory_that_is_no_module_is_refused(write_module: Write, files: dict[str, str], told: str) -> None:
    """The message says what is wrong with it."""
    with pytest.raises(InvalidInput, match=told):
        module.inspect(write_module(files))


@pytest.mark.parametrize("text", ['"', "{", 'variable "a', "x = <<EOT\nabc", "/*", "${", '"${"', "a = {\n[(", "}" * 50])
def test_broken_text_ends_and_is_left_to_terraform(text: str) -> None:
    """The scanner neither raises nor hangs."""
    assert isinstance(blocks.native(text), tuple)
