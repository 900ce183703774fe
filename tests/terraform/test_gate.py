"""Each rule of the plan gate: a plan that breaks only it is refused for it alone, and one that keeps it passes.

The plan that is broken is a recorded one, of a launch template with a spot fleet; other resources are put beside it in
the words of real plans (`test_gate_real` holds the recording against the real provider).
"""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from mlinfra_prefect.errors import PermanentError, PlanRejected
from mlinfra_prefect.terraform import gate

PLANS = Path(__file__).parent / "plans"
AWS = gate.AWS
TAGS = {
    "mlinfra-prefect:ledger": "led", "mlinfra-prefect:lease": "lea-1", "mlinfra-prefect:attempt": "1",
    "mlinfra-prefect:flow-run": "none", "mlinfra-prefect:owner": "ada", "mlinfra-prefect:environment": "dev",
    "mlinfra-prefect:deadline": "1700000000",
}  # fmt: skip
TEMPLATE = "module.node.aws_launch_template.node"
FLEET = "module.node.aws_ec2_fleet.node"
POLICY = gate.Policy(required_tags=TAGS, max_instances=2)


def recorded(name: str = "aws-gpu") -> dict:
    return json.loads((PLANS / f"{name}.json").read_text())


def rules(document, policy=POLICY, **more) -> set[tuple[str, str]]:
    return {(finding.address, finding.rule) for finding in gate.check(document, policy, **more)}


def change(document, address) -> dict:
    return next(item for item in document["resource_changes"] if item["address"] == address)["change"]


def after(document, address) -> dict:
    return change(document, address)["after"]


def template(document) -> dict:
    return after(document, TEMPLATE)


def fleet(document) -> dict:
    return after(document, FLEET)


def add(document, kind, values, *, unknown=None, mode="managed", provider=AWS, actions=("create",), expressions=None):
    """Puts a resource into the root module, as a plan would show it."""
    address = f"data.{kind}.x" if mode == "data" else f"{kind}.x"
    document["resource_changes"].append({
        "address": address, "mode": mode, "type": kind, "name": "x", "provider_name": provider,
        "change": {"actions": list(actions), "before": None, "after": values, "after_unknown": unknown or {}},
    })  # fmt: skip
    root = document["configuration"]["root_module"]
    block = {"address": address, "mode": mode, "type": kind, "name": "x", "expressions": expressions or {}}
    root.setdefault("resources", []).append(block)
    return block


INSTANCE = {
    "tags": TAGS, "volume_tags": TAGS, "launch_template": [], "associate_public_ip_address": False,
    "instance_initiated_shutdown_behavior": "terminate", "metadata_options": [{"http_tokens": "required"}],
    "root_block_device": [{"encrypted": True, "delete_on_termination": True, "tags": None}],
}  # fmt: skip
GROUP = {"tags": TAGS, "ingress": [], "egress": []}
FROM_TEMPLATE = {"launch_template": [{"id": {"references": ["aws_launch_template.x.id", "aws_launch_template.x"]}}]}


def edited(values: dict, **words) -> dict:
    return {**copy.deepcopy(values), **words}


def own_template(document) -> None:
    """A template in the root module, as good as the recorded one, so that what stands there can refer to it."""
    add(document, "aws_launch_template", copy.deepcopy(template(document)))


# --- the plan that all of this starts from ---------------------------------------------------------------------------


def test_the_plan_of_an_attempt_passes():
    """Our own stack keeps every rule, with exactly the tags that it was planned with."""
    assert gate.check(recorded(), POLICY) == ()
    gate.enforce(recorded(), POLICY)


def test_a_plan_without_anything_of_aws_passes():
    """What rents nothing has nothing to tag: the built-in provider's resources are not judged."""
    document = {"format_version": "1.2", "configuration": {"root_module": {}}, "resource_changes": []}
    add(document, "terraform_data", {"input": None}, provider=gate.BUILTIN)
    assert gate.check(document, POLICY) == ()


# --- one rule each ---------------------------------------------------------------------------------------------------

BREAKS: dict[str, tuple] = {}


def breaks(rule: str, address: str):
    """Registers an edit of the recorded plan that breaks one rule, at one address, and nothing else."""

    def register(edit):
        BREAKS[edit.__name__] = (edit, {(address, rule)})
        return edit

    return register


