"""Rule: in a cloud, too, what carries our tags and has no open record is ended; a neighbour's is not (R7, R8)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "aws"))

from aws_place import REGION, SECOND, Account, House, house_in

from mlinfra_prefect.aws import tags
from mlinfra_prefect.keeper import cloud_sweeping, operate
from mlinfra_prefect.keeper.operate import renew, step, stop
from mlinfra_prefect.keeper.passes import Notes, Pass
from mlinfra_prefect.lifecycle import addenda, cloud_access
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import OPEN, AttemptState, Client, Keeper, LeaseRecord, State
from mlinfra_prefect.terraform import lock
from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.records import path_to, sample_attempt, sample_lease, sample_offer

KEEPER = Keeper(place="process", process=identify())
FOREIGN = "00000000-0000-4000-8000-000000000000"
Write = Callable[..., LeaseRecord]
Sweep = Callable[..., Pass]


@pytest.fixture(scope="module")
def emulated() -> Iterator[Account]:
    with Emulator() as aws:
        yield Account(aws)


@pytest.fixture
def account(emulated: Account) -> Iterator[Account]:
    """The account, in which nothing runs when a test begins and ends."""
    found = emulated
    yield found
    found.aws.clear_faults()
    for region in (REGION, SECOND):
        if running := found.running(region):
            found.end(*running, region=region)
        ec2 = found.client("ec2", region)
        for each in ec2.describe_volumes(Filters=[{"Name": "status", "Values": ["available"]}])["Volumes"]:
            ec2.delete_volume(VolumeId=each["VolumeId"])


@pytest.fixture
def house(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    with house_in(account, monkeypatch) as made:
        yield made


@pytest.fixture
def context(house: House) -> Iterator[Context]:
    """A home that has used an environment with two regions."""
    made = Context(house.home)
    noted(house, "dev", REGION, SECOND)
    yield made
    made.ledger.close()


@pytest.fixture
def write(context: Context) -> Write:
    """Writes a lease on aws into the ledger, in any state."""

    def write(name: str = "training", state: State = State.READY, *, ago: float = 3600.0) -> LeaseRecord:
        record = sample_lease(name, ledger_id=context.ledger.ledger_id, platform="aws", keeper=None)
        seen = context.ledger.create(record, actor="test", reason="written by a test")
        for following in path_to(state):
            over = {"released_at": context.ledger.now() - timedelta(seconds=ago)} if following is State.RELEASED else {}
            seen = context.ledger.replace(seen, seen.record.revised(state=following, **over), actor="test", reason="on")
        assert isinstance(seen.record, LeaseRecord)
        return seen.record

    return write


@pytest.fixture
def sweep(context: Context) -> Sweep:
    """One pass over the account; what it says."""

    def sweep(*, unknown_before: float = 0.0, **how: object) -> Pass:
        notes = Notes()
        cloud_sweeping.sweep_clouds(
            context, notes, context.ledger.records(states=OPEN), unknown_before=unknown_before, **how
        )  # type: ignore[arg-type]
        return notes.done()

    return sweep


def noted(house: House, name: str, *regions: str, account: str = "") -> None:
    """As `init aws` leaves it in the home; that is all that a sweep reads of an environment."""
    house.home.aws.mkdir(exist_ok=True)
    listed = ", ".join(f'{{"name": "{region}"}}' for region in regions)
    (house.home.aws / f"{name}.json").write_text(f'{{"account": "{account}", "regions": [{listed}]}}')


def marks(lease: LeaseRecord | str, ledger: str = "", *, deadline: float | None = None, **more: str) -> dict[str, str]:
    """The seven tags."""
    record = None if isinstance(lease, str) else lease
    made = tags.build(
        ledger_id=ledger or (record.ledger_id if record else FOREIGN), lease_id=record.id if record else str(lease),
        attempt=1, environment="dev", deadline=time.time() + 3600 if deadline is None else deadline, owner="ada",
    )  # fmt: skip
    return made | {f"mlinfra-prefect:{name}": value for name, value in more.items()}


def reasons(found: tuple[object, ...]) -> dict[str, str]:
    return {each.id: each.reason for each in found}  # type: ignore[attr-defined]


# --- ours -------------------------------------------------------------------------------------------------------------


def test_what_appears_after_its_lease_was_released_is_ended(
    account: Account, context: Context, write: Write, sweep: Sweep
) -> None:
    """A call that a cut-off Terraform had made is carried out later; the tombstone is all that knows of it."""
    record = write(state=State.RELEASED)
    context.home.record_dir(record.id).mkdir(parents=True)
    late, decoy = account.plant(marks(record)), account.plant({})
    found = sweep()
    assert set(account.running()) == {decoy}
    assert f"it was released at {record.released_at:%Y-%m-%d %H:%M:%S} UTC" in reasons(found.orphans)[record.id]
    assert late in reasons(found.orphans)[record.id]
    assert not found.quiet
    (line,) = addenda.of(context.home, record.id)
    assert any(late in name for name in line.found)
    assert any(late in name for name in line.ended)
    assert line.where == REGION


def test_it_is_ended_in_every_region_of_the_environment(account: Account, write: Write, sweep: Sweep) -> None:
    """The attempts went from region to region, and so did what they left."""
    record = write(state=State.RELEASED)
    for region in (REGION, SECOND):
        account.plant(marks(record), region)
    sweep()
    assert account.running() == {}


@pytest.mark.parametrize("state", [State.REQUESTED, State.PROVISIONING, State.READY, State.RELEASING, State.STUCK])
def test_what_an_open_record_names_is_its_keeper_s(account: Account, write: Write, sweep: Sweep, state: State) -> None:
    """Whoever keeps the record ends it, in its order."""
    kept = account.plant(marks(write(state=state)))
    assert sweep() == Pass()
    assert set(account.running()) == {kept}


@pytest.fixture
def given_up(context: Context, write: Write) -> LeaseRecord:
    """A ready lease of this process, whose first attempt was given up 40 s ago and whose second one is up."""
    record, began = write(state=State.REQUESTED), context.ledger.now() - timedelta(seconds=100)
    offer = sample_offer(region=REGION, usd_per_hour=0.9)
    planned = tuple(sample_attempt(number, offer=offer) for number in (1, 2))
    ways: tuple[dict[str, object], ...] = (
        {"state": State.PROVISIONING, "attempts": planned, "keeper": KEEPER},
        {"attempts": tuple(each.revised(state=AttemptState.APPLYING, applied_at=began) for each in planned)},
        {
            "state": State.READY, "deadline": context.ledger.now() + timedelta(hours=1),
            "renewed_until": context.ledger.now() + timedelta(minutes=2), "client": Client(kind="none"),
            "attempts": (
                planned[0].revised(
                    state=AttemptState.RELEASING, applied_at=began, outcome="TerraformFailed: it was killed.",
                    stopped_at=context.ledger.now() - timedelta(seconds=40),
                ),
                planned[1].revised(state=AttemptState.UP, applied_at=began, up_at=context.ledger.now()),
            ),
        },
    )  # fmt: skip
    seen = context.ledger.read(record.id)
    for changes in ways:
        assert seen is not None
        seen = context.ledger.replace(seen, seen.record.revised(**changes), actor="test", reason="on")
    assert seen is not None
    assert isinstance(seen.record, LeaseRecord)
    return seen.record


def test_a_machine_of_a_given_up_attempt_is_ended_while_its_lease_goes_on(
    account: Account, given_up: LeaseRecord, sweep: Sweep
) -> None:
    """A reaper that comes by has seen it anyway; the live attempt, and what costs nothing, is the keeper's."""
    late = account.plant(marks(given_up))
    live = account.plant(marks(given_up) | {tags.ATTEMPT: "2"})
    found = sweep()
    assert set(account.running()) == {live}
    assert reasons(found.orphans)[given_up.id].startswith(f"its attempt was given up before: ended instance {late}")


