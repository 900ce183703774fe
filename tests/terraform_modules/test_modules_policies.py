"""What the roles may do, and what they may not: the documents that the real provider plans, evaluated.

The documents are those of stack aws-shared in the default profile, where nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from modules_harness import ACCOUNT, TAGS, planned
from policy_evaluator import Document, allows, listed, statements

from mlinfra_prefect.aws.granting import arns

EC2 = f"arn:aws:ec2:us-east-1:{ACCOUNT}"
ARTIFACTS = f"arn:aws:s3:::mlinfra-prefect-artifacts-dev-{ACCOUNT}-us-east-1"
STATE = f"arn:aws:s3:::mlinfra-prefect-state-dev-{ACCOUNT}-us-east-1"
NODE = "AROAEXAMPLE:i-0123456789abcdef0"
OTHER_NODE = "AROAEXAMPLE:i-0fedcba9876543210"
NODE_ROLE = f"arn:aws:iam::{ACCOUNT}:role/mlinfra-prefect-node-dev"
MADE = ("fleet", "instance", "volume", "network-interface", "launch-template", "spot-instances-request")

# Actions that AWS offers on no narrower resource (service authorization reference), and that change nothing.
LOOKING = ("ec2:Describe", "tag:GetResources", "pricing:GetProducts", "servicequotas:Get", "servicequotas:List")


@pytest.fixture(scope="session")
def documents(shared_plan: Callable[..., dict[str, Any]]) -> dict[str, Document]:
    """Every policy of the environment, by its name."""
    return _documents(shared_plan())


@pytest.fixture(scope="session")
def hardened(shared_plan: Callable[..., dict[str, Any]]) -> dict[str, Document]:
    """The same in profile hardened, with a bucket of inputs, and the secrets that `init aws --secret` was told."""
    secrets = arns(("aws-sm:hub-token", "ssm:/ours/wandb"), "us-east-1", ACCOUNT)
    return _documents(shared_plan("hardened", "none", input_buckets=["datasets"], secret_arns=secrets))


def _documents(document: dict[str, Any]) -> dict[str, Document]:
    found = {}
    for each in planned(document):
        if each["type"] in {
            "aws_iam_policy",
            "aws_iam_role_policy",
            "aws_s3_bucket_policy",
            "aws_vpc_endpoint",
            "aws_kms_key",
        }:
            text = each["values"].get("policy")
            if text:
                found[each["address"].rpartition(".")[2] if "iam" in each["type"] else each["address"]] = json.loads(
                    text
                )
    return found


def creator(documents: dict[str, Document]) -> list[Document]:
    return [documents["creating"], documents["ending"], documents["storing"]]


def launching(**changed: str | None) -> dict[str, Any]:
    """The context of a request that carries the seven tags of a lease, or others."""
    tags = {key: value for key, value in {**TAGS, **changed}.items() if value is not None}
    return {**{f"aws:RequestTag/{key}": value for key, value in tags.items()}, "aws:TagKeys": sorted(tags)}


def carrying(**changed: str | None) -> dict[str, Any]:
    """The context of a request on something that carries these tags."""
    tags = {key: value for key, value in {**TAGS, **changed}.items() if value is not None}
    return {f"aws:ResourceTag/{key}": value for key, value in tags.items()}


# --- of all of them ---------------------------------------------------------------------------------------------------


def test_no_policy_allows_everything(documents: dict[str, Document], hardened: dict[str, Document]) -> None:
    """No action with a wildcard, and every resource only for what looks and has no narrower one."""
    for name, document in [*documents.items(), *hardened.items()]:
        for each in statements(document):
            if each["Effect"] == "Deny" or name.endswith("aws_kms_key.this[0]"):
                continue  # a key's own policy is about that key, and hands it to the account's policies
            assert not [action for action in listed(each["Action"]) if "*" in action], (name, each)
            if "*" in listed(each["Resource"]):
                wide = [action for action in listed(each["Action"]) if not action.startswith(LOOKING)]
                assert not wide, (name, wide)


def test_the_policies_that_are_tested_are_all_there_are(documents: dict[str, Document]) -> None:
    """A policy that is added has to be tried here, too."""
    named = {name.rpartition(".")[2] for name in documents}
    assert named == {
        "node",
        "creating",
        "ending",
        "storing",
        "artifacts[0]",
    }  # the dead-man's names an ARN not known yet


# --- a node -----------------------------------------------------------------------------------------------------------

OWN = [
    ("s3:GetObject", f"{ARTIFACTS}/nodes/{NODE}/in/spec.json", True),
    ("s3:PutObject", f"{ARTIFACTS}/nodes/{NODE}/in/spec.json", False),
    ("s3:DeleteObject", f"{ARTIFACTS}/nodes/{NODE}/in/grant", False),
    ("s3:GetObject", f"{ARTIFACTS}/nodes/{NODE}/out/index.json", True),
    ("s3:PutObject", f"{ARTIFACTS}/nodes/{NODE}/out/blocks/ab", True),
    ("s3:DeleteObject", f"{ARTIFACTS}/nodes/{NODE}/out/blocks/ab", True),
    ("s3:GetObject", f"{ARTIFACTS}/nodes/{OTHER_NODE}/in/spec.json", False),
    ("s3:GetObject", f"{ARTIFACTS}/nodes/{OTHER_NODE}/out/index.json", False),
    ("s3:PutObject", f"{ARTIFACTS}/nodes/{OTHER_NODE}/out/index.json", False),
    ("s3:GetObject", f"{ARTIFACTS}/checkpoints/dev/ab/1/weights.bin", False),
    ("s3:PutObject", f"{ARTIFACTS}/checkpoints/dev/ab/1/weights.bin", False),
    ("s3:GetObject", f"{ARTIFACTS}/agents/agent.pyz", False),
    ("s3:PutObject", f"{ARTIFACTS}/agents/agent.pyz", False),
    ("s3:GetObject", f"{STATE}/ledger/leases/a.json", False),
    ("s3:GetObject", f"{STATE}/terraform/shared.tfstate", False),
    ("s3:GetObject", f"{STATE}/nodes/{NODE}/in/spec.json", False),
    ("s3:DeleteBucket", ARTIFACTS, False),
    ("ec2:RunInstances", f"{EC2}:instance/*", False),
    ("ec2:TerminateInstances", f"{EC2}:instance/i-1", False),
    ("iam:PassRole", NODE_ROLE, False),
    ("sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/mlinfra-prefect-creator-dev", False),
]  # fmt: skip


@pytest.mark.parametrize(("action", "resource", "allowed"), OWN)
def test_a_node_reaches_its_own_mailbox_and_nothing_else(
    action: str, resource: str, allowed: bool, documents: dict[str, Document]
) -> None:
    """Whose mailbox it is follows from `aws:userid`, which the instance cannot choose."""
    assert allows([documents["node"]], action, resource, {"aws:userid": NODE}) is allowed


@pytest.mark.parametrize(
    ("prefix", "allowed"),
    [(f"nodes/{NODE}/in/", True), (f"nodes/{NODE}/", True), (f"nodes/{OTHER_NODE}/in/", False), ("nodes/", False),
     ("", False), (None, False), ("checkpoints/", False), (f"nodes/{NODE}0/in/", False)],
)  # fmt: skip
def test_a_node_lists_its_own_mailbox_only(prefix: str | None, allowed: bool, documents: dict[str, Document]) -> None:
    """Names of other mailboxes are names of machines; a listing without a prefix would tell them all."""
    context = {"aws:userid": NODE, **({"s3:prefix": prefix} if prefix is not None else {})}
    assert allows([documents["node"]], "s3:ListBucket", ARTIFACTS, context) is allowed
    assert not allows([documents["node"]], "s3:ListBucket", STATE, context)


def test_credentials_that_are_no_instances_reach_no_mailbox(documents: dict[str, Document]) -> None:
    """Without the variable the policy fits nothing, instead of everything."""
    assert not allows([documents["node"]], "s3:GetObject", f"{ARTIFACTS}/nodes/{NODE}/in/spec.json")


def test_a_secret_is_read_only_where_it_is_named(documents: dict[str, Document], hardened: dict[str, Document]) -> None:
    """By default a node reads none."""
    named = f"arn:aws:secretsmanager:us-east-1:{ACCOUNT}:secret:hub-token-AbCdEf"
    parameter = f"arn:aws:ssm:us-east-1:{ACCOUNT}:parameter/ours/wandb"
    for action, resource, other in (
        ("secretsmanager:GetSecretValue", named, named.replace("hub", "other")),
        ("secretsmanager:GetSecretValue", named, named.replace("-AbCdEf", "-two-AbCdEf")),
        ("ssm:GetParameter", parameter, f"{parameter}-two"),
    ):
        who = {"aws:userid": NODE}
        assert not allows([documents["node"]], action, resource, who)
        assert allows([hardened["node"]], action, resource, who)
        assert not allows([hardened["node"]], action, other, who)
        assert not any(allows([hardened[each]], action, resource, who) for each in ("creating", "ending", "storing"))


@pytest.mark.parametrize("service", ["secretsmanager", "ssm"])
def test_a_secrets_key_is_used_through_its_service_and_where_it_is_the_environments(
    service: str, documents: dict[str, Document], hardened: dict[str, Document]
) -> None:
    """A key of the account's own that somebody tagged; nothing is decrypted by asking KMS itself."""
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/11111111-2222-3333-4444-555555555555"
    tagged = {"aws:ResourceTag/mlinfra-prefect:environment": "dev"}
    through = {**tagged, "kms:ViaService": f"{service}.us-east-1.amazonaws.com"}
    assert allows([hardened["node"]], "kms:Decrypt", key, through)
    assert not allows([documents["node"]], "kms:Decrypt", key, through), "no secret, no key"
    assert not allows([hardened["node"]], "kms:Decrypt", key, tagged)
    foreign = {**through, "aws:ResourceTag/mlinfra-prefect:environment": "prod"}
    assert not allows([hardened["node"]], "kms:Decrypt", key, foreign)