@breaks("tags-missing", TEMPLATE)
def template_without_volume_tags(document):
    template(document)["tag_specifications"] = [
        item for item in template(document)["tag_specifications"] if item["resource_type"] != "volume"
    ]


@breaks("tags-missing", TEMPLATE)
def spot_template_without_request_tags(document):
    template(document)["tag_specifications"] = [
        item for item in template(document)["tag_specifications"] if item["resource_type"] != "spot-instances-request"
    ]


@breaks("tags-missing", TEMPLATE)
def template_with_six_of_seven_tags_on_interfaces(document):
    for item in template(document)["tag_specifications"]:
        if item["resource_type"] == "network-interface":
            del item["tags"]["mlinfra-prefect:deadline"]


@breaks("tags-missing", TEMPLATE)
def template_with_an_empty_tag(document):
    template(document)["tag_specifications"][0]["tags"]["mlinfra-prefect:lease"] = ""


@breaks("tags-wrong", TEMPLATE)
def template_with_the_tags_of_another_lease(document):
    template(document)["tag_specifications"][0]["tags"]["mlinfra-prefect:lease"] = "lea-2"


@breaks("tags-unknown", TEMPLATE)
def template_with_tags_known_after_the_apply(document):
    change(document, TEMPLATE)["after_unknown"]["tag_specifications"] = [
        {"tags": {"mlinfra-prefect:owner": True}}, {}, {}, {},
    ]  # fmt: skip
    del template(document)["tag_specifications"][0]["tags"]["mlinfra-prefect:owner"]


@breaks("tags-unknown", TEMPLATE)
def template_whose_specifications_are_unknown(document):
    change(document, TEMPLATE)["after_unknown"]["tag_specifications"] = True


@breaks("tags-missing", FLEET)
def fleet_without_tags(document):
    fleet(document).update(tags=None, tags_all=None)


@breaks("template-not-in-plan", FLEET)
def fleet_of_a_template_that_exists_already(document):
    config = fleet_block(document)["expressions"]["launch_template_config"][0]["launch_template_specification"][0]
    config["launch_template_id"] = {"constant_value": "lt-0a1b2c"}


@breaks("template-not-in-plan", FLEET)
def fleet_of_a_template_chosen_by_an_expression(document):
    config = fleet_block(document)["expressions"]["launch_template_config"][0]["launch_template_specification"][0]
    config["launch_template_id"]["references"].append("var.template")


@breaks("template-not-in-plan", FLEET)
def fleet_whose_templates_are_a_dynamic_block(document):
    del fleet_block(document)["expressions"]["launch_template_config"]


@breaks("template-not-in-plan", FLEET)
def fleet_with_one_more_template_than_is_written(document):
    fleet(document)["launch_template_config"] *= 2


@breaks("template-not-in-plan", FLEET)
def fleet_of_another_modules_template(document):
    document["configuration"]["root_module"]["module_calls"]["node"]["module"]["resources"] = [
        {**item, "address": item["address"].replace("launch_template.node", "launch_template.other")}
        for item in document["configuration"]["root_module"]["module_calls"]["node"]["module"]["resources"]
    ]


@breaks("tags-missing", "aws_instance.x")
def instance_whose_disks_carry_no_tags(document):
    add(document, "aws_instance", edited(INSTANCE, volume_tags=None))


@breaks("tags-missing", "aws_instance.x")
def instance_with_an_untagged_second_disk(document):
    disks = [{"encrypted": True, "delete_on_termination": True, "tags": None}]
    tagged = [{"encrypted": True, "delete_on_termination": True, "tags": TAGS}]
    add(document, "aws_instance", edited(INSTANCE, volume_tags=None, root_block_device=tagged, ebs_block_device=disks))


@breaks("tags-missing", "aws_ebs_volume.x")
def volume_without_tags(document):
    add(document, "aws_ebs_volume", {"encrypted": True, "tags": None, "tags_all": {}})


@breaks("tags-missing", "aws_security_group.x")
def security_group_without_tags(document):
    add(document, "aws_security_group", edited(GROUP, tags={}))


@breaks("tags-unknown", "aws_eip.x")
def address_with_unknown_tags(document):
    add(document, "aws_eip", {"tags": None}, unknown={"tags": True, "tags_all": True})


