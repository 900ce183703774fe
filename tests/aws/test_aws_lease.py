"""Rule: a training on AWS is leased, runs, is kept and given back as on this machine; judged by what is in the account.

One emulated account with one environment in two regions for all of it, and leases that several tests share: making an
environment takes half a minute, and a lease a quarter of one. The tests stand in the order in which they happen.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from aws_place import REGION, SECOND, Account, House, house_in, require_provider, until

HERE = Path(__file__).parent
PROJECT = HERE / "project"
sys.path.insert(0, str(PROJECT))

import aws_work  # noqa: E402

from mlinfra_prefect import Infra, ModelArtifact, deploy, lease, provision, release  # noqa: E402
from mlinfra_prefect.aws import tags  # noqa: E402
from mlinfra_prefect.errors import CapacityUnavailable, InvalidInput, PermanentError  # noqa: E402
from mlinfra_prefect.integration.phase import context  # noqa: E402
from mlinfra_prefect.lifecycle import ladder  # noqa: E402
from mlinfra_prefect.model.lease import LeaseRecord, State  # noqa: E402
from mlinfra_prefect.model.receipt import Receipt  # noqa: E402
from mlinfra_prefect.testing.aws import Emulator  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GPUS = "L-DB2E81BA"
SAID = "attempt 1, .*: CapacityUnavailable; attempt 2, .*: CapacityUnavailable.*Try again"
CLIENT = """
import sys
sys.path.insert(0, {project!r})
import aws_work
from mlinfra_prefect import lease
with lease("cpu", platform="aws", market="spot", name="killed", max_minutes=15, grace_seconds=20) as infra:
    print(infra.id, flush=True)
    infra.with_options(resume="killed").run(aws_work.until_told, 11)
"""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """The emulated account. At the end nothing of any lease may run in it."""
    require_provider(tmp_path_factory.mktemp("provider"))
    with Emulator() as aws:
        found = Account(aws)
        yield found
        left = {each: said for each, said in found.running().items() if tags.LEASE in said}
    assert not left


@pytest.fixture(scope="module")
def house(account: Account) -> Iterator[House]:
    """A home whose environment dev has two regions, which this process uses."""
    patch = pytest.MonkeyPatch()
    with house_in(account, patch) as made:
        said = made.says("init", "aws", "--yes", "--region", REGION, "--region", SECOND)
        assert [each["name"] for each in said["made"]["regions"]] == [REGION, SECOND]
        patch.chdir(PROJECT)
        try:
            yield made
            left = [record for record in records() if record.state is not State.RELEASED]
            for record in left:
                made.cli("release", record.id)
            assert not left
        finally:
            patch.undo()


@pytest.fixture(autouse=True)
def no_faults(account: Account) -> Iterator[None]:
    yield
    account.aws.clear_faults()


@pytest.fixture(scope="module")
def infra(house: House) -> Iterator[Infra]:
    """The lease that most tests use; `test_release` gives it back, where that is run."""
    made = provision.fn("cpu", platform="aws", name="shared", max_minutes=30, grace_seconds=20.0)
    yield made
    release.fn(made)


@pytest.fixture(scope="module")
def model(infra: Infra) -> ModelArtifact:
    return infra.run(aws_work.fit, np.arange(6.0))


def records() -> list[LeaseRecord]:
    return [seen.record for seen in context().ledger.records() if isinstance(seen.record, LeaseRecord)]


def latest(name: str) -> LeaseRecord:
    return next(record for record in reversed(records()) if record.name == name)


def clean(receipt: Receipt | None) -> Receipt:
    """A receipt that proves: all that was created is destroyed, and the last two looks found nothing."""
    assert receipt is not None
    assert receipt.clean
    assert set(receipt.created) == set(receipt.destroyed)
    return receipt


# --- a lease that is there --------------------------------------------------------------------------------------------


def test_everything_that_is_billed_carries_the_seven_tags(infra: Infra, account: Account) -> None:
    """Machine, disk, interface, fleet and template, from birth: the judge asks EC2."""
    record = infra.record
    wanted = tags.of(record, 1)
    assert wanted[tags.DEADLINE] == str(int(-(-record.deadline.timestamp() // 1)))
    (machine,) = account.running()
    ec2 = account.client("ec2", record.attempts[0].offer.region)
    of_machine = [{"Name": "attachment.instance-id", "Values": [machine]}]
    carriers = [
        *ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"],
        *ec2.describe_volumes(Filters=of_machine)["Volumes"],
        *ec2.describe_launch_templates()["LaunchTemplates"],
        *ec2.describe_fleets(FleetIds=[str(record.attempts[0].fleet)])["Fleets"],
    ]
    interfaces = ec2.describe_network_interfaces(Filters=of_machine)["NetworkInterfaces"]
    carriers += [{"Tags": each["TagSet"]} for each in interfaces]
    assert len(carriers) >= 5
    for each in carriers:
        assert {tag["Key"]: tag["Value"] for tag in each["Tags"] if tag["Key"] in wanted} == wanted


def test_the_record_says_what_was_rented(infra: Infra, account: Account) -> None:
    """The machine, its fleet, its type and zone, and when it was launched: that is what costs from now on."""
    (attempt,) = infra.record.attempts
    (machine,) = account.running()
    there = account.client("ec2").describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
    assert attempt.nodes == (machine,)
    assert attempt.offer.type == there["InstanceType"]
    assert attempt.offer.zones == (there["Placement"]["AvailabilityZone"],)
    assert attempt.launched_at == there["LaunchTime"]
    assert infra.record.reserved_usd >= attempt.offer.usd_per_hour / 2


def test_arrays_go_to_the_machine_and_come_back(infra: Infra) -> None:
    """Through the bucket, whole."""
    rows = np.random.default_rng(3).normal(size=(300, 40))
    found = infra.run(aws_work.scaled, rows, by=2.0)
    assert found.dtype == rows.dtype
    assert np.array_equal(found, rows * 2.0)


def test_the_training_sees_its_lease_and_no_credentials_of_its_client(infra: Infra, house: House) -> None:
    """Training code is arbitrary code (R15): no key of the client's, and not its home."""
    seen = infra.run(aws_work.whoami)
    assert (seen["MLINFRA_LEASE_ID"], seen["MLINFRA_ATTEMPT"]) == (infra.id, "1")
    assert "AWS_SECRET_ACCESS_KEY" not in seen
    assert "AWS_ACCESS_KEY_ID" not in seen
    assert str(house.root) not in json.dumps(seen)