# --- the creator ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("action", ["ec2:RunInstances", "ec2:CreateFleet"])
def test_a_launch_needs_all_seven_tags(action: str, kind: str, documents: dict[str, Document]) -> None:
    """Whatever misses one, or carries another environment's or one more, is not started."""
    resource = f"{EC2}:{kind}/*"
    held = creator(documents)
    assert allows(held, action, resource, launching())
    assert not allows(held, action, resource)
    for key in TAGS:
        assert not allows(held, action, resource, launching(**{key: None})), key
    assert not allows(held, action, resource, launching(**{"mlinfra-prefect:environment": "prod"}))
    assert not allows(held, action, resource, launching(**{"mlinfra-prefect:shared": "true"})), (
        "it would never be swept"
    )


def test_a_launch_uses_only_what_belongs_to_the_environment(documents: dict[str, Document]) -> None:
    """Its subnets, its group and its own templates; any image; no key pair, so no way in."""
    shared = {"aws:ResourceTag/mlinfra-prefect:environment": "dev", "aws:ResourceTag/mlinfra-prefect:shared": "true"}
    foreign = {"aws:ResourceTag/mlinfra-prefect:environment": "prod"}
    for resource in (f"{EC2}:subnet/subnet-1", f"{EC2}:security-group/sg-1", f"{EC2}:launch-template/lt-1"):
        assert allows(creator(documents), "ec2:RunInstances", resource, shared)
        assert not allows(creator(documents), "ec2:RunInstances", resource, foreign)
        assert not allows(creator(documents), "ec2:RunInstances", resource)
    assert allows(creator(documents), "ec2:RunInstances", "arn:aws:ec2:us-east-1::image/ami-1")
    assert not allows(creator(documents), "ec2:RunInstances", f"{EC2}:key-pair/mine", launching())


