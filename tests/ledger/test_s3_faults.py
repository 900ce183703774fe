"""What S3 may do to a ledger, through the fault proxy: a write whose answer got lost is neither lost nor done twice.

Rows 47 and 45-46 of the fault matrix: 500 before and after, dropped, 412, 409, slow, deleted, truncated, future schema.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from s3_stores import body, keys, open_store, put

from mlinfra_prefect.aws.clock import EPOCH, StoreClock
from mlinfra_prefect.errors import AlreadyExists, LeaseHeld, LedgerUnavailable, LedgerUnreadable, StaleWrite
from mlinfra_prefect.ledger import ObjectLedger
from mlinfra_prefect.ledger.object_holds import GRACE_SECONDS
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.ledger_fixtures import walk
from mlinfra_prefect.testing.objects import MemoryObjects
from mlinfra_prefect.testing.records import sample_lease

LOST_ANSWERS = {
    "500 after it was carried out": {"status": 500, "code": "InternalError", "executed": True},
    "dropped after it was carried out": {"drop_after": True},
}
REFUSALS = {
    "500": {"status": 500, "code": "InternalError"}, "503": {"status": 503, "code": "SlowDown"},
    "dropped": {"drop_before": True}, "409": {"status": 409, "code": "ConditionalRequestConflict"},
}  # fmt: skip


@pytest.fixture
def ledger(moto, bucket):
    with closing(open_store(moto.environment, bucket)) as opened:
        assert opened.ledger_id
        yield opened


@pytest.mark.parametrize("times", [1, 3], ids=["once", "each of the SDK's tries"])
@pytest.mark.parametrize("fault", LOST_ANSWERS)
def test_a_write_whose_answer_got_lost_has_happened_once(moto, ledger, fault, times):
    """The SDK's next try is refused with 412, or every try ends in an error: the object says that it was ours."""
    moto.proxy.fault("PutObject", match="records/", times=times, **LOST_ANSWERS[fault])
    seen = ledger.create(sample_lease(), actor="test", reason="made", holds=("name",))
    moto.proxy.fault("PutObject", match="records/", times=times, **LOST_ANSWERS[fault])
    after = ledger.replace(seen, seen.record.revised(failures=1), actor="test", reason="once")
    assert (after.version, ledger.read(seen.record.id)) == (seen.version + 1, after)
    assert [line.reason for line in ledger.history(seen.record.id)] == ["made", "once"]
    moto.proxy.fault("PutObject", match="holds/", times=times, **LOST_ANSWERS[fault])
    ledger.hold("later", seen.record.id)
    assert ledger.holder("name") == ledger.holder("later") == seen.record.id


def test_a_lost_answer_is_found_under_the_writes_of_others(moto, ledger):
    """Somebody else's write came before we asked: ours is told by its id in the object's past writes."""
    seen = ledger.create(sample_lease(), actor="test", reason="made")
    since = moto.proxy.requests
    moto.proxy.fault("PutObject", match="records/", status=500, executed=True, delay_after=3)
    won = []

    def write():
        won.append(ledger.replace(seen, seen.record.revised(failures=1), actor="test", reason="ours"))

    writer = threading.Thread(target=write)
    writer.start()
    moto.proxy.wait_for("PutObject", "executed", match="records/", since=since)
    between = ledger.read(seen.record.id)
    last = ledger.replace(between, between.record.revised(failures=2), actor="other", reason="theirs")
    writer.join(60)
    assert [each.version for each in won] == [seen.version + 1]
    assert ledger.read(seen.record.id) == last
    assert [line.reason for line in ledger.history(seen.record.id)] == ["made", "ours", "theirs"]


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_write_that_is_refused_for_ever_is_unavailable_and_has_not_happened(moto, ledger, fault):
    """Fail closed and bounded: no record, so nothing is provisioned; when the store is back the same call works."""
    since = moto.proxy.requests
    moto.proxy.fault("PutObject", match="records/", times=None, **REFUSALS[fault])
    with pytest.raises(LedgerUnavailable) as told:
        ledger.create(sample_lease(), actor="test", reason="made", holds=("name",))
    assert "Nothing was provisioned" in told.value.remedy
    assert moto.proxy.count("PutObject", match="records/", since=since) <= 5
    moto.proxy.clear()
    assert ledger.records() == []
    seen = ledger.create(sample_lease(), actor="test", reason="made", holds=("name",))
    assert (ledger.records(), ledger.holder("name")) == ([seen], seen.record.id)


def test_one_refusal_is_tried_again(moto, ledger):
    """A 409 asks for it, and the SDK does the same for a 500: neither reaches the caller."""
    for code, status in (("ConditionalRequestConflict", 409), ("InternalError", 500)):
        moto.proxy.fault("PutObject", match="records/", status=status, code=code)
        ledger.create(sample_lease(str(status)), actor="test", reason="made")
    assert len(ledger.records()) == 2


