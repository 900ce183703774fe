"""Which launch templates of a plan start the instances of a fleet, an instance, a scaling group or a node group.

What an instance carries from birth (tags, disks, metadata, what a shutdown means) is said by its launch template, and
the template's id is not known before the apply: so the reference in the configuration is followed. Only a reference
that can mean nothing but templates of the same plan is; everything else cannot be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlinfra_prefect.terraform.gate_plan import UNKNOWN, PlanView, Resource, blocks, mapping

LAUNCHERS = frozenset({"aws_ec2_fleet", "aws_instance", "aws_autoscaling_group", "aws_eks_node_group"})
TEMPLATE = "aws_launch_template"

_PATHS = {
    "aws_ec2_fleet": ("launch_template_config", "launch_template_specification"),
    "aws_instance": ("launch_template",),
    "aws_eks_node_group": ("launch_template",),
    "aws_autoscaling_group": ("launch_template",),
}
_NAMES = ("launch_template_id", "launch_template_name", "id", "name")
_REFERENCE = re.compile(r"(aws_launch_template\.[^\W\d][\w-]*)(?:$|[.\[])")
_NEUTRAL = re.compile(r"(?:each|count)\.")


@dataclass(frozen=True, slots=True)
class Launch:
    """What starts instances, and the templates of the plan that it does it with.

    ``templates`` is empty where it names none at all, and None where which ones cannot be told from the plan.
    """

    launcher: Resource
    templates: tuple[Resource, ...] | None


def launches(view: PlanView) -> tuple[Launch, ...]:
    """Everything in the plan that starts instances, in the plan's order."""
    return tuple(
        Launch(resource, _templates(view, resource, values))
        for resource, values in view.rented()
        if resource.type in LAUNCHERS
    )


def users(template: Resource, found: tuple[Launch, ...]) -> tuple[Resource, ...]:
    """Who starts instances with a template."""
    return tuple(launch.launcher for launch in found if template in (launch.templates or ()))


def _templates(view: PlanView, resource: Resource, values: Mapping[str, Any]) -> tuple[Resource, ...] | None:
    path = _PATHS[resource.type]
    planned = _at(values, path)
    if planned == () and not (resource.type == "aws_autoscaling_group" and values.get("mixed_instances_policy")):
        return ()
    written = _at(resource.block.expressions, path) if resource.block else None
    # A dynamic block is planned and not written: what it refers to is not said.
    if not planned or not written or len(planned) != len(written):
        return None
    addresses = [_address(item) for item in written]
    if resource.block is None or not all(addresses):
        return None
    found = tuple(
        other
        for other, _ in view.rented()
        if other.block and other.block.module == resource.block.module and other.block.address in addresses
    )
    return found if {other.block.address for other in found if other.block} == set(addresses) else None


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Mapping[str, Any], ...] | None:
    """The blocks at the end of a path of blocks; None where one is not known or stands there without the next."""
    level: tuple[Mapping[str, Any], ...] = (values,)
    for depth, name in enumerate(path):
        deeper: list[Mapping[str, Any]] = []
        for item in level:
            found = blocks(item, name)
            if found is UNKNOWN or (depth and not found):
                return None
            deeper.extend(found if isinstance(found, tuple) else ())
        level = tuple(deeper)
    return level


def _address(written: Mapping[str, Any]) -> str:
    """The one template block that a reference means; empty where it may mean another, or none of this plan."""
    found: set[str] = set()
    for name in _NAMES:
        for reference in _references(written.get(name)):
            match = _REFERENCE.match(reference)
            if match:
                found.add(match[1])
            elif not _NEUTRAL.match(reference):
                return ""
    return found.pop() if len(found) == 1 else ""


def _references(expression: Any) -> Iterator[str]:
    listed = mapping(expression).get("references")
    for item in listed if isinstance(listed, list) else ():
        yield item if isinstance(item, str) else "?"