def test_tags_are_set_at_birth_and_never_after(documents: dict[str, Document]) -> None:
    """Who could tag anything could make it look as if a lease had it, or nobody."""
    resource = f"{EC2}:instance/i-1"
    assert allows(creator(documents), "ec2:CreateTags", resource, {**launching(), "ec2:CreateAction": "RunInstances"})
    assert not allows(creator(documents), "ec2:CreateTags", resource, launching())
    assert not allows(creator(documents), "ec2:CreateTags", resource, {**launching(), "ec2:CreateAction": "CreateVpc"})
    assert not allows(creator(documents), "ec2:DeleteTags", resource, carrying())


def test_a_role_is_passed_to_nodes_only(documents: dict[str, Document]) -> None:
    """The node role, to EC2, and no other role to nothing else."""
    ec2 = {"iam:PassedToService": "ec2.amazonaws.com"}
    assert allows(creator(documents), "iam:PassRole", NODE_ROLE, ec2)
    assert not allows(creator(documents), "iam:PassRole", NODE_ROLE, {"iam:PassedToService": "lambda.amazonaws.com"})
    assert not allows(creator(documents), "iam:PassRole", NODE_ROLE)
    for other in ("mlinfra-prefect-creator-dev", "mlinfra-prefect-node-prod", "Administrator"):
        assert not allows(creator(documents), "iam:PassRole", f"arn:aws:iam::{ACCOUNT}:role/{other}", ec2)