def test_a_412_is_a_lost_race_and_nothing_else(moto, ledger):
    """Refused by S3 and not ours: stale, whatever the version looks like."""
    seen = ledger.create(sample_lease(), actor="test", reason="made")
    moto.proxy.fault("PutObject", match="records/", status=412, code="PreconditionFailed")
    with pytest.raises(StaleWrite):
        ledger.replace(seen, seen.record.revised(failures=1), actor="test", reason="lost")
    assert ledger.read(seen.record.id) == seen


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("AccessDenied", 403, "s3:PutObject"),
        ("ExpiredToken", 400, "log in again"),
        ("NoSuchBucket", 404, "Make the bucket"),
    ],
)
def test_what_s3_refuses_is_one_sentence_with_the_remedy(moto, ledger, code, status, remedy):
    """For reads, writes and listings."""
    for operation, act in (
        ("GetObject", lambda: ledger.read("absent-1")),
        ("PutObject", lambda: ledger.create(sample_lease(), actor="test", reason="")),
        ("ListObjectsV2", ledger.records),
    ):
        moto.proxy.fault(operation, status=status, code=code)
        with pytest.raises(LedgerUnavailable, match=code) as told:
            act()
        assert remedy in told.value.remedy
        moto.proxy.clear()


def test_a_truncated_object_is_unreadable_and_stands_in_nobodys_way(bucket, ledger):
    """Not even its state can be told: it is told of, keeps its holds, is never overwritten, and hides no other."""
    bad = ledger.create(sample_lease("bad"), actor="test", reason="made", holds=("name",))
    good = ledger.create(sample_lease("good"), actor="test", reason="made")
    key = f"records/{bad.record.id}.json"
    whole = body(bucket, key)
    for broken in (whole[: len(whole) // 2], b"", b"[]", b"null", whole.replace(b'"version": 1', b'"version": "1"')):
        put(bucket, key, broken)
        assert ledger.records() == [good]
        assert [record_id for record_id, _ in ledger.unreadable()] == [bad.record.id]
        assert ledger.holder("name") == bad.record.id
        for act in (lambda: ledger.read(bad.record.id), lambda: ledger.history(bad.record.id)):
            with pytest.raises(LedgerUnreadable, match=bad.record.id):
                act()
        with pytest.raises(AlreadyExists):
            ledger.create(sample_lease("bad"), actor="test", reason="anew")
        with pytest.raises((LedgerUnreadable, StaleWrite)):
            ledger.replace(bad, bad.record.revised(failures=1), actor="test", reason="over it")
        assert body(bucket, key) == broken


@pytest.mark.parametrize(
    ("identity", "message"),
    [(b"", "lost its identity"), (b"{}", "lost its identity"), (b'{"schema": 999, "ledger_id": "x"}', "schema 999"),
     (None, "lost its identity")],
)  # fmt: skip
def test_a_ledger_without_its_identity_is_refused_and_never_gets_a_second_one(moto, bucket, ledger, identity, message):
    """A second uuid would disown every record and resource of the first."""
    from mlinfra_prefect.aws.sdk import client

    ledger.create(sample_lease(), actor="test", reason="made")
    if identity is None:
        client().delete_object(Bucket=bucket, Key="first/ledger.json")
    else:
        put(bucket, "ledger.json", identity)
    with pytest.raises(LedgerUnreadable, match=message):
        _ = open_store(moto.environment, bucket).ledger_id
    with pytest.raises((LedgerUnreadable, LedgerUnavailable)):
        ledger.create(sample_lease("more"), actor="test", reason="made")
    assert len([key for key in keys(bucket) if "/records/" in key]) == 1


def test_listing_what_is_open_costs_the_same_whatever_was_released(moto, bucket, ledger):
    """One list and one read for each open record: the bound that docs/operations.md states."""
    for number in range(6):
        walk(ledger, ledger.create(sample_lease(f"gone-{number}"), actor="test", reason=""), State.RELEASED)
    live = [ledger.create(sample_lease(f"live-{number}"), actor="test", reason="") for number in range(3)]
    since = moto.proxy.requests
    assert ledger.records(states=[state for state in State if state is not State.RELEASED]) == live
    assert (moto.proxy.count("ListObjectsV2", since=since), moto.proxy.count("GetObject", since=since)) == (1, 3)
    assert moto.proxy.requests - since == 4
    # A change is one write; a release one more, which takes it out of the index.
    since = moto.proxy.requests
    seen = ledger.replace(live[0], live[0].record.revised(failures=1), actor="test", reason="")
    assert [each.operation for each in moto.proxy.log if each.request > since and each.phase == "received"] == [
        "PutObject"
    ]
    # Whoever released it may die before the index is told: the next listing mends that.
    moto.proxy.fault("DeleteObject", times=None, status=403, code="AccessDenied")
    with pytest.raises(LedgerUnavailable):
        walk(ledger, seen, State.RELEASED)
    moto.proxy.clear()
    assert ledger.records(states=[State.REQUESTED]) == live[1:]
    assert len([key for key in keys(bucket) if "/open/" in key]) == 2


def test_what_was_released_long_ago_costs_no_read(moto, bucket, ledger):
    """Tombstones by the day they were written: what a reaper's pass reads does not grow for ever."""
    for number in range(3):
        walk(ledger, ledger.create(sample_lease(f"gone-{number}"), actor="test", reason=""), State.RELEASED)
    gone = {each.record.id for each in ledger.records(states=[State.RELEASED])}
    for after, ids, reads in ((timedelta(minutes=-5), gone, 3), (timedelta(minutes=5), set(), 0)):
        since, moment = moto.proxy.requests, ledger.now() + after
        found = ledger.records(states=[State.RELEASED], changed_since=moment)
        assert {each.record.id for each in found} == ids
        assert moto.proxy.count("GetObject", since=since) == reads


def test_a_client_that_died_between_hold_and_record_blocks_no_name_for_ever():
    """For the grace the name is its own; then it is free. A client that only stood still gives its record up."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    objects = MemoryObjects(clock=lambda: now[0])
    died, later = ObjectLedger(objects.opened()), ObjectLedger(objects.opened())
    paused = sample_lease("paused")
    write = died._put

    def stands_still(*arguments, **named):
        assert died.holder("name") == paused.id
        with pytest.raises(LeaseHeld, match=paused.id):
            later.create(sample_lease("other"), actor="test", reason="", holds=("name",))
        now[0] += timedelta(seconds=GRACE_SECONDS + 1)
        assert died.holder("name") is None
        later.create(sample_lease("other"), actor="test", reason="", holds=("name",))
        died._put = write
        return write(*arguments, **named)

    died._put = stands_still
    with pytest.raises(LeaseHeld, match="stood still"):
        died.create(paused, actor="test", reason="", holds=("name",))
    assert died.read(paused.id).record.state is State.RELEASED
    assert later.holder("name") == sample_lease("other").id


def test_the_clock_is_the_stores_and_not_this_hosts():
    """A host that is an hour wrong tells the store's time, narrows it with each answer, and follows when it is set."""
    passed = [1000.0]
    clock = StoreClock(lambda: passed[0])
    assert clock.now() is None
    true = EPOCH + timedelta(days=20_000)

    def answer(after, late=0.0):
        passed[0] = 1000.0 + after
        sent = clock.start()
        passed[0] += 0.1
        clock.learn((true + timedelta(seconds=after + late)).strftime("%a, %d %b %Y %H:%M:%S GMT"), sent)
        return (clock.now() - (true + timedelta(seconds=passed[0] - 1000.0 + late))).total_seconds()

    wrong = [answer(after) for after in (0.5, 1.95, 2.99, 4.0)]
    assert all(-1.1 <= each <= 0 for each in wrong)
    assert abs(wrong[-1]) <= 0.1 + 1e-6
    assert -1.1 <= answer(5.0, late=3600.0) <= 0  # somebody set the store's clock
    clock.learn("yesterday", clock.start())
    assert clock.now() is not None
    passed[0] += 61
    assert clock.now() is None  # too old to say: the store is asked


def test_24_writers_in_four_processes_have_one_winner(moto, bucket, ledger):
    """Compare-and-swap between processes that share nothing but the bucket."""
    import functools

    from mlinfra_prefect.testing import ledger_races

    seen = ledger.create(sample_lease(), actor="test", reason="made")
    opener = functools.partial(open_store, moto.environment, bucket)
    outcomes = ledger_races._in_processes(opener, functools.partial(ledger_races._replace, seen))
    assert sorted(outcomes) == ["StaleWrite"] * 23 + ["won"]
    assert ledger.read(seen.record.id).version == seen.version + 1


def test_without_boto3_one_sentence_says_what_to_install():
    """No traceback, and the package itself imports without it."""
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "import mlinfra_prefect, mlinfra_prefect.ledger\n"
        "from mlinfra_prefect.errors import UnsupportedHere\n"
        "from mlinfra_prefect.aws import S3Ledger\n"
        "try: S3Ledger('s3://acme/x')\n"
        "except UnsupportedHere as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (
        done.stdout.strip() == "A ledger on S3 needs boto3, which is not installed. pip install 'mlinfra_prefect[aws]'"
    )


def test_every_object_is_json_that_a_person_can_read(bucket, ledger):
    """What has to be mended by hand one day says what it is."""
    seen = ledger.create(sample_lease(), actor="ada", reason="made", holds=("name",))
    for key in keys(bucket):
        if "/open/" not in key:
            assert isinstance(json.loads(body(bucket, key.removeprefix("first/"))), dict)
    fields = json.loads(body(bucket, f"records/{seen.record.id}.json"))
    assert (fields["state"], fields["lines"][0]["actor"], fields["holds"]) == ("requested", "ada", ["name"])