@breaks("tags-not-at-launch", "aws_spot_instance_request.x")
def spot_request_whose_instance_gets_no_tags(document):
    add(document, "aws_spot_instance_request", edited(INSTANCE, spot_type="one-time"))


@breaks("meter-unknown", "aws_nat_gateway.x")
def gateway_that_no_sweep_finds(document):
    add(document, "aws_nat_gateway", {"tags": TAGS, "connectivity_type": "private"})


@breaks("meter-unknown", "aws_spot_fleet_request.x")
def spot_fleet_request(document):
    add(document, "aws_spot_fleet_request", {"tags": TAGS})


@breaks("meter-unknown", "aws_sagemaker_notebook_instance.x")
def sagemaker_notebook(document):
    add(document, "aws_sagemaker_notebook_instance", {"tags": TAGS})


@breaks("meter-unknown", "aws_emr_cluster.x")
def emr_cluster(document):
    add(document, "aws_emr_cluster", {"tags": TAGS})


@breaks("meter-unknown", "aws_autoscaling_group.x")
def scaling_group_that_cannot_be_set_to_zero_yet(document):
    own_template(document)
    values = {
        "tag": [{"key": key, "value": value, "propagate_at_launch": True} for key, value in TAGS.items()],
        "launch_template": [{"id": None}], "max_size": 1,
    }  # fmt: skip
    add(document, "aws_autoscaling_group", values, expressions=FROM_TEMPLATE)


@breaks("meter-unknown", "aws_eks_node_group.x")
def node_group_that_cannot_be_set_to_zero_yet(document):
    own_template(document)
    values = {"tags": TAGS, "launch_template": [{"id": None}], "scaling_config": [{"max_size": 1}]}
    add(document, "aws_eks_node_group", values, expressions=FROM_TEMPLATE)


@breaks("meter-unknown", FLEET)
def fleet_that_maintains_its_capacity(document):
    fleet(document)["type"] = "maintain"


@breaks("meter-unknown", FLEET)
def fleet_that_leaves_its_instances(document):
    fleet(document)["terminate_instances"] = False


@breaks("meter-unknown", FLEET)
def fleet_whose_interrupted_instances_stop(document):
    fleet(document)["spot_options"][0]["instance_interruption_behavior"] = "stop"


@breaks("meter-unknown", TEMPLATE)
def template_with_a_persistent_spot_request(document):
    template(document)["instance_market_options"] = [
        {"market_type": "spot", "spot_options": [{"spot_instance_type": "persistent"}]}
    ]


@breaks("meter-unknown", TEMPLATE)
def template_that_forbids_to_terminate(document):
    template(document)["disable_api_termination"] = True


@breaks("shutdown-stops", TEMPLATE)
def template_that_a_power_off_only_stops(document):
    template(document)["instance_initiated_shutdown_behavior"] = "stop"


@breaks("shutdown-stops", "aws_instance.x")
def instance_that_a_power_off_only_stops(document):
    values = {name: value for name, value in INSTANCE.items() if name != "instance_initiated_shutdown_behavior"}
    add(document, "aws_instance", values, unknown={"instance_initiated_shutdown_behavior": True})


@breaks("shutdown-stops", "aws_instance.x")
def instance_that_undoes_what_its_template_says(document):
    own_template(document)
    values = {"tags": TAGS, "launch_template": [{"id": None}], "instance_initiated_shutdown_behavior": "stop"}
    add(document, "aws_instance", values, expressions=FROM_TEMPLATE)


@breaks("imds-v1", TEMPLATE)
def template_with_metadata_without_a_token(document):
    template(document)["metadata_options"][0]["http_tokens"] = "optional"


@breaks("imds-v1", TEMPLATE)
def template_that_does_not_speak_of_metadata(document):
    template(document)["metadata_options"] = []


@breaks("imds-v1", "aws_instance.x")
def instance_with_unknown_metadata_options(document):
    values = {name: value for name, value in INSTANCE.items() if name != "metadata_options"}
    add(document, "aws_instance", values, unknown={"metadata_options": True})


@breaks("disk-unencrypted", TEMPLATE)
def template_with_a_plain_disk(document):
    template(document)["block_device_mappings"][0]["ebs"][0]["encrypted"] = "false"