def test_a_renewal_ends_what_appeared_late_and_never_the_live_attempt(
    account: Account, context: Context, given_up: LeaseRecord
) -> None:
    """EC2 carries out a launch late: looked for when that is due, with one call, and reckoned with its attempt."""
    live = account.plant(marks(given_up) | {tags.ATTEMPT: "2"})
    stranger = account.plant({})
    assert renewed(account, context, given_up) == 2  # whether the live one lives, and whether more has come
    assert renewed(account, context, given_up) == 1  # the next look is not due
    late = account.plant(marks(given_up))
    seen = context.ledger.read(given_up.id)
    assert seen is not None
    passed = seen.record.attempts[0].revised(
        stopped_at=context.ledger.now() - timedelta(seconds=65), looked_at=context.ledger.now() - timedelta(seconds=30)
    )
    context.ledger.replace(seen, seen.record.revised(attempts=(passed, seen.record.attempts[1])), actor="t", reason="")
    assert renewed(account, context, given_up) == 3  # and that it ends
    assert set(account.running()) == {live, stranger}
    attempts = context.record(given_up.id).attempts
    assert attempts[0].nodes == (late,)
    assert attempts[0].late_usd > 0
    assert attempts[1] == given_up.attempts[1]
    assert f"appeared late, and ended: {late} of attempt 1" in context.ledger.history(given_up.id)[-1].reason


