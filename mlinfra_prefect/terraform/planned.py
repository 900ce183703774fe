"""Reads ``terraform show -json`` of a saved plan: what policy, cost and the person see before anything exists."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.errors import TerraformFailed

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

ACTIONS = {
    ("create",): "create",
    ("delete",): "delete",
    ("update",): "update",
    ("read",): "read",
    ("no-op",): "no-op",
    ("delete", "create"): "replace",
    ("create", "delete"): "replace",
}


@dataclass(frozen=True, slots=True)
class PlannedChange:
    """One resource: ``action`` is create, delete, update, replace, read or no-op; ``provider`` its full source."""

    address: str
    type: str
    action: str
    provider: str


@dataclass(frozen=True, slots=True)
class PlannedChanges:
    """A saved plan.

    Attributes:
        changes: one per resource, in Terraform's order.
        providers: full sources of every provider the plan or its configuration names, sorted.
        raw_path: the whole plan as JSON, mode 0600; it may hold secrets.
        unresolved: provider attributes that the teardown bundle could not copy as a constant
            (``aws.west: region``). A destroy by bundle runs without them; policy decides whether that is acceptable.
    """

    changes: tuple[PlannedChange, ...]
    providers: tuple[str, ...]
    raw_path: Path
    unresolved: tuple[str, ...] = ()


def load(path: Path) -> dict[str, Any]:
    """Reads the JSON of a plan.

    Raises:
        TerraformFailed: it is not one.
    """
    try:
        document = json.loads(path.read_bytes())
        document["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise TerraformFailed(f"{path} is not the JSON of a Terraform plan.") from error
    return dict(document)


def parse(document: Mapping[str, Any], raw_path: Path, unresolved: tuple[str, ...] = ()) -> PlannedChanges:
    """Turns the JSON of a plan into `PlannedChanges`."""
    changes = tuple(
        PlannedChange(
            address=item["address"],
            type=item["type"],
            action=_action(item["change"]["actions"]),
            provider=item["provider_name"],
        )
        for item in document.get("resource_changes") or []
    )
    configured = (document.get("configuration") or {}).get("provider_config") or {}
    providers = {change.provider for change in changes} | {item["full_name"] for item in configured.values()}
    return PlannedChanges(changes, tuple(sorted(providers)), raw_path, unresolved)


def _action(actions: list[str]) -> str:
    return ACTIONS.get(tuple(actions), "-".join(actions))
