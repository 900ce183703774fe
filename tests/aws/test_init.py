"""Rule: an environment is made once, said before, made again without a change, and goes without a trace.

With the real provider. One environment is made here and destroyed again; the tests stand in the order in which that
happens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from aws_place import REGION, Account, House, context_of, house_in, require_provider

from mlinfra_prefect.aws import environment as environments, shared_remains, tags
from mlinfra_prefect.errors import PlanRejected, PlanStale
from mlinfra_prefect.lifecycle.environment_stacks import Wanted
from mlinfra_prefect.lifecycle.making import make
from mlinfra_prefect.lifecycle.proposal import propose
from mlinfra_prefect.testing.aws import Emulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
INIT = ("init", "aws", "--environment", "dev")


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    require_provider(tmp_path_factory.mktemp("provider"))
    with Emulator() as aws:
        yield Account(aws)


@pytest.fixture(scope="module")
def empty(account: Account) -> set[str]:
    """What an account has that nobody has used."""
    return account.tagged()


@pytest.fixture(scope="module")
def house(account: Account, empty: set[str]) -> Iterator[House]:
    patch = pytest.MonkeyPatch()
    with house_in(account, patch) as made:
        yield made
    patch.undo()


@pytest.fixture(autouse=True)
def no_faults(account: Account) -> Iterator[None]:
    yield
    account.aws.clear_faults()


@pytest.fixture(scope="module")
def made(house: House, account: Account) -> dict[str, Any]:
    """The environment, and what `init` said of it. Its first try was cut off after the state bucket was made."""
    account.aws.fail("PutBucketVersioning", status=403, code="AccessDenied", times=None)
    broken = house.cli(*INIT, "--yes")
    account.aws.clear_faults()
    assert broken.returncode == 1, broken.stderr
    (line,) = broken.stderr.splitlines()
    assert "AccessDenied" in line
    said: dict[str, Any] = house.says(*INIT, "--yes")
    return said


# --- before ----------------------------------------------------------------------------------------------------------


def test_without_consent_nothing_is_made_and_its_price_was_shown(
    house: House, account: Account, empty: set[str]
) -> None:
    """The quota report and the dollars a month come before the question; where nobody can be asked the answer is no."""
    with account.unchanged():
        done = house.cli(*INIT)
    assert done.returncode == 1
    assert "Nobody can be asked here. Say that it may with --yes. Nothing was created." in done.stderr
    assert "L-DB2E81BA" in done.stdout
    assert "2 aws_s3_bucket" in done.stdout
    assert "It costs 0.00 USD a month while nothing is leased." in done.stdout
    assert account.tagged() == empty


def test_the_hardened_profile_says_what_it_costs(house: House, account: Account) -> None:
    """Interface endpoints and a key cost money whether anything is leased or not, and each is named."""
    with account.unchanged():
        done = house.cli("init", "aws", "--environment", "safe", "--profile", "hardened", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["profile"], said["egress"]) == ("hardened", "none")
    assert said["idle_usd_per_month"] > 1
    assert "aws_kms_key" in said["creates"]
    assert "aws_internet_gateway" not in said["creates"]


# --- half of it -------------------------------------------------------------------------------------------------------


def test_what_needs_more_than_was_agreed_to_is_not_made(house: House, account: Account, empty: set[str]) -> None:
    """The first time only the bucket can be planned for real: the rest is planned again, and held against consent."""
    context = context_of(house)
    proposal = propose(context, Wanted("dev", (REGION,)))
    state, shared = proposal.planned
    assert state.saved, "what can be planned for real is kept"
    assert not shared.saved, "and nothing else is"
    less = {each: count for each, count in shared.actions.items() if each[0] != "aws_iam_role"}
    with pytest.raises(PlanRejected, match="shared: now it needs more than what was agreed to: create 4 aws_iam_role"):
        make(context, replace(proposal, planned=(state, replace(shared, actions=less))))
    context.ledger.close()
    (bucket,) = account.tagged() - empty
    assert bucket.startswith("Bucket mlinfra-prefect-state-dev-")


def test_half_an_environment_is_destroyed_from_what_there_is_of_it(
    house: House, account: Account, empty: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off among its roles, so nothing was noted; from a home that knows nothing of it, every last part goes."""
    account.aws.fail("AttachRolePolicy", status=403, code="AccessDenied", times=None)
    broken = house.cli(*INIT, "--yes")
    account.aws.clear_faults()
    assert broken.returncode == 1
    assert "AttachRolePolicy" in broken.stderr
    there = {each.partition(" ")[0] for each in account.tagged() - empty}
    assert {"Bucket", "Role", "Vpcs"} <= there
    with house_in(account, monkeypatch) as other:
        done = other.cli(*INIT, "--destroy", "--yes")
    assert done.returncode == 0, done.stderr
    assert "Environment dev was never finished. This destroys what there is of it" in done.stdout
    assert "what the states of shared name" in done.stdout
    assert account.tagged() == empty


# --- making it --------------------------------------------------------------------------------------------------------