def test_what_the_training_raises_comes_back_as_itself(infra: Infra) -> None:
    """And the lease lives on."""
    with pytest.raises(ValueError, match="by hand") as raised:
        infra.run(aws_work.refuses, "by hand")
    assert raised.value.args == ("by hand", 1)
    assert infra.state is State.READY


def test_a_model_comes_back_verified(model: ModelArtifact, infra: Infra, house: House) -> None:
    """Its files in the client's home, with metrics and lineage."""
    assert json.loads((model.path / "model.json").read_text()) == {"mean": 2.5, "begun": 0}
    assert model.path.is_relative_to(house.home.artifacts)
    assert model.metrics["mean"] == 2.5
    assert (model.lease_id, model.environment) == (infra.id, "dev")


def test_the_model_can_be_pulled(model: ModelArtifact, infra: Infra, house: House, tmp_path: Path) -> None:
    """By the lease that made it, with its hashes checked."""
    house.says("pull", infra.id, str(tmp_path / "there"))
    (found,) = (tmp_path / "there").rglob("model.json")
    assert found.read_bytes() == (model.path / "model.json").read_bytes()


def test_it_is_not_served_there(model: ModelArtifact) -> None:
    """One sentence, and no endpoint is written down."""
    with pytest.raises(InvalidInput, match=r"serving\.platform: nothing is served on aws.*deploy on 'local'"):
        deploy.fn(model, serving={"name": "there", "platform": "aws"})
    assert {seen.record.kind for seen in context().ledger.records()} == {"lease"}


