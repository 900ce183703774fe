"""Reads a Terraform state file directly, because asking Terraform costs a process and fails with a broken module.

Success is what the state says exists, never an exit code. The format (version 4, Terraform 0.12 to 1.15 and OpenTofu)
is stable enough to read addresses and outputs from; nothing here ever writes a state.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.errors import TerraformFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

FORMAT = 4
"""The only version of the format since Terraform 0.12."""


@dataclass(frozen=True, slots=True)
class State:
    """What a state says: addresses of managed resource instances, and the root module's outputs."""

    resources: tuple[str, ...] = ()
    outputs: Mapping[str, Any] = field(default_factory=dict)


def read(path: Path) -> State | None:
    """Reads a state file; None where there is none (nothing was ever applied).

    Raises:
        TerraformFailed: the file is empty, truncated or not a state: what exists is unknown, and tags must decide.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        return parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TerraformFailed(
            f"state suspect: {path} ({len(text)} bytes) cannot be read as a Terraform state.",
            "Resources may exist that it does not name: look for them by tag before anything is called released.",
        ) from error


def parse(document: Mapping[str, Any]) -> State:
    """Turns a state document into a `State`; ``ValueError`` and its like where it is not one."""
    if document["version"] != FORMAT:
        raise ValueError(document["version"])
    outputs = {name: output["value"] for name, output in (document.get("outputs") or {}).items()}
    return State(tuple(_addresses(document.get("resources") or [])), outputs)


def _addresses(resources: list[Mapping[str, Any]]) -> Iterator[str]:
    for resource in resources:
        if resource["mode"] != "managed":
            continue  # a data source is a read, nothing that exists because of us
        prefix = f"{resource['module']}." if resource.get("module") else ""
        for instance in resource["instances"]:
            address = f"{prefix}{resource['type']}.{resource['name']}"
            if "index_key" in instance:
                address += f"[{json.dumps(instance['index_key'])}]"
            # A deposed object is the old half of a replacement that failed: it exists, and it costs money.
            yield f"{address} (deposed {instance['deposed']})" if instance.get("deposed") else address
