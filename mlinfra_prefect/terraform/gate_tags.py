"""The rule of tags: everything that is billed carries them where it is billed, from birth.

Only tags find what a lost state no longer names. A provider's ``default_tags`` and a fleet's own tags do not reach the
instances of a fleet, an instance's tags do not reach its disks, and a spot request's reach neither; so the place is
checked, not the intention. A value that is not known before the apply cannot be relied on, and is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlinfra_prefect.terraform.gate_kinds import FREE_UNTAGGED, TAGGED_BY_PARENT
from mlinfra_prefect.terraform.gate_plan import UNKNOWN, PlanView, Resource, blocks, is_true, mapping
from mlinfra_prefect.terraform.gate_policy import Finding, Policy
from mlinfra_prefect.terraform.gate_templates import TEMPLATE, Launch, launches, users

ALWAYS = ("instance", "volume", "network-interface")
SPOT_REQUEST = "spot-instances-request"


def findings(view: PlanView, policy: Policy) -> Iterator[Finding]:
    """What is billed without a required tag."""
    if not policy.required_tags:
        return
    found = launches(view)
    for resource, values in view.rented():
        if resource.type in TAGGED_BY_PARENT:
            continue
        if resource.type == "aws_autoscaling_group":
            yield from _check(resource, "its tag blocks with propagate_at_launch", _propagated(values), policy)
        elif "tags" in values or "tags_all" in values:
            yield from _check(resource, "tags", _own(values), policy)
        elif resource.type not in FREE_UNTAGGED | policy.kinds:
            yield Finding(
                resource.address, "kind-untaggable",
                f"{resource.type} cannot carry tags and is not known to be free, so no sweep would find it; "
                "leave it out, or allow its type by name.",
            )  # fmt: skip
        if resource.type == TEMPLATE:
            yield from _template(resource, values, users(resource, found), policy)
        if resource.type == "aws_spot_instance_request":
            yield Finding(
                resource.address, "tags-not-at-launch",
                "The tags of an aws_spot_instance_request do not reach the instance and the disks that it starts; "
                "use an aws_ec2_fleet of type instant with a launch template.",
            )  # fmt: skip
    for launch in found:
        yield from _launch(launch, policy)


# --- places ----------------------------------------------------------------------------------------------------------


def _template(
    resource: Resource, values: Mapping[str, Any], starters: tuple[Resource, ...], policy: Policy
) -> Iterator[Finding]:
    specifications = blocks(values, "tag_specifications")
    if not isinstance(specifications, tuple):
        yield _unknown(resource, "tag_specifications")
        return
    spot = not starters or values.get("instance_market_options") or any(_may_be_spot(each) for each in starters)
    for kind in (*ALWAYS, *((SPOT_REQUEST,) if spot else ())):
        place = f"tag_specifications for {kind}"
        given = [item.get("tags") for item in specifications if item.get("resource_type") == kind]
        yield from _check(resource, place, given[-1] if given else None, policy)


def _may_be_spot(launcher: Resource) -> bool:
    values = launcher.values or {}
    if launcher.type != "aws_ec2_fleet":
        return any(values.get(name) for name in ("instance_market_options", "mixed_instances_policy", "capacity_type"))
    capacity = blocks(values, "target_capacity_specification")
    if not isinstance(capacity, tuple):
        return True
    return any(
        item.get("default_target_capacity_type") != "on-demand" or item.get("spot_target_capacity") for item in capacity
    )


def _launch(launch: Launch, policy: Policy) -> Iterator[Finding]:
    """What an instance, fleet or group starts: its template must be of this plan, where the rule above checks it."""
    resource, values = launch.launcher, launch.launcher.values or {}
    if launch.templates is None or (not launch.templates and resource.type != "aws_instance"):
        yield Finding(
            resource.address, "template-not-in-plan",
            "The tags of what it starts come from a launch template that this plan does not hold or only names "
            "indirectly; refer directly to an aws_launch_template of the same module.",
        )  # fmt: skip
    elif not launch.templates or values.get("volume_tags"):
        yield from _disks_of_instance(resource, values, policy)


def _disks_of_instance(resource: Resource, values: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    volume_tags = values.get("volume_tags")
    roots, others = blocks(values, "root_block_device"), blocks(values, "ebs_block_device")
    if not volume_tags and isinstance(roots, tuple) and roots:
        for disk in roots:
            yield from _check(resource, "root_block_device.tags", _own(disk), policy)
        for disk in others if isinstance(others, tuple) else ():
            yield from _check(resource, "ebs_block_device.tags", _own(disk), policy)
        return
    yield from _check(resource, "volume_tags", volume_tags, policy)


def _propagated(values: Mapping[str, Any]) -> Any:
    found = blocks(values, "tag")
    if not isinstance(found, tuple):
        return UNKNOWN
    return {str(item.get("key")): item.get("value") for item in found if is_true(item.get("propagate_at_launch"))}


def _own(values: Mapping[str, Any]) -> Any:
    """The tags of a resource that is tagged directly: its own, and those that the provider adds, where known."""
    own, total = values.get("tags"), values.get("tags_all")
    if own is UNKNOWN:
        return UNKNOWN
    return {**mapping(total), **mapping(own)}


# --- one place -------------------------------------------------------------------------------------------------------


def _check(resource: Resource, place: str, tags: Any, policy: Policy) -> Iterator[Finding]:
    if tags is UNKNOWN:
        yield _unknown(resource, place)
        return
    given = mapping(tags)
    missing, unknown, wrong = [], [], []
    for key, required in policy.required_tags.items():
        value = given.get(key)
        if value is UNKNOWN:
            unknown.append(key)
        elif value is None or value == "":
            missing.append(key)
        elif required is not None and value != required:
            wrong.append((key, value, required))
    if missing:
        told = f"Missing in {place}: {', '.join(missing)}; set every tag of the contract there."
        yield Finding(resource.address, "tags-missing", told)
    if unknown:
        yield _unknown(resource, f"{place}, {', '.join(unknown)}")
    for key, value, required in wrong:
        told = f"In {place}, {key} is {value!r} and must be {required!r}; pass the tags on unchanged."
        yield Finding(resource.address, "tags-wrong", told)


def _unknown(resource: Resource, place: str) -> Finding:
    told = f"Known only after the apply: {place}; use values that are known before."
    return Finding(resource.address, "tags-unknown", told)