@breaks("disk-unencrypted", TEMPLATE)
def template_that_does_not_speak_of_disks(document):
    template(document)["block_device_mappings"] = []
    change(document, TEMPLATE)["after_unknown"]["block_device_mappings"] = []


@breaks("disk-unencrypted", "aws_instance.x")
def instance_with_a_plain_disk(document):
    add(document, "aws_instance", edited(INSTANCE, root_block_device=[{"encrypted": False}]))


@breaks("disk-unencrypted", "aws_ebs_volume.x")
def plain_volume(document):
    add(document, "aws_ebs_volume", {"encrypted": False, "tags": TAGS})


@breaks("outlives-instance", TEMPLATE)
def template_whose_disk_stays(document):
    template(document)["block_device_mappings"][0]["ebs"][0]["delete_on_termination"] = None


@breaks("outlives-instance", TEMPLATE)
def template_whose_interface_stays(document):
    template(document)["network_interfaces"][0]["delete_on_termination"] = "false"


@breaks("ingress-refused", "aws_vpc_security_group_ingress_rule.x")
def private_ingress_in_an_attempt(document):
    template(document)["network_interfaces"][0]["associate_public_ip_address"] = "false"
    add(document, "aws_vpc_security_group_ingress_rule", {"cidr_ipv4": "10.64.0.0/16"})


@breaks("too-many-instances", "")
def fleet_of_three(document):
    fleet(document)["target_capacity_specification"][0]["total_target_capacity"] = 3


@breaks("too-many-instances", FLEET)
def fleet_with_weights(document):
    fleet(document)["launch_template_config"][0]["override"][0]["weighted_capacity"] = 0.25


@breaks("too-many-instances", FLEET)
def fleet_counted_in_processors(document):
    fleet(document)["target_capacity_specification"][0]["target_capacity_unit_type"] = "vcpu"


@breaks("provider-not-allowed", "random_id.x")
def a_provider_of_somebody_else(document):
    add(document, "random_id", {}, provider="registry.terraform.io/hashicorp/random")


@breaks("provider-not-allowed", "provider shell")
def a_provider_that_is_only_configured(document):
    document["configuration"]["provider_config"]["shell"] = {"name": "shell", "full_name": "example.com/a/shell"}


@breaks("provider-unresolved", "provider aws")
def a_provider_whose_region_is_an_output(document):
    document["configuration"]["provider_config"]["aws"]["expressions"]["region"] = {"references": ["module.a.region"]}


@breaks("provider-unresolved", "provider aws")
def a_provider_whose_role_is_an_expression(document):
    document["configuration"]["provider_config"]["aws"]["expressions"]["assume_role"] = [
        {"role_arn": {"references": ["var.account", "var.role"]}}
    ]


@breaks("provider-unresolved", "provider module.node:aws")
def a_provider_configured_in_a_module(document):
    document["configuration"]["provider_config"]["module.node:aws"] = {
        "name": "aws", "full_name": AWS, "module_address": "module.node",
        "expressions": {"region": {"constant_value": "us-east-1"}},
    }  # fmt: skip


@breaks("program-runs", "terraform_data.x")
def a_local_exec(document):
    add(document, "terraform_data", {}, provider=gate.BUILTIN)["provisioners"] = [{"type": "local-exec"}]


@breaks("program-runs", "module.node.aws_ec2_fleet.node")
def a_remote_exec_in_a_module(document):
    fleet_block(document)["provisioners"] = [{"type": "remote-exec"}]


@breaks("program-runs", "data.aws_lambda_invocation.x")
def a_data_source_that_runs_a_function(document):
    add(document, "aws_lambda_invocation", {}, mode="data", actions=("read",))


@breaks("program-runs", "")
def an_action(document):
    document["action_invocations"] = [{"address": "action.aws_lambda_invoke.x"}]


@breaks("not-only-creates", TEMPLATE)
def a_change_in_place(document):
    change(document, TEMPLATE)["actions"] = ["update"]


@breaks("not-only-creates", FLEET)
def a_replacement(document):
    change(document, FLEET)["actions"] = ["delete", "create"]


@breaks("not-only-creates", "aws_ebs_volume.x")
def a_deletion(document):
    add(document, "aws_ebs_volume", None, actions=("delete",))


@breaks("not-only-creates", "aws_ebs_volume.x")
def something_forgotten(document):
    add(document, "aws_ebs_volume", None, actions=("forget",))