def renewed(account: Account, context: Context, record: LeaseRecord) -> int:
    """Let a lease be renewed as its watcher has it done; how many calls to EC2 that cost."""
    since = account.aws.proxy.requests
    assert operate.renew(context, [record.id], KEEPER) == 0
    return sum(
        each.phase == "received" and each.request > since and "Instances" in each.operation
        for each in account.aws.proxy.log
    )


def test_what_no_record_names_is_ended_if_the_ledger_would_know(
    account: Account, context: Context, sweep: Sweep
) -> None:
    """A record is written ahead of all that it is for, and so is its directory in the home that wrote it."""
    context.home.record_dir("l0123456789abcdef0123-1").mkdir()
    account.plant(marks("l0123456789abcdef0123-1", context.ledger.ledger_id))
    found = sweep(unknown_before=time.time() - 60)
    assert reasons(found.orphans)["l0123456789abcdef0123-1"].startswith("no record of this ledger names it: ended")
    assert account.running() == {}


def test_a_lease_of_a_twin_home_is_left_alone(account: Account, context: Context, sweep: Sweep) -> None:
    """Two clones of one machine have one ledger's identity: what has no directory here may be the other's."""
    twins = account.plant(marks("l0123456789abcdef0123-1", context.ledger.ledger_id, deadline=time.time() + 900))
    assert sweep(unknown_before=time.time() - 60) == Pass()
    assert set(account.running()) == {twins}


def test_what_is_past_its_deadline_is_ended_though_its_record_is_open(
    account: Account, write: Write, sweep: Sweep
) -> None:
    """Its keeper should have ended it, and did not: it may be on a host that nobody can look at."""
    record = write(state=State.READY)
    account.plant(marks(record, deadline=time.time() - 400))
    found = sweep()
    assert account.running() == {}
    assert "past its own deadline" in reasons(found.orphans)[record.id]


def test_a_copy_of_a_ledger_ends_nothing_that_is_older_than_it_knows(
    account: Account, context: Context, sweep: Sweep
) -> None:
    """Before its own deadline: the home that the copy was made of may have it on its desk."""
    account.plant(marks("l0123456789abcdef0123-1", context.ledger.ledger_id))
    late = account.plant(marks("l9876543210abcdef0123-1", context.ledger.ledger_id, deadline=time.time() - 400))
    sweep(unknown_before=time.time() + 60)
    assert len(account.running()) == 1
    assert late not in account.running()


def test_what_goes_with_a_machine_that_was_just_released_needs_no_second_order(
    account: Account, write: Write, sweep: Sweep
) -> None:
    """A disk is seen for a minute after its machine; a machine itself is ended at once."""
    record = write(state=State.RELEASED, ago=5.0)
    spec = [{"ResourceType": "volume", "Tags": [{"Key": k, "Value": v} for k, v in marks(record).items()]}]
    ec2 = account.client("ec2")
    ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=1, TagSpecifications=spec)
    assert sweep() == Pass()
    assert ec2.describe_volumes()["Volumes"]
    account.plant(marks(record))
    assert record.id in reasons(sweep().orphans)
    assert account.running() == {}