def test_a_creator_makes_no_identities_and_no_networks(documents: dict[str, Document]) -> None:
    """Those are made once, by whoever runs `init`."""
    for action in ("iam:CreateRole", "iam:PutRolePolicy", "iam:AttachRolePolicy", "ec2:CreateVpc", "ec2:CreateSubnet",
                   "ec2:AuthorizeSecurityGroupIngress", "ec2:CreateSecurityGroup", "ec2:ModifyInstanceAttribute",
                   "s3:PutBucketPolicy", "s3:DeleteBucket", "s3:PutLifecycleConfiguration"):  # fmt: skip
        assert not allows(creator(documents), action, f"{EC2}:vpc/vpc-1", launching())
        assert not allows(creator(documents), action, f"arn:aws:iam::{ACCOUNT}:role/x", launching())
        assert not allows(creator(documents), action, ARTIFACTS, launching())


def test_service_linked_roles_are_fleets_and_spots_only(documents: dict[str, Document]) -> None:
    """They come to be with an account's first fleet."""
    spot = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/spot.amazonaws.com/AWSServiceRoleForEC2Spot"
    other = f"arn:aws:iam::{ACCOUNT}:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS"
    asked = "iam:CreateServiceLinkedRole"
    assert allows(creator(documents), asked, spot, {"iam:AWSServiceName": "spot.amazonaws.com"})
    assert not allows(creator(documents), asked, other, {"iam:AWSServiceName": "ecs.amazonaws.com"})


def test_a_creator_stores_in_its_places_and_reads_no_states(documents: dict[str, Document]) -> None:
    """Terraform's states of what is shared are not a flow's to read, and its ledger is no one else's."""
    held = creator(documents)
    for key in ("ledger/leases/a.json", "ledger/heads/b"):
        assert allows(held, "s3:PutObject", f"{STATE}/{key}")
    assert allows(held, "s3:GetObject", f"{STATE}/environment.json")
    assert not allows(held, "s3:PutObject", f"{STATE}/environment.json")
    assert not allows(held, "s3:GetObject", f"{STATE}/terraform/shared.tfstate")
    for key in ("agents/agent.pyz", f"nodes/{NODE}/in/spec.json", "checkpoints/dev/ab/1/manifest.json"):
        assert allows(held, "s3:PutObject", f"{ARTIFACTS}/{key}")
    assert not allows(held, "s3:PutObject", f"{ARTIFACTS}/checkpoints/prod/ab/1/manifest.json")


def test_inputs_are_read_from_named_buckets_only(documents: dict[str, Document], hardened: dict[str, Document]) -> None:
    """A signed link is good for what its signer may read."""
    ask = ("s3:GetObject", "arn:aws:s3:::datasets/a.parquet")
    assert not allows(creator(documents), *ask)
    assert allows(creator(hardened), *ask)
    assert not allows(creator(hardened), "s3:PutObject", ask[1])


# --- ending things ----------------------------------------------------------------------------------------------------