@breaks("import-refused", "aws_ebs_volume.x")
def something_adopted(document):
    add(document, "aws_ebs_volume", {"tags": TAGS, "encrypted": True}, actions=("no-op",))
    change(document, "aws_ebs_volume.x")["importing"] = {"id": "vol-0a1b2c"}


@breaks("plan-unreadable", "")
def a_part_put_off(document):
    document["complete"] = False


@breaks("plan-unreadable", "")
def planning_that_failed(document):
    document["errored"] = True


def fleet_block(document) -> dict:
    resources = document["configuration"]["root_module"]["module_calls"]["node"]["module"]["resources"]
    return next(item for item in resources if item["type"] == "aws_ec2_fleet")


@pytest.mark.parametrize("name", BREAKS)
def test_a_plan_that_breaks_one_rule_is_refused_for_it_alone(name):
    """Each edit of a good plan is found, at its address, and finds nothing else."""
    edit, expected = BREAKS[name]
    document = recorded()
    edit(document)
    assert rules(document) == expected


KEEPS: dict[str, tuple] = {}


def keeps(policy=POLICY):
    """Registers an edit of the recorded plan that keeps every rule."""

    def register(edit):
        KEEPS[edit.__name__] = (edit, policy)
        return edit

    return register


@keeps()
def an_instance(document):
    add(document, "aws_instance", INSTANCE)


@keeps()
def an_instance_whose_disks_are_tagged_one_by_one(document):
    disks = [{"encrypted": True, "delete_on_termination": True, "tags": TAGS}]
    add(document, "aws_instance", edited(INSTANCE, volume_tags=None, root_block_device=disks, ebs_block_device=disks))


@keeps()
def an_instance_that_has_all_from_a_template_of_the_plan(document):
    own_template(document)
    values = {"tags": TAGS, "launch_template": [{"id": None}]}
    unknown = {"metadata_options": True, "root_block_device": True, "instance_initiated_shutdown_behavior": True}
    add(document, "aws_instance", values, unknown=unknown, expressions=FROM_TEMPLATE)


@keeps()
def an_on_demand_fleet_whose_template_has_no_tags_for_a_spot_request(document):
    """EC2 refuses such tags where there is no spot request."""
    words = fleet(document)["target_capacity_specification"][0]
    words.update(default_target_capacity_type="on-demand", spot_target_capacity=0, on_demand_target_capacity=1)
    fleet(document)["spot_options"] = []
    spot_template_without_request_tags(document)


@keeps()
def a_group_without_rules(document):
    """What a security group lets in is unknown in a plan where nothing is written, and then it lets nothing in."""
    values = {name: value for name, value in GROUP.items() if name != "ingress"}
    add(document, "aws_security_group", values, unknown={"ingress": True})


@keeps()
def a_rule_that_lets_out(document):
    add(document, "aws_security_group_rule", {"type": "egress", "cidr_blocks": ["0.0.0.0/0"]})
    add(document, "aws_vpc_security_group_egress_rule", {"cidr_ipv4": "0.0.0.0/0", "tags": None})


@keeps()
def a_volume_tagged_by_the_provider(document):
    """A provider's default tags do reach what is tagged directly."""
    add(document, "aws_ebs_volume", {"encrypted": True, "tags": None, "tags_all": TAGS})


@keeps(gate.Policy(required_tags={**TAGS, "mlinfra-prefect:owner": None}))
def any_owner(document):
    for item in template(document)["tag_specifications"]:
        item["tags"]["mlinfra-prefect:owner"] = "somebody"


@keeps(gate.Policy(required_tags=TAGS, kinds=frozenset({"aws_nat_gateway"})))
def a_kind_allowed_by_name(document):
    gateway_that_no_sweep_finds(document)


@keeps(gate.Policy(required_tags=TAGS, allow_programs=True))
def programs_that_are_allowed(document):
    a_local_exec(document)


@keeps(gate.Policy(required_tags=TAGS, ephemeral=False))
def a_change_of_a_shared_stack(document):
    a_change_in_place(document)
    a_deletion(document)
    template_that_a_power_off_only_stops(document)


@keeps(gate.Policy(required_tags=TAGS, egress="none"))
def no_public_address_where_there_is_no_way_out(document):
    template(document)["network_interfaces"][0]["associate_public_ip_address"] = "false"