def test_a_disk_that_stays_is_ended(account: Account, write: Write, sweep: Sweep) -> None:
    """After the grace it costs money for nobody."""
    record = write(state=State.RELEASED)
    spec = [{"ResourceType": "volume", "Tags": [{"Key": k, "Value": v} for k, v in marks(record).items()]}]
    account.client("ec2").create_volume(AvailabilityZone=f"{REGION}a", Size=1, TagSpecifications=spec)
    sweep()
    assert account.client("ec2").describe_volumes()["Volumes"] == []


# --- not ours ---------------------------------------------------------------------------------------------------------


def test_another_ledger_s_machines_are_left_until_they_are_late(account: Account, sweep: Sweep) -> None:
    """Their own keeper, dead-man and reaper come first: before the deadline, and for a grace after it (R8)."""
    account.plant(marks("l0123456789abcdef0123-1"))
    account.plant(marks("l0123456789abcdef0124-1", deadline=time.time() - 60))
    assert sweep() == Pass()
    assert len(account.running()) == 2


def test_another_ledger_s_machine_past_its_deadline_and_the_grace_is_ended(account: Account, sweep: Sweep) -> None:
    """Its home may be gone for good; the tag says that it shall not live longer."""
    over = account.plant(marks("l0123456789abcdef0123-1", deadline=time.time() - 400))
    kept = account.plant(marks("l0123456789abcdef0123-1"))
    found = sweep()
    assert set(account.running()) == {kept}
    assert f"past its own deadline, of ledger {FOREIGN}" in reasons(found.orphans)["l0123456789abcdef0123-1"]
    assert over in reasons(found.orphans)["l0123456789abcdef0123-1"]


@pytest.mark.parametrize(
    "planted",
    [
        {},
        {"Name": "somebody's"},
        {"mlinfra-prefect:environment": "dev", "mlinfra-prefect:shared": "true"},
        marks("l0123456789abcdef0123-1", deadline=1.0) | {"mlinfra-prefect:shared": "true"},
        marks("l0123456789abcdef0123-1") | {"mlinfra-prefect:deadline": "soon"},
        marks("l0123456789abcdef0123-1") | {"mlinfra-prefect:deadline": ""},
        {"mlinfra-prefect:ledger": FOREIGN, "mlinfra-prefect:deadline": "1"},
    ],
    ids=["untagged", "named", "shared", "shared-and-late", "unreadable-deadline", "empty-deadline", "no-lease"],
)
def test_what_carries_no_lease_of_ours_and_no_deadline_that_can_be_read_is_never_touched(
    account: Account, sweep: Sweep, planted: dict[str, str]
) -> None:
    """Nothing is ended for a guess."""
    kept = account.plant(planted)
    assert sweep() == Pass()
    assert set(account.running()) == {kept}


# --- how --------------------------------------------------------------------------------------------------------------


def test_a_dry_run_ends_nothing_and_writes_nothing(
    account: Account, context: Context, write: Write, sweep: Sweep
) -> None:
    """It says what a pass would do."""
    record = write(state=State.RELEASED)
    late = account.plant(marks(record))
    with account.unchanged():
        found = sweep(dry_run=True)
    assert f"{late} in {REGION} would be ended" in reasons(found.planned)[record.id]
    assert set(account.running()) == {late}
    assert addenda.of(context.home, record.id) == ()


def test_only_what_is_of_the_environment_that_was_asked_for(account: Account, write: Write, sweep: Sweep) -> None:
    """As its tags say."""
    record = write(state=State.RELEASED)
    account.plant(marks(record))
    assert sweep(environment="prod") == Pass()
    assert len(account.running()) == 1
    sweep(environment="dev")
    assert account.running() == {}


def test_a_region_that_cannot_be_seen_is_told_and_stops_no_other(account: Account, write: Write, sweep: Sweep) -> None:
    """Nobody reads it as *nothing found*."""
    record = write(state=State.RELEASED)
    account.plant(marks(record), SECOND)
    account.aws.fail("DescribeInstances", status=403, code="UnauthorizedOperation", times=1)
    found = sweep()
    assert "DescribeInstances" in reasons(found.stuck)[f"aws {REGION}"]
    assert account.running() == {}