ENDING = [
    ("ec2:TerminateInstances", "instance/i-1"), ("ec2:DeleteFleets", "fleet/fleet-1"),
    ("ec2:DeleteVolume", "volume/vol-1"), ("ec2:DeleteNetworkInterface", "network-interface/eni-1"),
    ("ec2:CancelSpotInstanceRequests", "spot-instances-request/sir-1"),
    ("ec2:DeleteLaunchTemplate", "launch-template/lt-1"), ("ec2:DeleteSecurityGroup", "security-group/sg-1"),
    ("ec2:ReleaseAddress", "elastic-ip/eipalloc-1"),
]  # fmt: skip


@pytest.mark.parametrize(("action", "resource"), ENDING)
def test_only_what_carries_a_lease_of_the_environment_is_ended(
    action: str, resource: str, documents: dict[str, Document]
) -> None:
    """Nothing of another environment, nothing that is shared, nothing without tags."""
    held = [documents["ending"]]
    assert allows(held, action, f"{EC2}:{resource}", carrying())
    assert not allows(held, action, f"{EC2}:{resource}")
    assert not allows(held, action, f"{EC2}:{resource}", carrying(**{"mlinfra-prefect:environment": "prod"}))
    shared = {"aws:ResourceTag/mlinfra-prefect:environment": "dev", "aws:ResourceTag/mlinfra-prefect:shared": "true"}
    assert not allows(held, action, f"{EC2}:{resource}", shared)


def test_who_ends_creates_nothing(documents: dict[str, Document]) -> None:
    """The reaper has this policy and the ledger's, the dead-man this one and its log's."""
    held = [documents["ending"], documents["storing"]]
    for kind in MADE:
        assert not allows(held, "ec2:RunInstances", f"{EC2}:{kind}/*", launching())
        assert not allows(
            held, "ec2:CreateTags", f"{EC2}:{kind}/x", {**launching(), "ec2:CreateAction": "RunInstances"}
        )
    assert not allows(held, "iam:PassRole", NODE_ROLE, {"iam:PassedToService": "ec2.amazonaws.com"})


# --- buckets, the key and the way out ---------------------------------------------------------------------------------


def test_the_artifact_bucket_refuses_plain_http(documents: dict[str, Document]) -> None:
    """Whoever asks."""
    policy = next(value for name, value in documents.items() if name.endswith("artifacts[0]"))
    open_to_all = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
    for resource in (ARTIFACTS, f"{ARTIFACTS}/nodes/x"):
        assert not allows([policy, open_to_all], "s3:GetObject", resource, {"aws:SecureTransport": "false"})
        assert allows([policy, open_to_all], "s3:GetObject", resource, {"aws:SecureTransport": "true"})


def test_a_hardened_network_leads_to_the_environments_buckets_only(hardened: dict[str, Document]) -> None:
    """Signed links to somebody else's bucket end at the endpoint."""
    policy = next(value for name, value in hardened.items() if name.endswith("aws_vpc_endpoint.s3"))
    assert allows([policy], "s3:PutObject", f"{ARTIFACTS}/nodes/{NODE}/out/index.json")
    assert allows([policy], "s3:GetObject", "arn:aws:s3:::datasets/a.parquet")
    assert not allows([policy], "s3:PutObject", "arn:aws:s3:::somebody-elses/loot")


def test_a_key_is_used_through_its_services_only(hardened: dict[str, Document]) -> None:
    """A node cannot decrypt by hand what it was not given, and a creator only starts disks with the key."""
    key = f"arn:aws:kms:us-east-1:{ACCOUNT}:key/1"
    ours = {"aws:ResourceTag/mlinfra-prefect:environment": "dev", "aws:userid": NODE}
    assert allows([hardened["node"]], "kms:Decrypt", key, {**ours, "kms:ViaService": "s3.us-east-1.amazonaws.com"})
    assert not allows([hardened["node"]], "kms:Decrypt", key, ours)
    assert allows(creator(hardened), "kms:CreateGrant", key, {**ours, "kms:GrantIsForAWSResource": "true"})
    assert not allows(creator(hardened), "kms:CreateGrant", key, ours)
    assert not allows(creator(hardened), "kms:CreateGrant", key, {"kms:GrantIsForAWSResource": "true"})
