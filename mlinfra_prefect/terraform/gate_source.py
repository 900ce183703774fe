"""What a plan's JSON does not say, read from the module's text: ``prevent_destroy``, and programs before they run.

Terraform leaves ``lifecycle`` out of its plans, hides ``dynamic`` blocks, and reads data sources while it plans: an
``external`` one has run before any plan exists. So this can be asked before planning. It reads what Terraform reads:
the root module and every module that it calls, those that ``init`` fetched included.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.terraform import blocks
from mlinfra_prefect.terraform.blocks import Block
from mlinfra_prefect.terraform.gate_changes import RUNS_PROGRAMS
from mlinfra_prefect.terraform.gate_policy import Finding, Policy

HIDING = frozenset({
    ("aws_default_security_group", "ingress"), ("aws_security_group", "ingress"),
    ("aws_instance", "ebs_block_device"), ("aws_instance", "instance_market_options"),
})  # fmt: skip
"""Blocks that the provider fills in itself: one that is not written and a dynamic one look the same in a plan."""

CODE = (".tf", ".tf.json", ".tofu", ".tofu.json")


def check(root: Path, policy: Policy) -> tuple[Finding, ...]:
    """Returns what the text of a root module breaks; starts nothing. Call it where ``init`` has run, if it has to.

    Args:
        root: the directory of the root module (`Layout.workdir` of a prepared stack).
        policy: what it must keep.
    """
    found: list[Finding] = []
    for directory in _directories(root, found):
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path.name.endswith(CODE) and not path.name.startswith("."):
                found.extend(_file(path, root, policy))
    return tuple(sorted(set(found)))


def _file(path: Path, root: Path, policy: Policy) -> Iterator[Finding]:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
    try:
        content = blocks.read(path)
    except (InvalidInput, OSError, RecursionError):
        yield Finding(name, "plan-unreadable", "This file cannot be read; write it as Terraform's formatter would.")
        return
    for block in content:
        if block.type not in {"resource", "data", "ephemeral"}:
            continue
        address = f"{name}: {'.'.join(('data', *block.labels) if block.type == 'data' else block.labels)}"
        kind = block.labels[0] if block.labels else ""
        if policy.ephemeral and any(_prevents(inner) for inner in block.blocks):
            told = "prevent_destroy would keep it from being given back; remove it."
            yield Finding(address, "prevent-destroy", told)
        if not policy.allow_programs and (kind in RUNS_PROGRAMS or any(_provisions(each) for each in block.blocks)):
            told = "It runs a program outside of every check; remove it, or allow programs in the policy."
            yield Finding(address, "program-runs", told)
        for inner in block.blocks:
            if inner.type == "dynamic" and (kind, *inner.labels) in HIDING:
                told = f"A dynamic {inner.labels[0]} can hide what it will be from the plan; write the blocks out."
                yield Finding(address, "plan-unreadable", told)


def _prevents(block: Block) -> bool:
    return block.type == "lifecycle" and block.attributes.get("prevent_destroy", "false") != "false"


def _provisions(block: Block) -> bool:
    return block.type == "provisioner"


def _directories(root: Path, found: list[Finding]) -> list[Path]:
    """The root module's directory and those of all modules that it calls, as ``init`` wrote them down."""
    index = root / ".terraform" / "modules" / "modules.json"
    if not index.is_file():
        return [root]
    try:
        listed = [str(item["Dir"]) for item in json.loads(index.read_bytes())["Modules"]]
    except (OSError, ValueError, KeyError, TypeError):
        told = "What init wrote down about the modules cannot be read; prepare the stack again."
        found.append(Finding("", "plan-unreadable", told))
        return [root]
    return [root, *(root / item for item in listed if item != ".")]