def test_what_cannot_be_ended_is_told_and_stops_nothing_else(account: Account, write: Write, sweep: Sweep) -> None:
    """It is found again by the next pass (R9)."""
    bad, good = write("bad", State.RELEASED), write("good", State.RELEASED)
    account.plant(marks(bad))
    account.plant(marks(good))
    account.aws.fail("TerminateInstances", status=403, code="UnauthorizedOperation", times=1)
    found = sweep()
    (stuck,) = found.stuck
    assert "still there" in stuck.reason
    assert len(account.running()) == 1
    assert sweep().stuck == ()
    assert account.running() == {}


def test_a_machine_that_is_told_to_end_and_does_not_is_found_again(
    account: Account, write: Write, sweep: Sweep
) -> None:
    """What AWS answers is a claim; the next pass looks."""
    record = write(state=State.RELEASED)
    account.plant(marks(record))
    account.aws.terminate_lies(times=1)
    assert not sweep().quiet
    assert len(account.running()) == 1
    assert not sweep().quiet
    assert account.running() == {}
    assert sweep() == Pass()


def test_a_pass_ends_no_more_than_its_cap(
    account: Account, write: Write, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass that is wrong is wrong about few things; the next one goes on (R8)."""
    monkeypatch.setattr(cloud_sweeping, "MOST_ENDED", 3)
    for name in ("one", "two"):
        record = write(name, State.RELEASED)
        account.plant(marks(record))
        account.plant(marks(record))
    found = sweep()
    assert len(account.running()) == 2
    (left,) = found.skipped
    assert "a pass ends 3 things at most" in left.reason
    assert left.again
    sweep()
    assert account.running() == {}


def test_a_terraform_that_runs_is_waited_for(account: Account, context: Context, write: Write, sweep: Sweep) -> None:
    """It may be writing into its state what is ended here."""
    record = write(state=State.RELEASED)
    kept = account.plant(marks(record))
    place = context.home.record_dir(record.id) / "1" / "terraform"
    place.mkdir(parents=True)
    descriptor = lock.acquire(place / LOCK_NAME)
    try:
        found = sweep()
        assert "Terraform of it is still running" in reasons(found.skipped)[record.id]
        assert set(account.running()) == {kept}
    finally:
        os.close(descriptor)
    sweep()
    assert account.running() == {}


@pytest.mark.parametrize("own", [{}, {"AWS_REGION": REGION}, {"AWS_REGION": REGION, "AWS_PROFILE": "none"}])
def test_a_reaper_without_a_login_uses_the_one_of_its_home(
    account: Account, context: Context, house: House, write: Write, sweep: Sweep, monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
) -> None:  # fmt: skip
    """Cron knows no credentials, or none that are good; the latest client of the home had some."""
    record = write(state=State.RELEASED)
    account.plant(marks(record))
    cloud_access.lend(house.home, os.environ, cloud_access.account_here)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    context.login = cloud_access.Login(house.home, os.environ)
    sweep()
    assert account.running() == {}
    assert cloud_access.variables() == own, "what it borrowed it has given back"


def test_each_account_is_looked_at_with_its_own_login(
    account: Account, context: Context, house: House, write: Write, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home with environments in two accounts: the login of the one shows nothing of the other, and says nothing."""
    record = write(state=State.RELEASED)
    account.plant(marks(record))
    cloud_access.lend(house.home, os.environ, cloud_access.account_here)
    with Emulator() as aws:
        second = Account(aws)
        second.plant(marks(record))
        noted(house, "dev", REGION, account=account.aws.account)
        noted(house, "prod", REGION, account=aws.account)
        for name, value in aws.environment.items():
            monkeypatch.setenv(name, value)
        context.login = cloud_access.Login(house.home, os.environ)
        sweep()
        assert (account.running(), second.running()) == ({}, {})
        assert cloud_access.variables() == aws.environment
        account.plant(marks(record))
        (house.home.aws / f"login.{account.aws.account}").unlink()
        cloud_access.lend(house.home, os.environ, cloud_access.account_here)
        (reason,) = (each.reason for each in sweep().stuck)
    assert reason.startswith(f"This login is of account {aws.account}: nothing in account {account.aws.account} can be")
    assert account.running()


@pytest.mark.parametrize("verb", ["step", "stop", "renew"])
def test_the_keeper_logs_in_to_the_account_of_each_record(
    account: Account, context: Context, house: House, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """The latest client of its home was in another account: there the machines of this lease could not be seen."""
    keeper = Keeper(place="process", process=identify())
    record = sample_lease(
        ledger_id=context.ledger.ledger_id, platform="aws", keeper=keeper, account=account.aws.account
    )
    machine = account.plant(marks(record))
    place = context.home.record_dir(record.id) / "1"
    made = sample_attempt(
        offer=sample_offer(region=REGION), applied_at=context.ledger.now(), nodes=(machine,),
        directory=str(place / "terraform"), node_dir=str(place / "node"),
    )  # fmt: skip
    seen = context.ledger.create(record.revised(attempts=(made,)), actor="test", reason="written by a test")
    for state in path_to(State.READY if verb == "renew" else State.RELEASING):
        seen = context.ledger.replace(seen, seen.record.revised(state=state), actor="test", reason="on")
    cloud_access.lend(house.home, os.environ, cloud_access.account_here)
    with Emulator() as aws:
        cloud_access.lend(house.home, aws.environment, lambda: aws.account)
        for name in cloud_access.variables():
            monkeypatch.delenv(name)
        context.login = cloud_access.Login(house.home, os.environ)
        context.login.as_latest()
        if verb == "step":
            code = step(context, record.id, keeper)
        else:
            code = {"stop": stop, "renew": renew}[verb](context, [record.id], keeper)
        assert not aws.proxy.requests
    context.login.as_itself()
    assert code == 0
    assert not context.lease(record.id).failures
    assert set(account.running()) == ({machine} if verb == "renew" else set())


def test_a_home_that_used_no_cloud_asks_none(account: Account, house: House) -> None:
    """A pass of such a home costs no call, and needs no login."""
    since = account.aws.proxy.requests
    fresh = Context(house.home)
    cloud_access.lend(house.home, os.environ, lambda: account.aws.account)
    cloud_sweeping.sweep_clouds(fresh, Notes(), (), unknown_before=0.0)
    fresh.ledger.close()
    assert account.aws.proxy.requests == since


def test_each_region_is_looked_at_once_whatever_number_of_environments_it_is_in(
    account: Account, house: House, sweep: Sweep
) -> None:
    """And a file that is no environment is none."""
    noted(house, "prod", REGION)
    (house.home.aws / "odd.json").write_text('{"regions": [3, {"zone": "x"}, {"name": ""}]}')
    since = account.aws.proxy.requests
    sweep()
    assert account.aws.proxy.count("DescribeInstances", since=since) == 2


def test_two_ledgers_in_one_account_end_their_own_and_nothing_of_the_other(
    account: Account, context: Context, write: Write, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both reapers run over the same account, each with tombstones and live leases of its own."""
    dead, live = write("dead", State.RELEASED), write("live")
    mine = account.plant(marks(dead)), account.plant(marks(live))
    with house_in(account, monkeypatch) as second:
        noted(second, "dev", REGION)
        other = Context(second.home)
        theirs = account.plant(marks("l0123456789abcdef0123-1", other.ledger.ledger_id, deadline=time.time() + 900))
        stranger = account.plant(marks("l0123456789abcdef0124-1", other.ledger.ledger_id, deadline=time.time() + 900))
        other.home.record_dir("l0123456789abcdef0124-1").mkdir()
        record = sample_lease("theirs", ledger_id=other.ledger.ledger_id, platform="aws", keeper=None)
        account.client("ec2").create_tags(Resources=[theirs], Tags=[{"Key": tags.LEASE, "Value": record.id}])
        other.ledger.create(record, actor="test", reason="written by a test")
        sweep()
        assert set(account.running()) == {mine[1], theirs, stranger}
        cloud_sweeping.sweep_clouds(
            other, Notes(), other.ledger.records(states=OPEN), unknown_before=0.0 + time.time() - 600
        )
        assert set(account.running()) == {mine[1], theirs}
        other.ledger.close()
