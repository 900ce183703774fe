"""Rule: the platform AWS keeps the promises of `lifecycle.platform`. Fleets are made by hand, not by Terraform."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aws_place import CACHE, REGION, SECOND, Account, House, context_of, house_in, usable

from mlinfra_prefect.aws import environment as environments, images, platform as platforms, rungs, tags
from mlinfra_prefect.aws.environment import AwsEnvironment
from mlinfra_prefect.aws.images import Image
from mlinfra_prefect.aws.platform import AwsPlatform
from mlinfra_prefect.errors import (
    CapacityUnavailable,
    InvalidInput,
    MlinfraError,
    NodeLost,
    NotInitialised,
    PermanentError,
    QuotaExceeded,
    UnsupportedHere,
)
from mlinfra_prefect.lifecycle.context import STACKS
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.environment import AwsSettings
from mlinfra_prefect.model.lease import Attempt, Client, JobNote, LeaseRecord
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.records import MOMENT, sample_attempt, sample_endpoint, sample_lease, sample_offer

STANDARD, GPUS = "L-1216C47A", "L-DB2E81BA"
IMAGE = Image("ami-0a1b2c", "/dev/sda1", "an image")


@pytest.fixture(scope="module")
def account() -> Iterator[Account]:
    with Emulator() as aws:
        yield Account(aws)


@pytest.fixture(scope="module")
def environment(account: Account) -> AwsEnvironment:
    """Two regions that nobody initialised, usable all the same."""
    return usable(House(account, Path()), "dev", (REGION, SECOND))


@pytest.fixture
def house(account: Account, environment: AwsEnvironment, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house_in(account, monkeypatch) as made:
        yield made
    account.aws.clear_faults()
    for region in (REGION, SECOND):
        if running := account.running(region):
            account.end(*running, region=region)


@pytest.fixture
def platform(house: House, monkeypatch: pytest.MonkeyPatch) -> AwsPlatform:
    monkeypatch.setattr(platforms, "POLL_SECONDS", 0.02)
    return made_with(house)


def made_with(house: House, **settings: Any) -> AwsPlatform:
    return AwsPlatform(cache=CACHE, place=house.home.aws, stacks=STACKS, settings=lambda _: AwsSettings(**settings))


# --- secrets, and the Python of nodes ---------------------------------------------------------------------------------


def test_a_secret_that_is_granted_is_handed_on_as_its_reference(platform: AwsPlatform, house: House) -> None:
    """This home's copy may be older than a grant of another host: what lies beside the ledger is looked at, once."""
    assert platform.take_secrets("dev", {}) == {}
    made = platform.environment("dev")
    granted = made.model_copy(update={"secrets": ("aws-sm:hf-token", "ssm:/ours/wandb")})
    place = (made.state_bucket, environments.KEY)
    s3, body = house.account.client("s3"), granted.model_dump_json(by_alias=True).encode()
    before = s3.get_object(Bucket=place[0], Key=place[1])["Body"].read()
    s3.put_object(Bucket=place[0], Key=place[1], Body=body)
    try:
        wanted = {"A": "aws-sm:hf-token#token", "B": "ssm:/ours/wandb"}
        with house.account.unchanged():
            assert platform.take_secrets("dev", wanted) == wanted
        assert platform.environment("dev").secrets == granted.secrets
        with pytest.raises(InvalidInput) as caught:
            platform.take_secrets("dev", {**wanted, "C": "aws-sm:other#key"})
    finally:
        s3.put_object(Bucket=place[0], Key=place[1], Body=before)
    assert caught.value.field == "secrets.C"
    assert str(caught.value) == (
        "secrets.C: environment 'dev' grants its nodes no aws-sm:other. Run: mlinfra-prefect init aws "
        f"--environment dev --region {REGION} --region {SECOND} "
        "--secret aws-sm:hf-token --secret ssm:/ours/wandb --secret aws-sm:other"
    )


def test_a_variable_of_the_flow_is_no_secret_for_a_node_here(platform: AwsPlatform) -> None:
    """It is refused without asking AWS anything: its value would have to lie in the bucket."""
    with pytest.raises(InvalidInput, match=r"secrets\.TOKEN: env: is a variable of the flow's process"):
        platform.take_secrets("not-initialised", {"TOKEN": "env:TOKEN"})