def test_a_try_that_was_cut_off_is_gone_on_with(made: dict[str, Any], account: Account) -> None:
    """The bucket that was there without versions has them now: nobody had to mend anything by hand."""
    assert made["made"]["name"] == "dev"
    assert made["idle_usd_per_month"] < 1
    s3 = account.client("s3")
    for bucket in (made["made"]["state_bucket"], made["made"]["artifact_bucket"]):
        assert all(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values())
        rule = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
        assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_versioning(Bucket=made["made"]["state_bucket"])["Status"] == "Enabled"


def test_what_is_looked_for_before_the_states_go_is_what_is_made(made: dict[str, Any], account: Account) -> None:
    """Names of roles stand in Terraform and in the look: were one renamed, what is left of it would not be seen."""
    roles = {each for each in account.tagged() if each.startswith("Role ")}
    found = shared_remains.look("dev", account.aws.account, (REGION,))
    assert {each.replace("role", "Role", 1) for each in found if each.startswith("role")} == roles
    assert {each.partition(" ")[0] for each in found} == {"role", "network", "bucket", "instance", "policy"}


def test_nothing_lets_anybody_in(made: dict[str, Any], account: Account) -> None:
    """A public address without any rule of ingress: nodes reach out, and nobody reaches them."""
    (region,) = made["made"]["regions"]
    ec2 = account.client("ec2")
    (group,) = ec2.describe_security_groups(GroupIds=[region["security_group"]])["SecurityGroups"]
    assert group["IpPermissions"] == []
    assert region["public_ip"] is True
    assert set(region["subnets"]) == {f"{REGION}{zone}" for zone in "abc"}
    assert ec2.describe_nat_gateways()["NatGateways"] == []


def test_another_home_finds_it_by_its_name(
    made: dict[str, Any], account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the buckets' names and the record beside the ledger say is enough."""
    with house_in(account, monkeypatch) as other:
        found = environments.load("dev", other.home.aws)
        assert found.model_dump(mode="json", by_alias=True) == made["made"]
        said = other.says("plan", "cpu", "--platform", "aws")
        assert [each["type"] for each in said["plan"]["resources"]] == ["aws_ec2_fleet", "aws_launch_template"]
        assert said["offers"][0]["region"] == REGION


def test_made_again_nothing_changes_and_what_was_shown_is_applied_or_nothing(
    made: dict[str, Any], house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the home that made it and from any other one. Who agrees second to what both saw first is told so."""
    with house_in(account, monkeypatch) as other:
        mine, theirs = context_of(house), context_of(other)
        with account.unchanged():
            proposals = [propose(each, Wanted("dev", (REGION,))) for each in (mine, theirs)]
        for proposal in proposals:
            assert proposal.creates == {}
            # moto forgets where a function logs, so the provider would say it again. AWS does not forget it.
            assert set(proposal.changes) <= {"aws_lambda_function"}
        wider = propose(theirs, Wanted("dev", (REGION,), input_buckets=("our-datasets",)))
        since = account.aws.proxy.requests
        make(theirs, wider)
        again = [each.operation for each in account.aws.proxy.log if each.request > since]
        assert "CreatePolicyVersion" in again
        with account.unchanged(), pytest.raises(PlanStale, match="shared: something changed since this was shown"):
            make(mine, proposals[0])
        for each in (mine, theirs):
            each.ledger.close()


def test_a_second_home_region_is_another_environment(
    made: dict[str, Any], house: House, account: Account, empty: set[str]
) -> None:
    """One name means one thing in a home: nothing is replaced behind anybody's back."""
    line = house.refuses(*INIT, "--yes", "--region", "eu-central-1", "--region", REGION, code=2)
    assert f"'dev' of this home is in {REGION} of account {account.aws.account}" in line


# --- destroying it ----------------------------------------------------------------------------------------------------


def test_it_stays_while_anybody_leases(made: dict[str, Any], house: House, account: Account) -> None:
    """A lease of another ledger as well: it would lose its network."""
    before = account.tagged()
    planted = account.plant(
        tags.build(ledger_id="theirs", lease_id="l0123456789abcdef0123-1", attempt=1, environment="dev", deadline=9e9)
    )
    assert "l0123456789abcdef0123-1 of ledger theirs" in house.refuses(*INIT, "--destroy", "--yes")
    account.end(planted)
    assert account.tagged() == before


def test_it_goes_without_a_trace(made: dict[str, Any], house: House, account: Account, empty: set[str]) -> None:
    """Mailboxes, states and ledger with it; cut off in between it is gone on with, and then it was never there."""
    s3 = account.client("s3")
    s3.put_object(Bucket=made["made"]["artifact_bucket"], Key="checkpoints/dev/x/1/weights", Body=b"w")
    s3.put_object(Bucket=made["made"]["state_bucket"], Key="ledger/records/x", Body=b"{}")
    account.aws.fail("DeleteBucket", status=403, code="AccessDenied", match="-state-", times=1)
    broken = house.cli(*INIT, "--destroy", "--yes")
    assert broken.returncode == 1
    assert "DeleteBucket" in broken.stderr
    done = house.cli(*INIT, "--destroy", "--yes")
    assert done.returncode == 0, done.stderr
    assert account.tagged() == empty
    assert not (house.home.aws / "dev.json").exists()
    assert "Environment 'dev' is not initialised on AWS" in house.refuses(*INIT, "--destroy", "--yes")
    assert "Environment 'dev' is not initialised on AWS" in house.refuses("up", "cpu", "--platform", "aws")