def test_a_command_runs_on_the_machine(infra: Infra, house: House) -> None:
    """Its output and its exit code are the command's."""
    done = house.cli("exec", infra.id, "--", "sh", "-c", "echo on $(basename $PWD); echo oops >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout.startswith("on ")


def test_logs_are_followed_while_the_training_runs(infra: Infra, house: House) -> None:
    """Lines arrive before the job has ended, and the verb ends with it."""
    running = infra.with_options(resume="shared").submit(aws_work.until_told, 7)
    until(lambda: infra.record.jobs and infra.record.jobs[-1].label.endswith("until_told"), "the job is there")
    job = infra.record.jobs[-1].job_id
    following = subprocess.Popen(
        [sys.executable, "-m", "mlinfra_prefect", "logs", infra.id, "--job", job, "-f"], env=house.environment(),
        stdout=subprocess.PIPE, text=True, cwd=house.root.parent,
    )  # fmt: skip
    try:
        assert following.stdout is not None
        heard: list[str] = []
        listener = threading.Thread(target=lambda: heard.extend(following.stdout or ()), daemon=True)
        listener.start()
        until(lambda: any("training, resumed=False" in line for line in heard), "the line is heard")
        assert not running.done()
        context().platform("aws").node(infra.record.attempts[-1]).stop(job, grace_seconds=20)
        assert running.result(60) == 7, "it was told, committed, and returned"
        assert following.wait(60) == 0
        listener.join(10)
    finally:
        following.kill()
        following.wait()
        if following.stdout is not None:
            following.stdout.close()


def test_the_listing_shows_it_with_its_cost(infra: Infra, house: House) -> None:
    """Alive, on aws, and what it has cost until now."""
    (shown,) = [each for each in house.says("ps") if each["id"] == infra.id]
    assert (shown["state"], shown["platform"]) == ("ready", "aws")
    assert 0 < shown["cost_usd"] < infra.record.reserved_usd


def test_a_second_home_in_the_same_account_touches_nothing_of_it(
    infra: Infra, house: House, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the environment by name, reaps, and leases for itself: two ledgers, both reapers running (R8)."""
    before = account.running()
    with house_in(account, monkeypatch) as second:
        theirs = second.says("up", "cpu", "--platform", "aws", "--max-minutes", "10")["id"]
        try:
            both = account.running()
            assert set(before) < set(both)
            for each in (house, second, house, second):
                found = each.says("reap")
                assert found["orphans"] == found["stuck"] == []
            assert account.running() == both
            assert f"{infra.id} of ledger" in second.refuses("init", "aws", "--destroy", "--yes")
        finally:
            done = second.cli("release", theirs)
        assert done.returncode == 0, done.stderr
        assert account.running() == before
        _appears_after_its_release(second, house, theirs, account, both)
    assert account.running() == before
    monkeypatch.undo()
    assert infra.run(aws_work.resumes)["resumed"] is False


def _appears_after_its_release(
    second: House, first: House, lease_id: str, account: Account, both: dict[str, dict[str, str]]
) -> None:
    """What a cut-off call makes later is ended by the ledger whose tombstone knows it, and by no other one."""
    (carried,) = [said for said in both.values() if said.get(tags.LEASE) == lease_id]
    late = account.plant({key: carried[key] for key in tags.KEYS})
    assert first.says("reap")["orphans"] == []
    assert late in account.running()
    (found,) = second.says("reap")["orphans"]
    assert found["id"] == lease_id
    assert late in found["reason"]
    assert late not in account.running()
    shown = second.says("show", lease_id)
    assert late in json.dumps(shown)


def test_release(infra: Infra, account: Account) -> None:
    """The meter stops, all that was created is destroyed, two looks find nothing, and the cost is by the second."""
    assert len(account.of(infra.id)) == 1
    release.fn(infra)
    record = latest("shared")
    receipt = clean(record.receipt)
    assert account.of(infra.id) == set()
    (attempt,) = record.attempts
    assert receipt.created == ("1/module.node.aws_ec2_fleet.node", "1/module.node.aws_launch_template.node")
    assert attempt.launched_at is not None
    assert attempt.stopped_at is not None
    assert attempt.gone_at is not None
    assert attempt.launched_at < attempt.stopped_at < attempt.gone_at
    seconds = (attempt.stopped_at - attempt.launched_at).total_seconds()
    assert receipt.cost_usd == pytest.approx(seconds / 3600 * attempt.offer.usd_per_hour, abs=1e-6)
    assert receipt.trained_seconds > 0
    assert [each.where for each in receipt.searches] == [REGION, REGION]


# --- the ladder -------------------------------------------------------------------------------------------------------


def test_without_capacity_the_next_region_is_tried_and_the_work_goes_on_there(house: House, account: Account) -> None:
    """Through a flow: every zone of the first region is empty, each try is an attempt, and none of them cost anything.

    The training resumes from what the lease before has committed, in another region.
    """
    from prefect import flow
    from prefect.testing.utilities import prefect_test_harness

    account.aws.no_capacity(regions=[REGION])

    @flow
    def trains() -> tuple[ModelArtifact, dict[str, object]]:
        with lease("cpu", platform="aws", name="moved", max_minutes=15, max_hourly_usd=0.3) as infra:
            machine = next(iter(account.running(SECOND)))
            assert account.running(SECOND)[machine][tags.FLOW_RUN] == infra.record.owner.flow_run_id
            found = infra.with_options(resume="shared").run(aws_work.resumes)
            return infra.run(aws_work.fit, np.ones(4), steps=1), found

    with prefect_test_harness(server_startup_timeout=120):
        model, found = trains()
    assert found == {"resumed": True, "step": "7"}
    assert model.metrics["mean"] == 1.0
    record = latest("moved")
    first, second = record.attempts
    assert first.outcome.startswith("CapacityUnavailable: ")
    assert {each.region for each in (first.offer, *first.candidates)} == {REGION}
    assert (second.offer.region, second.up_at is not None) == (SECOND, True)
    assert first.cost_usd(record.released_at or record.deadline) == 0.0
    receipt = clean(record.receipt)
    assert receipt.attempts == 2
    assert receipt.searches[-1].where == f"{REGION}, {SECOND}"
    assert receipt.cost_usd == pytest.approx(second.cost_usd(record.released_at or record.deadline), abs=1e-6)
    told = [str(row) for row in ladder.table(record, receipt.released_at)]
    assert f"in {REGION} (on-demand): CapacityUnavailable" in told[0]
    assert f"became {second.offer.type} in {SECOND}" in told[1]
    assert account.of(record.id) == set()


def test_what_init_left_is_paid_for_once(house: House) -> None:
    """The stack of a later attempt starts no ``init``: what the first one left is used."""
    kept = {
        f"{record.name}/{attempt.number}": any(Path(attempt.directory).rglob("*-init.out"))
        for record in records()
        for attempt in record.attempts
    }
    assert kept["moved/1"] is kept["moved/2"] is False


def test_a_quota_and_a_bad_machine_are_two_more_attempts(house: House, account: Account) -> None:
    """A quota that could not be seen in the plan, then a GPU that does not answer, then one that does.

    The bad machine is ended before any training was paid for.
    """
    account.aws.quota(GPUS, 0, region=REGION)
    for operation in ("GetServiceQuota", "ListServiceQuotas"):
        account.aws.fail(operation, status=400, code="AccessDeniedException", times=None)
    account.aws.broken_gpus(times=1)
    with lease("L4:1", platform="aws", name="gpu", max_minutes=15, max_hourly_usd=1.2) as infra:
        outcomes = [attempt.outcome for attempt in infra.record.attempts]
        (machine,) = account.of(infra.id)
        done = house.cli("exec", infra.id, "--", "nvidia-smi", "--query-gpu=name", "--format=csv,noheader")
        assert done.stdout.strip() == "NVIDIA L4"
    assert outcomes[0].startswith("QuotaExceeded: ")
    assert "VcpuLimitExceeded" in outcomes[0]
    assert outcomes[1].startswith("NodeLost: ")
    assert "nvidia-smi" in outcomes[1]
    assert outcomes[2:] == [""]
    record = latest("gpu")
    bad, good = record.attempts[1:]
    assert good.nodes == (machine,)
    receipt = clean(record.receipt)
    moment = receipt.released_at
    assert bad.cost_usd(moment) > 0, "a machine was there, and AWS charges for it"
    assert receipt.cost_usd == pytest.approx(bad.cost_usd(moment) + good.cost_usd(moment), abs=1e-5)
    assert {job.label for job in record.jobs} == {job.label for job in record.jobs if "nvidia-smi" in job.label}
    assert account.of(record.id) == set()


def test_nothing_anywhere_is_one_sentence_with_every_attempt(house: House, account: Account) -> None:
    """And nothing is left, and nothing was paid."""
    account.aws.no_capacity()
    with (
        pytest.raises(
            CapacityUnavailable,
            match=SAID,
        ) as raised,
        lease("cpu", platform="aws", name="nowhere", max_minutes=15, max_hourly_usd=0.3),
    ):
        raise AssertionError("there was a machine")
    assert REGION in str(raised.value)
    assert SECOND in str(raised.value)
    record = until(lambda: (found := latest("nowhere")).state is State.RELEASED and found, "it is released")
    assert clean(record.receipt).cost_usd == 0.0
    assert account.of(record.id) == set()


def test_what_a_person_has_to_mend_stops_the_ladder(house: House, account: Account) -> None:
    """A missing permission: one attempt, and what AWS refused. No rung would do better."""
    account.aws.fail("CreateFleet", status=403, code="UnauthorizedOperation", times=None)
    with (
        pytest.raises(PermanentError, match="CreateFleet.* UnauthorizedOperation"),
        lease("cpu", platform="aws", name="refused", max_minutes=15, max_hourly_usd=0.3),
    ):
        raise AssertionError("there was a machine")
    record = until(lambda: (found := latest("refused")).state is State.RELEASED and found, "it is released")
    assert len(record.attempts) == 1
    clean(record.receipt)
    assert account.of(record.id) == set()


# --- how it ends ------------------------------------------------------------------------------------------------------


def test_an_exception_in_the_block_drains_and_gives_back(house: House, account: Account) -> None:
    """The running training commits its checkpoint first; the exception is the caller's."""
    with (
        pytest.raises(KeyError, match="mine"),
        lease("cpu", platform="aws", name="broken", max_minutes=15, grace_seconds=20) as infra,
    ):
        infra.with_options(resume="broken").submit(aws_work.until_told, 5)
        until(lambda: _log(infra).count("training, resumed=False"), "it trains")
        raise KeyError("mine")
    record = latest("broken")
    clean(record.receipt)
    assert record.jobs[-1].state in {"stopped", "succeeded"}
    steps = [line.reason for line in context().ledger.history(record.id)]
    assert steps.index("attempt 1: drain") < steps.index("attempt 1: stopping the meter, then destroying it")
    assert _checkpoint(house, "5")
    assert account.of(record.id) == set()


def test_a_client_that_is_killed_in_its_training_leaves_a_checkpoint_and_nothing_else(
    house: House, account: Account
) -> None:
    """`checkpoint_then_release` is the keeper's to do: nobody else is left to do it. On a spot machine."""
    place = Path(tempfile.mkdtemp(prefix="mlc-"))
    (place / "client.py").write_text(CLIENT.format(project=str(PROJECT)))
    with (place / "err").open("w") as sink:
        client = subprocess.Popen(
            [sys.executable, str(place / "client.py")], env=house.environment(), cwd=PROJECT, stdout=subprocess.PIPE,
            stderr=sink, text=True,
        )  # fmt: skip
    try:
        assert client.stdout is not None
        lease_id = client.stdout.readline().strip()
        assert lease_id, (place / "err").read_text()
        infra = Infra(context(), lease_id)
        until(lambda: _log(infra).count("training, resumed=False"), "it trains")
        assert len(account.of(lease_id)) == 1
        client.send_signal(signal.SIGKILL)
        client.wait()
        record = until(lambda: (found := latest("killed")).state is State.RELEASED and found, "the keeper releases it")
    finally:
        client.kill()
        client.wait()
        if client.stdout is not None:
            client.stdout.close()
        shutil.rmtree(place, ignore_errors=True)
    assert "client was lost" in clean(record.receipt).reason
    assert record.attempts[0].offer.market == "spot"
    assert _checkpoint(house, "11")
    assert account.of(record.id) == set()


def _log(infra: Infra) -> str:
    attempt = infra.record.attempt
    if attempt is None or not infra.record.jobs:
        return ""
    path = context().platform("aws").node(attempt).file(infra.record.jobs[-1].job_id, "log.txt")
    return path.read_text() if path.exists() else ""


def _checkpoint(house: House, step: str) -> bool:
    """Whether a checkpoint of a step stands in the home, with its manifest."""
    return any(
        path.read_text() == step and (path.parent / "manifest.json").exists()
        for path in house.home.checkpoints.rglob("step.txt")
    )


def test_nothing_of_any_lease_is_left_in_the_account(house: House, account: Account) -> None:
    """Of all kinds, tagged or not: only what the environment shares."""
    for region in (REGION, SECOND):
        ec2 = account.client("ec2", region)
        assert account.running(region) == {}
        assert ec2.describe_launch_templates()["LaunchTemplates"] == []
        assert ec2.describe_volumes()["Volumes"] == []
        requests = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
        assert {each["State"] for each in requests} <= {"closed", "cancelled"}
        left = [
            each["NetworkInterfaceId"] for each in ec2.describe_network_interfaces()["NetworkInterfaces"]
            if not (each.get("Attachment") or {}).get("InstanceId")
        ]  # fmt: skip
        assert left == []
    bucket = json.loads((house.home.aws / "dev.json").read_text())["artifact_bucket"]
    listed = account.client("s3").list_objects_v2(Bucket=bucket).get("Contents", [])
    assert {each["Key"].split("/")[0] for each in listed} <= {"agents", "checkpoints", "nodes"}