def test_the_python_of_nodes_is_that_of_the_default_images(
    platform: AwsPlatform, environment: AwsEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows it of a named image, and an emulated machine has this host's. A plan says where it is another."""
    request = TrainingRequest(platform="aws")
    named = request.merged({"ami": "ami-0abcdef1234567890"})
    assert platform.python_of(request) is None
    platform.plan_stack(request, platform.offers(request)[:1])
    assert not any("Python" in each for each in platform.remarks)
    monkeypatch.setattr(AwsPlatform, "emulated", False)
    assert (platform.python_of(request), platform.python_of(named)) == ("3.12", None)
    monkeypatch.setattr(images, "PYTHON", "3.99")
    platform.plan_stack(request, platform.offers(request)[:1])
    (remark,) = [each for each in platform.remarks if "Python" in each]
    assert remark.startswith(f"Nodes have Python 3.99, and this is Python {sys.version_info.major}.")


def lease(**changes: Any) -> LeaseRecord:
    now = MOMENT.now(MOMENT.tzinfo)
    return sample_lease(platform="aws", created_at=now, deadline=now + timedelta(minutes=30), **changes)


def offer(type_: str = "m5.xlarge", region: str = REGION, **more: Any) -> Offer:
    return sample_offer(type=type_, region=region, usd_per_hour=0.2, **more)


def attempt(house: House, *rung: Offer, **changes: Any) -> Attempt:
    first = rung[0] if rung else offer()
    place = house.root / "work" / "x" / "1"
    return sample_attempt(
        offer=first, candidates=rung if len(rung) > 1 else (), applied_at=MOMENT, node_dir=str(place / "node"),
        directory=str(place / "terraform"), **changes,
    )  # fmt: skip


def fleet(account: Account, record: LeaseRecord, *types: str, region: str = REGION, **more: Any) -> dict[str, Any]:
    """An instant fleet as the stack makes one: what Terraform would say of it."""
    ec2 = account.client("ec2", region)
    marks = [{"Key": key, "Value": value} for key, value in tags.of(record, 1).items()]
    image = ec2.describe_images(Filters=[{"Name": "name", "Values": ["of a test"]}])["Images"]
    image_id = image[0]["ImageId"] if image else ec2.register_image(Name="of a test")["ImageId"]
    template = ec2.create_launch_template(
        LaunchTemplateName=f"t{time.time_ns()}",
        LaunchTemplateData={"ImageId": image_id, "TagSpecifications": [{"ResourceType": "instance", "Tags": marks}]},
    )["LaunchTemplate"]["LaunchTemplateId"]
    subnets = [each["SubnetId"] for each in ec2.describe_subnets()["Subnets"][:3]]
    made = ec2.create_fleet(
        Type="instant",
        LaunchTemplateConfigs=[{
            "LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"},
            "Overrides": [{"InstanceType": t, "SubnetId": s} for t in types or ("m5.xlarge",) for s in subnets],
        }],
        TargetCapacitySpecification={"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "on-demand"},
        TagSpecifications=[{"ResourceType": "fleet", "Tags": marks}], **more,
    )  # fmt: skip
    ids = [each for group in made["Instances"] for each in group["InstanceIds"]]
    return {"fleet_id": made["FleetId"], "nodes": [{"id": each} for each in ids]}


# --- the login, before anything is written ---------------------------------------------------------------------------


def ask_in(house: House) -> LeaseRecord:
    """Ask for a lease in the house's ledger, as a client does."""
    client = Client(kind="process", process=identify(os.getpid()))
    asked = ask(
        context_of(house), TrainingRequest(accelerator="cpu", platform="aws"),
        key=Key("run", "training", str(time.time_ns())), owner=Owner(user="tester", host="here"), client=client,
    )  # fmt: skip
    return asked.record


@pytest.mark.parametrize(
    ("code", "sentence"),
    [("", "there are no AWS credentials"), ("ExpiredToken", "credentials have expired"), ("", "this login is of acc")],
    ids=["none", "expired", "another account"],
)
def test_a_login_that_cannot_rent_is_told_before_a_record_is_written_or_a_good_login_is_replaced(
    house: House, account: Account, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, sentence: str
) -> None:
    """Prices and quotas are remembered, so nothing else would notice: the record would be stuck from the beginning."""
    record = ask_in(house)
    lent = {path.name: path.read_bytes() for path in house.home.aws.glob("login*")}
    assert lent
    if sentence.startswith("this login"):
        monkeypatch.setattr(environments, "account", lambda: "999999999999")
    elif code:
        account.aws.fail("GetCallerIdentity", status=403, code=code)
    else:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
    with pytest.raises(PermanentError, match=sentence):
        ask_in(house)
    assert [each.record.id for each in context_of(house).ledger.records()] == [record.id]
    assert {path.name: path.read_bytes() for path in house.home.aws.glob("login*")} == lent


# --- offers -----------------------------------------------------------------------------------------------------------


def test_every_initialised_region_is_offered_the_home_region_first(platform: AwsPlatform) -> None:
    """By region and price; each with the zones in which the environment has a subnet."""
    found = platform.offers(TrainingRequest(accelerator="cpu"))
    assert list(dict.fromkeys(each.region for each in found)) == [REGION, SECOND]
    assert found[0].zones == ("us-east-1a", "us-east-1b", "us-east-1c")
    assert {each.skipped for each in found} == {None}


def test_the_project_decides_the_regions_and_their_order(house: House) -> None:
    """And a region without a network says what makes one."""
    found = made_with(house, regions=(SECOND, REGION)).offers(TrainingRequest())
    assert list(dict.fromkeys(each.region for each in found)) == [SECOND, REGION]
    assert {each.region for each in made_with(house, regions=(SECOND,)).offers(TrainingRequest())} == {SECOND}
    with pytest.raises(InvalidInput, match="eu-west-1 has no network of environment 'dev'"):
        made_with(house, regions=("eu-west-1",)).offers(TrainingRequest())


def test_a_quota_of_zero_is_skipped_with_its_name_and_the_next_region_is_tried(
    platform: AwsPlatform, account: Account
) -> None:
    """It is seen in the plan, and costs no attempt."""
    request = TrainingRequest(accelerator="L4:1")
    before = platform.offers(request)
    assert before[0].region == REGION
    account.aws.quota(GPUS, 0, region=REGION)
    found = platform.offers(request)
    assert found[0].region == SECOND
    skipped = [each for each in found if each.region == REGION]
    assert skipped
    assert all(each.skipped and GPUS in each.skipped for each in skipped)


def test_an_environment_that_nobody_initialised_has_no_offers(platform: AwsPlatform, account: Account) -> None:
    """It says what makes one."""
    with account.unchanged(), pytest.raises(NotInitialised, match="init aws --environment prod"):
        platform.offers(TrainingRequest(environment="prod"))


def test_a_missing_permission_stops_and_names_the_action(platform: AwsPlatform, account: Account) -> None:
    """Nothing is tried: every rung would fail in the same way."""
    account.aws.fail("GetParameter", status=400, code="AccessDeniedException", times=None)
    with account.unchanged(), pytest.raises(PermanentError, match="lack the permission"):
        platform.plan_stack(TrainingRequest(), (offer(),))


# --- what is applied --------------------------------------------------------------------------------------------------


def told(boot: str) -> dict[str, Any]:
    found = json.loads(base64.b64decode(boot, validate=True))
    assert isinstance(found, dict)
    return found


def test_a_rung_is_every_type_in_every_zone_that_has_a_subnet(environment: AwsEnvironment) -> None:
    """Cheapest type first; zones that an offer does not name are all, and those without a subnet are none."""
    region = environment.region(REGION)
    one = offer("g6.xlarge", zones=("us-east-1b", "us-east-1f"))
    found = rungs.candidates((one, offer("g6.2xlarge")), region, 0.01)
    assert [(each["instance_type"], each["zone"]) for each in found] == [
        ("g6.xlarge", "us-east-1b"),
        ("g6.2xlarge", "us-east-1a"), ("g6.2xlarge", "us-east-1b"), ("g6.2xlarge", "us-east-1c"),
    ]  # fmt: skip
    assert all(each["subnet_id"] == region.subnets[each["zone"]] for each in found)
    assert {each["max_price"] for each in found} == {None}


def test_a_spot_machine_is_taken_for_no_more_than_its_offer(environment: AwsEnvironment) -> None:
    """The offer's price without the disk's and the address's; never nothing, which would mean any price."""
    region = environment.region(REGION)
    assert rungs.candidates((offer(market="spot"),), region, 0.05)[0]["max_price"] == "0.1500"
    assert float(rungs.candidates((offer(market="spot"),), region, 5.0)[0]["max_price"]) > 0


def test_the_stack_of_an_attempt_carries_its_tags_and_tells_its_node_who_it_is(
    platform: AwsPlatform, house: House, environment: AwsEnvironment
) -> None:
    """Everything that makes it findable is there before anything is."""
    record = lease(request=TrainingRequest(accelerator="L4:1"))
    rung = (offer("g6.xlarge", gpus=1, gpu_memory_gib=22.0), offer("g6.2xlarge", gpus=1, gpu_memory_gib=24.0))
    made = platform.stack(record, attempt(house, *rung))
    variables = made.variables
    assert (made.name, made.root_module, made.egress) == ("aws-gpu", STACKS / "aws-gpu", "internet")
    assert made.tags == tags.of(record, 1) == variables["mlinfra"]["tags"]
    assert len(made.tags) == 7
    assert variables["dead_man_minutes"] in {32, 33}, "two minutes after the deadline, rounded up"
    assert (variables["market"], variables["nodes"], variables["disk_gib"]) == ("on-demand", 1, 100)
    assert {each["instance_type"] for each in variables["candidates"]} == {"g6.xlarge", "g6.2xlarge"}
    boot = told(variables["boot"])
    assert boot["deadline"] == record.deadline.timestamp()
    assert boot["acceptance"] == {"gpus": 1, "gpu_memory_gib": 22.0}, "the least of what it may become"
    assert (boot["lease_id"], boot["attempt"], boot["ledger_id"]) == (record.id, 1, record.ledger_id)
    assert (boot["bucket"], boot["role_id"]) == (environment.artifact_bucket, environment.node_role_id)
    assert boot["endpoint"] == house.account.aws.url
    archive = urllib.request.urlopen(boot["agent_url"]).read()  # noqa: S310 (ours, on loopback)
    assert hashlib.sha256(archive).hexdigest() == boot["agent_sha256"]


def test_the_bucket_is_in_the_home_region_wherever_the_node_is(platform: AwsPlatform, house: House) -> None:
    """A node in a further region speaks to the same mailboxes."""
    record = lease()
    made = platform.stack(record, attempt(house, offer(region=SECOND)))
    assert made.variables["region"] == SECOND
    assert told(made.variables["boot"])["region"] == REGION


def test_a_plan_creates_nothing_and_grants_nothing(platform: AwsPlatform, account: Account) -> None:
    """The agent is not even put into the bucket; everything of the lease is a placeholder."""
    with account.unchanged():
        made = platform.plan_stack(TrainingRequest(max_minutes=10), (offer(),))
    assert made.variables["mlinfra"]["tags"] == tags.planned("dev") == made.tags
    assert "planned.invalid" in told(made.variables["boot"])["agent_url"]
    assert made.variables["dead_man_minutes"] == 12


def test_a_bucket_that_may_not_be_written_stops_before_anything_is_applied(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """The sentence names the object."""
    account.aws.fail("PutObject", status=403, code="AccessDenied", times=None)
    with pytest.raises(MlinfraError, match=r"Writing s3://.*/agents/.*PutObject"):
        platform.stack(lease(), attempt(house))


def variables(
    environment: AwsEnvironment, image: Image = IMAGE, offered: Offer | None = None, seconds_left: float = 60.0
) -> dict[str, Any]:
    return rungs.variables(
        {}, (offered or offer(),), environment, image, disk_gib=50, beside_usd=0.0, boot="", seconds_left=seconds_left
    )


def test_an_image_that_is_larger_than_the_disk_is_refused(environment: AwsEnvironment) -> None:
    """Before a launch says it, for every zone."""
    with pytest.raises(InvalidInput, match=r"environments\.dev\.aws\.disk_gib: 50 GiB is less than the 75 GiB"):
        variables(environment, replace(IMAGE, disk_gib=75))


def test_reserved_capacity_is_refused(environment: AwsEnvironment) -> None:
    """In one sentence."""
    with pytest.raises(UnsupportedHere, match="market: reserved"):
        variables(environment, offered=offer(market="reserved"))


def test_a_deadline_that_is_over_still_arms_the_timer(environment: AwsEnvironment) -> None:
    """A minute is the least: zero would be never."""
    made = variables(environment, seconds_left=-600)
    assert made["dead_man_minutes"] == 1


# --- what became of it ------------------------------------------------------------------------------------------------


def soon() -> float:
    return time.time() + 5


def test_a_fleet_without_capacity_is_a_decision(platform: AwsPlatform, house: House, account: Account) -> None:
    """Terraform said that all was well; the fleet knows why there is no machine."""
    record = lease()
    account.aws.no_capacity(regions=[REGION])
    with pytest.raises(CapacityUnavailable, match="InsufficientInstanceCapacity") as raised:
        platform.check_up(record, attempt(house), fleet(account, record), soon())
    assert "us-east-1a" in str(raised.value), "zones, not subnets"


def test_a_fleet_beyond_the_quota_is_another_decision(platform: AwsPlatform, house: House, account: Account) -> None:
    """It says whom to ask for more."""
    record = lease()
    account.aws.quota(STANDARD, 1)
    with pytest.raises(QuotaExceeded, match="VcpuLimitExceeded.*Service Quotas"):
        platform.check_up(record, attempt(house), fleet(account, record), soon())


def test_a_machine_that_never_reports_is_lost(platform: AwsPlatform, house: House, account: Account) -> None:
    """Its user data is nobody's here, so no agent begins."""
    record = lease()
    outputs = fleet(account, record)
    with pytest.raises(NodeLost, match=rf"{outputs['nodes'][0]['id']} in {REGION} did not report before its time was"):
        platform.check_up(record, attempt(house), outputs, time.time() + 0.5)


def test_nobody_waits_for_a_machine_that_is_not_wanted_any_more(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """The client was lost meanwhile: that is seen at once, not at the deadline."""
    record = lease()
    with pytest.raises(NodeLost, match="its lease is not wanted any more"):
        platform.check_up(record, attempt(house), fleet(account, record), time.time() + 600, lambda: False)


def test_a_machine_that_ended_while_it_booted_is_seen(
    platform: AwsPlatform, house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before its deadline: it is looked at, again and again."""
    monkeypatch.setattr(platforms, "LOOK_SECONDS", 0.1)
    record = lease()
    outputs = fleet(account, record)
    looks: list[float] = []

    def wanted() -> bool:
        if not looks:
            account.end(outputs["nodes"][0]["id"])
        looks.append(time.time())
        return True

    with pytest.raises(NodeLost, match="ended while it booted"):
        platform.check_up(record, attempt(house), outputs, time.time() + 60, wanted)


def test_an_attempt_becomes_the_type_and_the_zone_that_it_got() -> None:
    """Of what it may have become; that is what it costs from now on."""
    from mlinfra_prefect.aws.fleets import Machine

    rung = (offer("g6.xlarge"), offer("g6.2xlarge").revised(usd_per_hour=0.3))
    tried = sample_attempt(offer=rung[1], candidates=rung)
    got = Machine("i-0a", "g6.xlarge", "us-east-1b", "on-demand", MOMENT, "running")
    assert platforms._became(tried, got) == rung[0].revised(zones=("us-east-1b",))
    assert platforms._became(tried, replace(got, type="p5.48xlarge")) is None


# --- whether it lives -------------------------------------------------------------------------------------------------


def test_an_attempt_without_a_mailbox_lives_while_a_machine_carries_its_tags(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """A keeper was killed between the apply and its note of it."""
    record = lease()
    assert not platform.is_up(record, attempt(house))
    outputs = fleet(account, record)
    assert platform.is_up(record, attempt(house))
    account.end(outputs["nodes"][0]["id"])
    assert not platform.is_up(record, attempt(house))


def test_what_cannot_be_looked_at_is_not_read_as_gone(platform: AwsPlatform, house: House, account: Account) -> None:
    """An error is an error."""
    account.aws.fail("DescribeInstances", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(MlinfraError, match="DescribeInstances"):
        platform.is_up(lease(), attempt(house))


def test_a_node_that_was_never_up_says_so(platform: AwsPlatform, house: House) -> None:
    """Nothing of it can be asked, and nothing of it lives."""
    node = platform.node(attempt(house))
    assert not node.lives()
    assert node.jobs() == []


def test_in_another_account_nothing_reads_as_gone(platform: AwsPlatform, house: House, account: Account) -> None:
    """Somebody logs in elsewhere: its fleet is absent there, its tags find nothing, and none of that is the truth."""
    record = lease(account="999999999999")
    fleet(account, record)
    applied = attempt(house)
    since = account.aws.proxy.requests
    record = record.revised(attempts=(applied,))
    for look in (
        lambda: platform.stop_meter(record, applied), lambda: platform.sweep(record),
        lambda: platform.is_up(record, applied), lambda: platform.stack(record, applied),
        lambda: platform.check_login(record),
    ):  # fmt: skip
        with pytest.raises(PermanentError, match=rf"999999999999, and this login is of account {account.aws.account}"):
            look()
    assert not [
        each for each in account.aws.proxy.log if each.request > since and each.operation != "GetCallerIdentity"
    ]


# --- the meter and the sweep ------------------------------------------------------------------------------------------


def test_the_meter_of_what_was_never_applied_costs_no_call(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """Nothing was made, so nothing is ended, and nothing is looked for."""
    since = account.aws.proxy.requests
    planned = attempt(house).revised(applied_at=None)
    platform.stop_meter(lease(), planned)
    assert platform.sweep(lease(attempts=(planned,))).where == "no region: nothing was applied"
    assert account.aws.proxy.requests == since


@pytest.mark.parametrize("known", ["fleet", "nodes", "tags"])
def test_the_meter_stops_by_fleet_by_instance_and_by_tag(
    platform: AwsPlatform, house: House, account: Account, known: str
) -> None:
    """Whatever the record knows; told twice it is no error, and decoys run on."""
    record, decoy = lease(), account.plant({})
    outputs = fleet(account, record)
    ids = tuple(each["id"] for each in outputs["nodes"])
    what = {"fleet": {"fleet": outputs["fleet_id"]}, "nodes": {"nodes": ids}, "tags": {}}[known]
    for _ in range(2):
        platform.stop_meter(record, attempt(house, **what))  # type: ignore[arg-type]
        assert set(account.running()) == {decoy}


def test_a_sweep_looks_in_every_region_that_an_attempt_named_and_ends_what_it_finds(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """Two looks later nothing is found; what another lease has is not touched."""
    one, two = attempt(house), attempt(house, offer(region=SECOND)).revised(number=2)
    record, other = lease(attempts=(one, two)), lease(id="l0123456789abcdef0123-1")
    outputs = fleet(account, record)
    fleet(account, record, region=SECOND)
    kept = fleet(account, other)
    first = platform.sweep(record)
    assert first.where == f"{REGION}, {SECOND}"
    for region in (REGION, SECOND):
        assert any(name.startswith("instance i-") and name.endswith(region) for name in first.ended)
    assert any(outputs["nodes"][0]["id"] in name for name in first.found)
    assert set(account.running()) == {kept["nodes"][0]["id"]}
    assert platform.sweep(record).found == ()


def test_what_could_not_be_ended_is_found_with_the_reason(
    platform: AwsPlatform, house: House, account: Account
) -> None:
    """A receipt is never written over it."""
    record = lease(attempts=(attempt(house),))
    fleet(account, record)
    for operation in ("TerminateInstances", "DeleteFleets"):
        account.aws.fail(operation, status=403, code="UnauthorizedOperation", times=None)
    found = platform.sweep(record)
    assert found.ended == ()
    assert any("instance i-" in name and "(" in name for name in found.found)


def test_tidying_keeps_logs_and_takes_the_rest_with_its_mailbox(
    platform: AwsPlatform, house: House, environment: AwsEnvironment, account: Account
) -> None:
    """Of each job the log, its events and its end; nothing of the mailbox. Twice is no error."""
    mailbox = f"s3://{environment.artifact_bucket}/nodes/AROAEXAMPLE:i-0a1b"
    gone = attempt(house, mailbox=mailbox)
    job = Path(gone.node_dir) / "jobs" / "j1"
    job.mkdir(parents=True)
    for name in ("log.txt", "events.jsonl", "status.json", "result.json"):
        (job / name).write_text(name)
    (Path(gone.node_dir) / "agent.log").write_text("agent")
    (job / "draft.json").symlink_to("/etc/hostname")
    s3 = account.client("s3")
    for key in ("nodes/AROAEXAMPLE:i-0a1b/in/grant", "nodes/AROAEXAMPLE:i-0a1b/out/index.json"):
        s3.put_object(Bucket=environment.artifact_bucket, Key=key, Body=b"{}")
    s3.put_object(Bucket=environment.artifact_bucket, Key="nodes/AROAEXAMPLE:i-0a1b2/in/grant", Body=b"another's")
    for _ in range(2):
        platform.tidy(lease(), gone)
        logs = Path(gone.node_dir).parent.parent / "logs"
        kept = {each.name for each in logs.iterdir()}
        assert kept == {"j1.log.txt", "j1.events.jsonl", "j1.status.json", "1.agent.log"}
        assert not Path(gone.node_dir).exists()
        left = s3.list_objects_v2(Bucket=environment.artifact_bucket, Prefix="nodes/AROAEXAMPLE:i-0a1b").get(
            "Contents", []
        )
        assert [each["Key"] for each in left] == ["nodes/AROAEXAMPLE:i-0a1b2/in/grant"]


def test_a_mailbox_stays_with_what_could_not_be_kept(
    platform: AwsPlatform, house: House, environment: AwsEnvironment, account: Account
) -> None:
    """Of another attempt's nothing is left in it, and it goes."""
    s3, prefixes = account.client("s3"), ("nodes/AROAEXAMPLE:i-0c1d", "nodes/AROAEXAMPLE:i-0c1e")
    boxes = [f"s3://{environment.artifact_bucket}/{each}" for each in prefixes]
    for each in prefixes:
        s3.put_object(Bucket=environment.artifact_bucket, Key=f"{each}/out/index.json", Body=b"{}")
    record = lease().revised(jobs=(JobNote(job_id="j1", label="j", state="succeeded", left_at=boxes[0]),))
    for mailbox in boxes:
        platform.tidy(record, attempt(house, mailbox=mailbox))
    left = s3.list_objects_v2(Bucket=environment.artifact_bucket, Prefix="nodes/AROAEXAMPLE:i-0c1")["Contents"]
    assert [each["Key"] for each in left] == ["nodes/AROAEXAMPLE:i-0c1d/out/index.json"]
    s3.delete_object(Bucket=environment.artifact_bucket, Key="nodes/AROAEXAMPLE:i-0c1d/out/index.json")


def test_a_mailbox_that_cannot_be_emptied_stops_no_release(
    platform: AwsPlatform, house: House, environment: AwsEnvironment, account: Account
) -> None:
    """It is files, not money, and the bucket forgets them by itself."""
    account.aws.fail("*Object*", status=403, code="AccessDenied", times=None)
    platform.tidy(lease(), attempt(house, mailbox=f"s3://{environment.artifact_bucket}/nodes/AROAEXAMPLE:i-0a1b"))


# --- what it is not ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p.route(sample_endpoint()),
        lambda p: p.served(sample_endpoint()),
        lambda p: p.token(sample_endpoint()),
        lambda p: p.prolong(sample_endpoint(), None),
        lambda p: p.choose_port(None, lambda _: False),
        lambda p: p.stack(sample_endpoint(), sample_attempt()),
    ],
)
def test_nothing_is_served_on_aws(platform: AwsPlatform, call: Callable[[AwsPlatform], object]) -> None:
    """One sentence, with what to do instead."""
    with pytest.raises(UnsupportedHere, match=r"nothing is served on aws.*Deploy on platform 'local'"):
        call(platform)


@pytest.mark.parametrize(
    ("endpoint", "emulated"),
    [
        ("http://127.0.0.1:4566", True),
        ("http://localhost:4566", True),
        ("http://[::1]:4566", True),
        ("https://vpce-0a1b.ec2.eu-central-1.vpce.amazonaws.com", False),
        ("http://127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_it_is_emulated_where_aws_answers_on_this_host(
    platform: AwsPlatform, monkeypatch: pytest.MonkeyPatch, endpoint: str, emulated: bool
) -> None:
    """Then what is rented ends with this host, and nothing has to be waited for long."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert platform.emulated is emulated
    assert (platform.consistency_seconds >= 10) is not emulated


def test_the_region_of_a_bucket_is_in_its_name() -> None:
    """Environments have dashes, and so have regions."""
    assert platforms.region_of("mlinfra-prefect-artifacts-my-dev-2-123456789012-ap-southeast-2") == "ap-southeast-2"