@pytest.mark.parametrize("name", KEEPS)
def test_a_plan_that_keeps_every_rule_passes(name):
    """What is allowed is not refused by accident."""
    edit, policy = KEEPS[name]
    document = recorded()
    edit(document)
    assert gate.check(document, policy) == ()


def test_what_replaces_something_is_judged_too():
    """A replacement that creates first ends with a deletion, and what it creates stays."""
    document = recorded()
    template_without_volume_tags(document)
    change(document, TEMPLATE)["actions"] = ["create", "delete"]
    assert rules(document, gate.Policy(required_tags=TAGS, ephemeral=False)) == {(TEMPLATE, "tags-missing")}


def test_a_mode_that_nobody_knows_is_refused():
    """What is neither managed nor read would be judged by no rule."""
    document = recorded()
    next(item for item in document["resource_changes"] if item["address"] == FLEET)["mode"] = "other"
    assert (FLEET, "plan-unreadable") in rules(document)


def test_what_cannot_carry_a_tag_is_refused_by_name():
    """A type that the provider cannot tag, and that is not known to be free, is two findings in an attempt."""
    document = recorded()
    add(document, "aws_launch_configuration", {"instance_type": "g6.xlarge"})
    found = gate.check(document, POLICY)
    assert {(item.address, item.rule) for item in found} == {
        ("aws_launch_configuration.x", "kind-untaggable"), ("aws_launch_configuration.x", "meter-unknown"),
    }  # fmt: skip
    assert all("aws_launch_configuration" in item.message for item in found)


def test_only_tags_that_instances_get_at_launch_count_for_a_scaling_group():
    """A tag block that is not propagated tags the group and nothing that is billed."""
    document = recorded()
    scaling_group_that_cannot_be_set_to_zero_yet(document)
    after(document, "aws_autoscaling_group.x")["tag"][0]["propagate_at_launch"] = False
    assert ("aws_autoscaling_group.x", "tags-missing") in rules(document)


# --- the network -----------------------------------------------------------------------------------------------------

SHARED = gate.Policy.shared({"mlinfra-prefect:shared": "true"}, profile="hardened", egress="internet")
EMPTY = {"format_version": "1.2", "configuration": {"root_module": {}}, "resource_changes": []}


def shared(kind, values, *, unknown=None, expressions=None):
    document = copy.deepcopy(EMPTY)
    tags = {"mlinfra-prefect:shared": "true"}
    add(document, kind, {"tags": tags, **values}, unknown=unknown, expressions=expressions)
    return document


@pytest.mark.parametrize(
    "address", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "8.8.8.8/32", "2000::/3", "10.0.0.0/7", "not an address", 7, None]
)
def test_nobody_outside_is_let_in(address):
    """Whatever is not surely a private address is public, however it is written: as a rule or inside of a group."""
    rule = shared("aws_vpc_security_group_ingress_rule", {"cidr_ipv4": address})
    group = shared("aws_security_group", {"ingress": [{"cidr_blocks": [address], "security_groups": []}]})
    expected = set() if address is None else {("aws_vpc_security_group_ingress_rule.x", "public-ingress")}
    assert rules(rule, SHARED) == expected
    assert rules(group, SHARED) == {("aws_security_group.x", "public-ingress")}


@pytest.mark.parametrize("address", ["10.64.0.0/16", "172.16.5.4/32", "192.168.0.0/24", "100.64.0.0/10", "fd00::/8"])
def test_private_addresses_are_let_in_only_where_the_policy_says_so(address):
    """An interface endpoint has to be reached from the nodes; in the default profile there is none."""
    document = shared("aws_vpc_security_group_ingress_rule", {"cidr_ipv6" if ":" in address else "cidr_ipv4": address})
    default = gate.Policy.shared({"mlinfra-prefect:shared": "true"})
    assert rules(document, SHARED) == set()
    assert rules(document, default) == {("aws_vpc_security_group_ingress_rule.x", "ingress-refused")}


@pytest.mark.parametrize(
    ("values", "unknown"),
    [
        ({"cidr_ipv4": None}, {"cidr_ipv4": True}),
        ({"prefix_list_id": "pl-1"}, {}),
    ],
)
def test_whom_a_rule_lets_in_must_be_in_the_plan(values, unknown):
    """An address that is known later, or a list that is kept elsewhere, could be anybody."""
    document = shared("aws_vpc_security_group_ingress_rule", values, unknown=unknown)
    assert rules(document, SHARED) == {("aws_vpc_security_group_ingress_rule.x", "public-ingress")}


