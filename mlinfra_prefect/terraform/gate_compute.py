"""The rules of compute: each kind can be stopped, nothing outlives its end, and no machine is softer than it must be.

An ephemeral plan is safe to give back only if each thing in it has a known verb that stops its meter, a power-off ends
it (that is what the dead-man does), and its disks go with it. Prices and GPUs are checked before, where offers are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlinfra_prefect.terraform.gate_kinds import FREE_TAGGED, FREE_UNTAGGED, RESPAWNING, SWEPT, TO_ZERO_LATER
from mlinfra_prefect.terraform.gate_plan import UNKNOWN, PlanView, Resource, blocks, is_false, is_true
from mlinfra_prefect.terraform.gate_policy import Finding, Policy
from mlinfra_prefect.terraform.gate_templates import TEMPLATE, launches

INSTANCE = "aws_instance"
FLEET = "aws_ec2_fleet"
SPOT = "aws_spot_instance_request"


def findings(view: PlanView, policy: Policy) -> Iterator[Finding]:
    """What cannot be stopped, what would outlive its end, what is soft, and what is too many."""
    inheriting = {launch.launcher.address for launch in launches(view) if launch.templates}
    for resource, values in view.rented():
        if policy.ephemeral:
            yield from _meter(resource, values, policy)
        if resource.type == TEMPLATE:
            yield from _template(resource, values, policy)
        elif resource.type in {INSTANCE, SPOT}:
            yield from _instance(resource, values, policy, inherits=resource.address in inheriting)
        elif resource.type == "aws_ebs_volume" and not is_true(values.get("encrypted")):
            yield _soft_disk(resource, "encrypted")
    if policy.max_instances is not None:
        yield from _count(view, policy.max_instances)


# --- the meter -------------------------------------------------------------------------------------------------------


def _meter(resource: Resource, values: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    kind = resource.type
    if kind in policy.kinds:
        return
    if kind in TO_ZERO_LATER:
        told = f"The meter of {kind} is stopped by setting it to zero, which this version cannot do yet"
        yield _refused(resource, f"{told}; use an aws_ec2_fleet of type instant.")
    elif kind in RESPAWNING:
        yield _refused(resource, f"{kind} starts again what is ended; use an aws_ec2_fleet of type instant.")
    elif kind not in SWEPT | FREE_TAGGED | FREE_UNTAGGED:
        told = f"Nothing here stops the meter of {kind} or finds it by its tags; keep it in a shared stack"
        yield _refused(resource, f"{told}, or allow its type by name.")
    elif kind == FLEET:
        if values.get("type") != "instant":
            told = "A fleet that is not of type instant starts again what is ended"
            yield _refused(resource, f'{told}; write type = "instant".')
        if not is_true(values.get("terminate_instances")):
            yield _refused(resource, "Deleting the fleet must end its instances; write terminate_instances = true.")
    elif kind == SPOT and values.get("spot_type") != "one-time":
        told = "A persistent spot request starts again what is ended"
        yield _refused(resource, f'{told}; write spot_type = "one-time".')
    yield from _spot(resource, values)


def _spot(resource: Resource, values: Mapping[str, Any]) -> Iterator[Finding]:
    for words in _spot_options(values, computed=resource.type == INSTANCE):
        if words.get("instance_interruption_behavior") not in (None, "", "terminate"):
            told = "An interrupted spot instance must end, not stop"
            yield _refused(resource, f'{told}; write instance_interruption_behavior = "terminate".')
        if words.get("spot_instance_type") not in (None, "", "one-time"):
            told = "A persistent spot request starts again what is ended"
            yield _refused(resource, f'{told}; write spot_instance_type = "one-time".')


def _spot_options(values: Mapping[str, Any], *, computed: bool) -> Iterator[Mapping[str, Any]]:
    """Wherever a spot market is described. What is ``computed`` is unknown where nobody wrote it, which is harmless."""
    yield values
    for name in ("spot_options", "instance_market_options"):
        found = blocks(values, name)
        if found is UNKNOWN and not computed:
            yield {"instance_interruption_behavior": UNKNOWN}
        for item in found if isinstance(found, tuple) else ():
            yield item
            yield from _spot_options({"spot_options": item.get("spot_options")}, computed=computed)


def _refused(resource: Resource, told: str) -> Finding:
    return Finding(resource.address, "meter-unknown", told)


# --- the machine -----------------------------------------------------------------------------------------------------


def _template(resource: Resource, values: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    yield from _metadata(resource, values)
    mappings = blocks(values, "block_device_mappings")
    disks = []
    for item in mappings if isinstance(mappings, tuple) else ():
        found = blocks(item, "ebs")
        disks += list(found) if isinstance(found, tuple) else [{}]
    if not disks:
        yield _soft_disk(resource, "block_device_mappings.ebs.encrypted")
    for disk in disks:
        yield from _disk(resource, disk, "block_device_mappings.ebs", policy, outlives_unless_said=True)
    cards = blocks(values, "network_interfaces")
    for card in cards if policy.ephemeral and isinstance(cards, tuple) else ():
        if is_false(card.get("delete_on_termination")):
            yield _outlives(resource, "network_interfaces")
    yield from _end(resource, values, policy)


def _instance(resource: Resource, values: Mapping[str, Any], policy: Policy, *, inherits: bool) -> Iterator[Finding]:
    """One that inherits from a template of the plan need not say again what the template says, and may not undo it."""
    if not inherits or isinstance(values.get("metadata_options"), list):
        yield from _metadata(resource, values)
    roots, others = blocks(values, "root_block_device"), blocks(values, "ebs_block_device")
    if not inherits and (not isinstance(roots, tuple) or not roots):
        yield _soft_disk(resource, "root_block_device.encrypted")
    for name, found in (("root_block_device", roots), ("ebs_block_device", others)):
        for disk in found if isinstance(found, tuple) else ():
            yield from _disk(resource, disk, name, policy, outlives_unless_said=False)
    if inherits and values.get("instance_initiated_shutdown_behavior") in (None, UNKNOWN):
        values = {**values, "instance_initiated_shutdown_behavior": "terminate"}
    yield from _end(resource, values, policy)


def _metadata(resource: Resource, values: Mapping[str, Any]) -> Iterator[Finding]:
    found = blocks(values, "metadata_options")
    options = found[0] if isinstance(found, tuple) and found else {}
    if options.get("http_tokens") != "required" and options.get("http_endpoint") != "disabled":
        told = 'Its metadata can be read without a token; write metadata_options with http_tokens = "required".'
        yield Finding(resource.address, "imds-v1", told)


def _disk(
    resource: Resource, disk: Mapping[str, Any], place: str, policy: Policy, *, outlives_unless_said: bool
) -> Iterator[Finding]:
    if not is_true(disk.get("encrypted")):
        yield _soft_disk(resource, f"{place}.encrypted")
    kept = disk.get("delete_on_termination")
    if policy.ephemeral and (not is_true(kept) if outlives_unless_said else is_false(kept)):
        yield _outlives(resource, place)


def _end(resource: Resource, values: Mapping[str, Any], policy: Policy) -> Iterator[Finding]:
    if not policy.ephemeral:
        return
    if values.get("instance_initiated_shutdown_behavior") != "terminate":
        told = "A power-off would only stop it, and its disks would be billed on; write "
        yield Finding(resource.address, "shutdown-stops", f'{told}instance_initiated_shutdown_behavior = "terminate".')
    for name in ("disable_api_termination", "disable_api_stop"):
        if is_true(values.get(name)):
            told = f"It could not be ended while {name} is set; leave it out."
            yield Finding(resource.address, "meter-unknown", told)


def _soft_disk(resource: Resource, place: str) -> Finding:
    return Finding(resource.address, "disk-unencrypted", f"A disk of it is not encrypted; write {place} = true.")


def _outlives(resource: Resource, place: str) -> Finding:
    told = f"It would leave {place} behind when it ends; write delete_on_termination = true there."
    return Finding(resource.address, "outlives-instance", told)


# --- how many --------------------------------------------------------------------------------------------------------


def _count(view: PlanView, limit: int) -> Iterator[Finding]:
    total = 0.0
    for resource, values in view.rented():
        number: Any = 0
        if resource.type in {INSTANCE, SPOT}:
            number = 1
        elif resource.type == FLEET:
            number = _capacity(values)
        elif resource.type == "aws_autoscaling_group":
            number = values.get("max_size")
        elif resource.type == "aws_eks_node_group":
            scaling = blocks(values, "scaling_config")
            number = scaling[0].get("max_size") if isinstance(scaling, tuple) and scaling else None
        if isinstance(number, bool) or not isinstance(number, int | float) or number < 0:
            told = "How many instances it starts cannot be told before the apply; write plain numbers, without weights."
            yield Finding(resource.address, "too-many-instances", told)
            continue
        total += number
    if not total <= limit:
        told = f"It would start {total:g} instances and at most {limit} are allowed; ask for fewer."
        yield Finding("", "too-many-instances", told)


def _capacity(values: Mapping[str, Any]) -> Any:
    capacity = blocks(values, "target_capacity_specification")
    if not isinstance(capacity, tuple) or len(capacity) != 1 or not _unweighted(values):
        return None
    words = capacity[0]
    if words.get("target_capacity_unit_type") not in (None, "", "units"):
        return None
    return words.get("total_target_capacity")


def _unweighted(values: Mapping[str, Any]) -> bool:
    """Whether each instance counts as one: with weights a capacity says nothing about how many there will be."""
    configs: Any = blocks(values, "launch_template_config")
    for config in configs if isinstance(configs, tuple) else ({"override": "?"},):
        overrides = blocks(config, "override")
        if not isinstance(overrides, tuple) or any(
            item.get("weighted_capacity") not in (None, 1) for item in overrides
        ):
            return False
    return True
