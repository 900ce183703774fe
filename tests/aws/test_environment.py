"""Rule: an environment is found by name and account alone, and what is wrong is one sentence with the next step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_place import REGION, SECOND, Account, House, context_of, house_in, usable

from mlinfra_prefect.aws import buckets, environment as environments, shared_remains, tags
from mlinfra_prefect.aws.sdk import client
from mlinfra_prefect.errors import (
    InvalidInput,
    MlinfraError,
    NotInitialised,
    NotYetDestroyed,
    PermanentError,
    PlanRejected,
    PlanStale,
    StateLocked,
)
from mlinfra_prefect.lifecycle.environment_stacks import Part, Planned, Wanted, place
from mlinfra_prefect.lifecycle.making import asks_for_more, make
from mlinfra_prefect.lifecycle.proposal import Proposal, propose
from mlinfra_prefect.lifecycle.unmaking import find, unmake
from mlinfra_prefect.terraform import lock
from mlinfra_prefect.terraform.idle_price import IdleLine, IdlePrice
from mlinfra_prefect.testing.aws import Emulator


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with Emulator() as aws:
        yield Account(aws)


@pytest.fixture
def house(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A home of its own; the account is shared, so environments have names of their own."""
    with house_in(account, monkeypatch) as made:
        yield made
    account.aws.clear_faults()


# --- who and where we are ---------------------------------------------------------------------------------------------