def test_an_ingress_that_is_written_and_unknown_is_refused():
    """Unlike a group where nothing is written."""
    expressions = {"ingress": {"references": ["local.rules"]}}
    document = shared("aws_security_group", {}, unknown={"ingress": True}, expressions=expressions)
    assert rules(document, SHARED) == {("aws_security_group.x", "public-ingress")}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("aws_lb", {"internal": False}),
        ("aws_lb", {"internal": None}),
        ("aws_elb", {"internal": False}),
        ("aws_lambda_function_url", {"authorization_type": "NONE"}),
        ("aws_security_group_rule", {"type": "ingress", "cidr_blocks": ["0.0.0.0/0"]}),
        ("aws_default_security_group", {"ingress": [{"cidr_blocks": ["0.0.0.0/0"]}]}),
    ],
)
def test_other_ways_in_are_refused(kind, values):
    """A balancer, a function's own URL, a rule in the older syntax, the group that every network has."""
    assert (f"{kind}.x", "public-ingress") in rules(shared(kind, values), SHARED)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("aws_eip", {}),
        ("aws_nat_gateway", {"connectivity_type": "public"}),
        ("aws_subnet", {"map_public_ip_on_launch": True}),
        ("aws_internet_gateway", {}),
    ],
)
@pytest.mark.parametrize("egress", ["internet", "mirror", "none"])
def test_a_public_address_stands_only_where_the_way_out_is_the_internet(kind, values, egress):
    """The environment decides, and the plan is held to it."""
    policy = gate.Policy.shared({"mlinfra-prefect:shared": "true"}, profile="hardened", egress=egress)
    expected = set() if egress == "internet" else {(f"{kind}.x", "public-ip")}
    assert rules(shared(kind, values), policy) == expected


def test_a_node_must_say_that_it_gets_no_public_address():
    """Left open, the subnet decides, and the plan does not show it."""
    policy = gate.Policy(required_tags=TAGS, egress="mirror")
    for value, expected in (("true", {(TEMPLATE, "public-ip")}), (None, {(TEMPLATE, "public-ip")}), ("false", set())):
        document = recorded()
        template(document)["network_interfaces"][0]["associate_public_ip_address"] = value
        assert rules(document, policy) == expected


def test_a_public_address_never_stands_beside_an_ingress_rule():
    """Even where the rule itself names private addresses only."""
    document = recorded()
    add(document, "aws_vpc_security_group_ingress_rule", {"cidr_ipv4": "10.64.0.0/16"})
    assert (TEMPLATE, "public-ip") in rules(document)


# --- what the gate says ----------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once():
    """The error lists each finding with its address, its rule and what to do, and may not be tried again."""
    document = recorded()
    template_with_a_plain_disk(document)
    fleet_that_maintains_its_capacity(document)
    with pytest.raises(PlanRejected) as caught:
        gate.enforce(document, POLICY)
    assert isinstance(caught.value, PermanentError)
    for finding in gate.check(document, POLICY):
        assert str(finding) in caught.value.message
    assert f"{TEMPLATE} [disk-unencrypted]" in caught.value.message
    assert f"{FLEET} [meter-unknown]" in caught.value.message
    assert "2 rules" in caught.value.message


def test_what_the_teardown_bundle_lacks_is_found_and_said_once():
    """The caller knows more, from the module's text; what both know is one finding."""
    document = recorded()
    a_provider_whose_region_is_an_output(document)
    known = rules(document, unresolved=("aws: region", "aws.west: profile"))
    assert known == {("provider aws", "provider-unresolved"), ("provider aws.west", "provider-unresolved")}
    assert len(gate.check(document, POLICY, unresolved=("aws: region",))) == 1


def test_a_policy_knows_three_ways_out():
    """A misspelt egress would allow what it should not."""
    with pytest.raises(ValueError, match="egress"):
        gate.Policy(egress="Internet")


def test_the_document_is_not_changed():
    """The same document is priced and shown afterwards."""
    document = recorded()
    before = copy.deepcopy(document)
    gate.check(document, POLICY)
    assert document == before