def test_the_region_is_that_of_the_aws_configuration(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """AWS_REGION, then AWS_DEFAULT_REGION, then the profile's file, as every AWS tool has it."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert environments.own_region() == "eu-west-1"
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-2")
    assert environments.own_region() == "eu-west-2"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    (tmp_path / "config").write_text("[default]\nregion = eu-west-3\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert environments.own_region() == "eu-west-3"


def test_without_a_region_it_says_how_to_name_one(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is guessed: a region decides where money is spent."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "absent"))
    with pytest.raises(InvalidInput, match="AWS_REGION: no region is configured.*--region"):
        environments.own_region()


def test_the_account_is_that_of_the_credentials(house: House, account: Account) -> None:
    """As AWS says it, and nobody configures."""
    assert environments.account() == account.aws.account


def test_without_credentials_it_says_how_to_log_in(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No key, no file, no instance."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
    with pytest.raises(PermanentError, match=r"there are no AWS credentials\. Log in"):
        environments.account()


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("ExpiredToken", "credentials have expired. Log in"),
        ("InvalidClientTokenId", "does not accept the credentials"),
        ("AccessDenied", "lack the permission"),
    ],
)
def test_credentials_that_are_refused_say_why(house: House, account: Account, code: str, sentence: str) -> None:
    """Expired, unknown, or without a permission: three next steps."""
    account.aws.fail("GetCallerIdentity", status=403, code=code)
    with pytest.raises(PermanentError, match=sentence):
        environments.account()


# --- how it is found --------------------------------------------------------------------------------------------------


def test_names_of_buckets_follow_from_name_account_and_region() -> None:
    """So any host that may log in finds the environment without being told."""
    assert environments.state_bucket("dev", "123456789012", "eu-central-1") == (
        "mlinfra-prefect-state-dev-123456789012-eu-central-1"
    )
    assert environments.artifact_bucket("dev", "123456789012", "eu-central-1") == (
        "mlinfra-prefect-artifacts-dev-123456789012-eu-central-1"
    )


def test_a_home_that_never_saw_an_environment_finds_it_and_remembers(house: House) -> None:
    """The second lease of a home costs no call for it."""
    made = usable(house, "found")
    assert environments.load("found", house.home.aws) == made
    since = house.account.aws.proxy.requests
    assert environments.load("found", house.home.aws) == made
    assert house.account.aws.proxy.requests == since
    assert (house.home.aws / "found.json").stat().st_mode & 0o077 == 0


def test_an_environment_that_nobody_made_says_how_to_make_it(house: House, account: Account) -> None:
    """With the place in which it was looked for."""
    with account.unchanged(), pytest.raises(NotInitialised) as raised:
        environments.load("absent", house.home.aws)
    assert str(raised.value) == (
        f"Environment 'absent' is not initialised on AWS in {REGION} of account {account.aws.account}. "
        "Run: mlinfra-prefect init aws --environment absent"
    )
    assert not (house.home.aws / "absent.json").exists()


def test_a_wrong_region_is_another_place(house: House, account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence names the region that was looked in, so that a wrong AWS_REGION is seen."""
    usable(house, "elsewhere")
    monkeypatch.setenv("AWS_REGION", SECOND)
    with pytest.raises(NotInitialised, match=f"in {SECOND} of account"):
        environments.load("elsewhere", house.home.aws)


def test_a_bucket_that_is_somebody_else_s_is_not_read_as_absent(house: House, account: Account) -> None:
    """A missing permission names the action; it is not "run init aws"."""
    usable(house, "private")
    account.aws.fail("GetObject", status=403, code="AccessDenied", match="state-private", times=None)
    with pytest.raises(MlinfraError, match="lack the permission GetObject") as raised:
        environments.load("private", house.home.aws)
    assert not isinstance(raised.value, NotInitialised)


@pytest.mark.parametrize("body", ["{", "[]", "{}", '{"schema": "mlinfra-prefect/aws-environment/9"}'])
def test_a_record_that_cannot_be_read_is_an_error_of_ours(house: House, body: str) -> None:
    """Written by a newer version or cut off: a sentence that names the object, never a traceback."""
    made = usable(house, f"odd-{abs(hash(body)) % 10**6}")
    house.account.client("s3").put_object(Bucket=made.state_bucket, Key=environments.KEY, Body=body.encode())
    with pytest.raises(MlinfraError, match=f"s3://{made.state_bucket}/environment.json"):
        environments.load(made.name, house.home.aws)


def test_a_copy_that_cannot_be_read_is_looked_up_again(house: House) -> None:
    """The home's copy is a cache."""
    made = usable(house, "copied")
    environments.load("copied", house.home.aws)
    (house.home.aws / "copied.json").write_text("{")
    assert environments.load("copied", house.home.aws) == made


def test_what_is_saved_lies_beside_the_ledger_and_in_the_home(house: House) -> None:
    """The same in both places; forgetting takes the home's copy only."""
    made = usable(house, "saved")
    changed = made.model_copy(update={"egress": "none", "profile": "hardened"})
    environments.save(changed, house.home.ensure().aws)
    body = house.account.client("s3").get_object(Bucket=made.state_bucket, Key=environments.KEY)["Body"].read()
    assert json.loads(body) == json.loads((house.home.aws / "saved.json").read_text())
    environments.forget("saved", house.home.aws)
    environments.forget("saved", house.home.aws)
    assert environments.load("saved", house.home.aws) == changed


def test_a_region_without_a_network_says_what_makes_one(house: House) -> None:
    """Every region that there is stays named, so that the line can be run as it stands."""
    made = usable(house, "regions", (REGION, SECOND))
    assert made.region(SECOND).name == SECOND
    with pytest.raises(InvalidInput) as raised:
        made.region("eu-west-1")
    assert "eu-west-1 has no network of environment 'regions'" in str(raised.value)
    for region in (REGION, SECOND, "eu-west-1"):
        assert f"--region {region}" in str(raised.value)


# --- the buckets ------------------------------------------------------------------------------------------------------


def bucket(house: House, name: str, *, versioned: bool = True, closed: bool = True) -> str:
    s3 = house.account.client("s3")
    s3.create_bucket(Bucket=name)
    if versioned:
        s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    if closed is not None:
        block = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy"), True)
        s3.put_public_access_block(
            Bucket=name, PublicAccessBlockConfiguration={**block, "RestrictPublicBuckets": closed}
        )
    return name


def test_a_state_bucket_that_keeps_versions_and_is_closed_is_good(house: House) -> None:
    """And nothing is asked of a bucket that is not there."""
    buckets.check(bucket(house, "good"), REGION)
    assert buckets.exists("good", REGION)
    assert not buckets.exists("nobody-made-this-one", REGION)


@pytest.mark.parametrize(
    ("name", "how", "sentence"),
    [
        (
            "unversioned",
            {"versioned": False},
            "unversioned is not versioned.*Nothing was created.*put-bucket-versioning",
        ),
        ("half-open", {"closed": False}, "half-open may be made public.*Nothing was created.*put-public-access-block"),
        ("open", {"closed": None}, "open may be made public"),
    ],
)
def test_a_state_bucket_that_can_lose_or_show_is_refused(
    house: House, name: str, how: dict[str, bool], sentence: str
) -> None:
    """With the line that mends it."""
    bucket(house, name, **how)
    with house.account.unchanged(), pytest.raises(PlanRejected, match=sentence):
        buckets.check(name, REGION)


def test_suspended_versions_are_none(house: House) -> None:
    """A bucket that was versioned once loses what is overwritten now."""
    name = bucket(house, "suspended")
    house.account.client("s3").put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Suspended"})
    with pytest.raises(PlanRejected, match="not versioned"):
        buckets.check(name, REGION)


def test_a_missing_permission_names_the_bucket_and_the_action(house: House) -> None:
    """Whoever may not look must not read that as safe."""
    name = bucket(house, "hidden")
    house.account.aws.fail("GetBucketVersioning", status=403, code="AccessDenied", times=None)
    with pytest.raises(PermanentError, match=r"Looking at s3://hidden failed: .* GetBucketVersioning"):
        buckets.check(name, REGION)


def test_deleting_takes_every_version_and_is_idempotent(house: House) -> None:
    """Old versions and delete markers too: a bucket with them cannot go."""
    name, s3 = bucket(house, "full"), house.account.client("s3")
    for number in range(3):
        s3.put_object(Bucket=name, Key=f"k{number}", Body=b"one")
        s3.put_object(Bucket=name, Key=f"k{number}", Body=b"two")
    s3.delete_object(Bucket=name, Key="k0")
    buckets.delete(name, REGION)
    assert not buckets.exists(name, REGION)
    buckets.delete(name, REGION)
    buckets.empty(name, REGION)


# --- the zones --------------------------------------------------------------------------------------------------------


def test_zones_are_the_first_of_the_region(house: House) -> None:
    """In their order, so that a second `init` plans the same ones."""
    assert buckets.zones(REGION, 3) == ["us-east-1a", "us-east-1b", "us-east-1c"]
    assert buckets.zones(SECOND, 2) == ["us-west-2a", "us-west-2b"]


def test_a_region_that_is_none_is_said(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not "no such host": this account has no such region."""
    with pytest.raises(MlinfraError, match="eu-nowhere-9"):
        buckets.zones("eu-nowhere-9", 3)


# --- what was agreed to -----------------------------------------------------------------------------------------------

PART = Part("shared", "aws-shared", REGION, {})
ROLE, KEY = ("aws_iam_role", "create"), ("aws_kms_key", "create")
FREE = IdlePrice(0.0, ())


@pytest.mark.parametrize(
    ("actions", "idle", "more"),
    [
        ({ROLE: 2}, FREE, ()),
        ({ROLE: 1}, FREE, ()),
        ({ROLE: 3}, FREE, ("create 1 aws_iam_role",)),
        ({ROLE: 2, KEY: 1}, FREE, ("create 1 aws_kms_key",)),
        ({("aws_iam_role", "replace"): 1}, FREE, ("replace 1 aws_iam_role",)),
        ({ROLE: 2}, IdlePrice(0.004, ()), ()),
        ({ROLE: 2}, IdlePrice(1.0, ()), ("1.00 USD a month",)),
        ({ROLE: 2}, IdlePrice(0.0, (IdleLine("x", None, "?"),)), ("1 of which the price is not known",)),
    ],
)
def test_more_is_more_of_a_kind_of_change_or_more_money(
    actions: dict[tuple[str, str], int], idle: IdlePrice, more: tuple[str, ...]
) -> None:
    """A replacement is no creation, and what has no price was not agreed to."""
    assert asks_for_more(Planned(PART, {ROLE: 2}, FREE), Planned(PART, actions, idle)) == more


def test_a_plan_that_another_init_has_replaced_is_not_applied(house: House, account: Account) -> None:
    """Two terminals of one home: what the second was shown is not what the first agreed to."""
    context = context_of(house)
    proposal = Proposal(Wanted("twice", (REGION,)), account.aws.account, (Planned(PART, {}, FREE, saved="0" * 64),))
    with (
        account.unchanged(),
        pytest.raises(PlanStale, match="shared: something changed.*Run the same command again"),
    ):
        make(context, proposal)
    context.ledger.close()


# --- what is left of one that was never finished ----------------------------------------------------------------------


def test_what_there_is_of_an_environment_is_found_by_its_bucket(
    house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the region that is named, or where this home began with it; the states in it say which regions it has."""
    context = context_of(house)
    name = environments.state_bucket("begun", account.aws.account, SECOND)
    account.client("s3", SECOND).create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": SECOND})
    for part in ("shared", f"region-{REGION}"):
        account.client("s3", SECOND).put_object(Bucket=name, Key=buckets.state_key(part), Body=b"{}")
    with pytest.raises(NotInitialised, match=f"not initialised on AWS in {REGION} of account"):
        find(context, "begun")
    named = find(context, "begun", SECOND)
    assert (named.regions, set(named.states), named.made) == ((SECOND, REGION), {"shared", f"region-{REGION}"}, None)
    place(context, "begun", account.aws.account, SECOND).mkdir(parents=True)
    assert find(context, "begun") == named
    context.ledger.close()


def test_an_environment_of_another_account_is_not_looked_for_in_this_one(house: House, account: Account) -> None:
    """There it would look as if nothing of it existed, and be forgotten."""
    made, context = usable(house, "abroad"), context_of(house)
    environments.save(made.model_copy(update={"account": "999999999999"}), house.home.aws)
    with account.unchanged(), pytest.raises(PermanentError, match="is in account 999999999999, and this login is of"):
        find(context, "abroad")
    context.ledger.close()


def test_what_no_state_names_keeps_the_bucket_and_is_named(house: House, account: Account) -> None:
    """Its last trace does not go while something of it is there: a role that a killed Terraform had made."""
    usable(house, "lost")
    account.client("s3").delete_bucket(Bucket=environments.artifact_bucket("lost", account.aws.account, REGION))
    account.client("iam").create_role(RoleName="mlinfra-prefect-node-lost", AssumeRolePolicyDocument="{}")
    context = context_of(house)
    with pytest.raises(NotYetDestroyed, match="role mlinfra-prefect-node-lost of environment 'lost' are still there"):
        unmake(context, find(context, "lost"))
    account.client("iam").delete_role(RoleName="mlinfra-prefect-node-lost")
    assert buckets.exists(environments.state_bucket("lost", account.aws.account, REGION), REGION)
    unmake(context, find(context, "lost"))
    assert not buckets.exists(environments.state_bucket("lost", account.aws.account, REGION), REGION)
    with pytest.raises(NotInitialised):
        find(context, "lost")
    context.ledger.close()


def test_a_region_that_only_this_home_or_a_lock_knows_of_is_looked_in(house: House, account: Account) -> None:
    """Cut off before a state was stored: what stands in that region would be left behind, and called gone."""
    made, context = usable(house, "cut-off"), context_of(house)
    assert find(context, "cut-off").regions == (REGION,)
    (place(context, "cut-off", account.aws.account, REGION) / f"region-{SECOND}").mkdir(parents=True)
    lock = f"{buckets.STATES}region-eu-west-1{buckets.LOCK}"
    account.client("s3").put_object(Bucket=made.state_bucket, Key=lock, Body=b"{}")
    found = find(context, "cut-off")
    assert (found.regions, found.states) == ((REGION, "eu-west-1", SECOND), ())
    with pytest.raises(
        StateLocked, match=rf"region-eu-west-1 of environment 'cut-off'.*s3://{made.state_bucket}/{lock}"
    ):
        unmake(context, found)
    account.client("s3").delete_object(Bucket=made.state_bucket, Key=lock)
    network = account.client("ec2", SECOND).create_vpc(CidrBlock="10.0.0.0/16", TagSpecifications=[{
        "ResourceType": "vpc", "Tags": [{"Key": key, "Value": value} for key, value in tags.shared("cut-off").items()],
    }])["Vpc"]["VpcId"]  # fmt: skip
    with pytest.raises(NotYetDestroyed, match=f"network {network} in {SECOND}"):
        unmake(context, found)
    account.client("ec2", SECOND).delete_vpc(VpcId=network)
    assert buckets.exists(made.state_bucket, REGION)
    context.ledger.close()


def test_what_was_stored_meanwhile_keeps_the_bucket(
    house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host made a network between the first look and the last one."""
    made, context = usable(house, "overtaken"), context_of(house)
    found = find(context, "overtaken")
    account.client("s3").put_object(Bucket=made.state_bucket, Key=buckets.state_key("region-x"), Body=b"{}")
    with pytest.raises(NotYetDestroyed, match="Somebody has made region-x of environment 'overtaken' meanwhile"):
        unmake(context, found)
    assert buckets.exists(made.state_bucket, REGION)
    context.ledger.close()


def test_nothing_goes_while_a_terraform_of_this_home_makes_it(house: House, account: Account) -> None:
    """Whoever interrupts `init` leaves it running; what it makes would be in no state that was read."""
    usable(house, "running")
    context = context_of(house)
    directory = place(context, "running", account.aws.account, REGION) / "shared"
    directory.mkdir(parents=True)
    held = lock.acquire(directory / "lock")
    try:
        with account.unchanged(), pytest.raises(StateLocked, match="shared is still running.*Nothing was destroyed"):
            unmake(context, find(context, "running"))
    finally:
        os.close(held)
    context.ledger.close()


def test_a_remembered_environment_is_destroyed_where_it_is_or_not_at_all(house: House, account: Account) -> None:
    """Another region is another environment, and a bucket that is somebody else's is nobody's to empty."""
    made, context = usable(house, "here"), context_of(house)
    environments.load("here", house.home.aws)
    with (
        account.unchanged(),
        pytest.raises(InvalidInput, match=f"'here' of this home is in {REGION}. Nothing was dest"),
    ):
        find(context, "here", SECOND)
    line = house.refuses(
        "init", "aws", "--environment", "here", "--destroy", "--yes", "--region", REGION, "--region", SECOND, code=2
    )
    assert "an environment is destroyed in all its regions" in line
    assert find(context, "here", REGION).made == made
    account.aws.fail("HeadBucket", status=403, code="AccessDenied", match="-state-here-", times=None)
    with account.unchanged(), pytest.raises(MlinfraError, match=f"looking at s3://{made.state_bucket}|Looking at"):
        find(context, "here")
    context.ledger.close()


def test_nothing_of_a_bucket_is_read_or_deleted_that_is_somebody_else_s(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names of buckets can be guessed: each call says whose it has to be."""
    name, asked = bucket(house, "whose"), []
    house.account.client("s3").put_object(Bucket=name, Key="k", Body=b"b")

    def watched(service: str, region: str) -> Any:
        made = client(service, region)
        made.meta.events.register(
            "provide-client-params.s3", lambda params, model, **_: asked.append((model.name, params))
        )
        return made

    monkeypatch.setattr(buckets, "client", watched)
    assert buckets.states(name, REGION) == buckets.locked(name, REGION) == ()
    assert buckets.ledger_of(name, REGION) is None
    buckets.delete(name, REGION)
    assert {operation for operation, _ in asked} == {
        "ListObjectsV2", "HeadObject", "ListObjectVersions", "DeleteObjects", "DeleteBucket",
    }  # fmt: skip
    assert {params.get("ExpectedBucketOwner") for _, params in asked} == {house.account.aws.account}


def test_a_name_that_the_account_has_in_another_region_is_refused_before_anything_is_made(
    house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Roles are the account's: a second environment of that name would get half of what it needs, and end the first."""
    context, iam, role = context_of(house), account.client("iam"), "mlinfra-prefect-node-moved"
    iam.create_role(RoleName=role, AssumeRolePolicyDocument="{}")
    name = bucket(house, environments.state_bucket("moved", account.aws.account, REGION))
    with account.unchanged():
        with pytest.raises(
            InvalidInput, match=f"'moved' of account .* is in {REGION}. Nothing.* Say --region {REGION} f"
        ):
            propose(context, Wanted("moved", (SECOND,)))
        account.aws.fail("ListBuckets", status=403, code="AccessDenied", times=None)
        with pytest.raises(InvalidInput, match="is in another region, as its roles say") as raised:
            propose(context, Wanted("moved", (SECOND,)))
        assert "delete" not in str(raised.value)
        account.aws.clear_faults()
    buckets.delete(name, REGION)
    with account.unchanged(), pytest.raises(InvalidInput, match=f"its state bucket is gone, and {role} are there"):
        propose(context, Wanted("moved", (SECOND,)))
    iam.delete_role(RoleName=role)
    context.ledger.close()


def test_keys_policies_and_profiles_that_no_state_names_are_looked_for_too(house: House, account: Account) -> None:
    """A Terraform that was killed before it stored anything had made them: a key costs a dollar a month for ever."""
    assert shared_remains.look("left", account.aws.account, (REGION,)) == ()
    kms, iam = account.client("kms"), account.client("iam")
    marks = [{"TagKey": key, "TagValue": value} for key, value in tags.shared("left").items()]
    key, gone, other = (
        kms.create_key(Tags=each)["KeyMetadata"]["KeyId"] for each in (marks, marks, marks[:1])
    )  # fmt: skip
    kms.schedule_key_deletion(KeyId=gone)
    iam.create_instance_profile(InstanceProfileName="mlinfra-prefect-node-left")
    policy = iam.create_policy(
        PolicyName="mlinfra-prefect-storing-left", PolicyDocument=json.dumps(
            {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}]}
        )
    )["Policy"]["Arn"]  # fmt: skip
    assert set(shared_remains.look("left", account.aws.account, (REGION,))) == {
        f"key {key} in {REGION}", "instance profile mlinfra-prefect-node-left", "policy mlinfra-prefect-storing-left",
    }  # fmt: skip
    account.aws.fail("ListKeys", status=400, code="AccessDeniedException", times=None)
    with pytest.raises(PermanentError, match="ListKeys"):
        shared_remains.look("left", account.aws.account, (REGION,))
    iam.delete_policy(PolicyArn=policy)
    iam.delete_instance_profile(InstanceProfileName="mlinfra-prefect-node-left")
    for each in (key, other):
        kms.schedule_key_deletion(KeyId=each)
