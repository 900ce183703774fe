"""What the courier puts out and takes in, against a bucket in memory: order, what is kept, what is refused."""

from __future__ import annotations

import base64
import errno
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.agent import blocks, checkpoints, outpacks, unpacking
from mlinfra_prefect.agent.boot import Boot, NodeSpec
from mlinfra_prefect.agent.bucket import BucketError, Listed
from mlinfra_prefect.agent.inbox import Inbox
from mlinfra_prefect.agent.outbox import Outbox
from mlinfra_prefect.agent.outfiles import SMALL
from mlinfra_prefect.agent.unpacking import localised
from mlinfra_prefect.agent.wire import SpecError, write_json


class MemoryBucket:
    """A bucket in memory that checks, whenever an index is written, that everything it names is there."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.fail: Callable[[str, str], bool] = lambda *_: False
        self.lock = threading.Lock()

    def _note(self, what: str, key: str) -> None:
        with self.lock:
            self.log.append((what, key))
        if self.fail(what, key):
            raise BucketError("InternalError", 500, f"{what} {key}")

    def get(self, key: str, *, most: int | None = None) -> bytes:
        self._note("get", key)
        if key not in self.objects:
            raise BucketError("NoSuchKey", 404, key)
        return self.objects[key]

    def put(self, key: str, body: bytes) -> None:
        self._note("put", key)
        if key.endswith("index.json"):
            self.check(json.loads(body))
        self.objects[key] = body

    def delete(self, key: str) -> None:
        self._note("delete", key)
        self.objects.pop(key, None)

    def list(self, prefix: str, *, after: str = "") -> list[Listed]:
        self._note("list", prefix)
        found = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        return [Listed(key, blocks.sha256(self.objects[key]), "2026") for key in found]

    def block(self, index: dict[str, Any], name: str, place: str = "blocks") -> bytes:
        if name in index["inline"]:
            return base64.b64decode(index["inline"][name])
        return self.objects[f"n/out/{place}/{name}"]

    def content(self, index: dict[str, Any], entry: dict[str, Any]) -> bytes:
        data = b"".join(self.block(index, name) for name in entry["blocks"])
        assert len(data) == entry["size"]
        return data

    def check(self, index: dict[str, Any]) -> None:
        for entry in index["files"].values():
            self.content(index, entry)
        for entry in index["packs"].values():
            pack = blocks.Pack.from_listing(self.content(index, entry))
            for name, (start, end) in zip(pack.blocks, blocks.spans(pack.size), strict=True):
                data = self.block(index, name, "blocks" if end - start <= SMALL else "packs")
                assert blocks.sha256(data) == name

    @property
    def index(self) -> dict[str, Any]:
        return json.loads(self.objects["n/out/index.json"])

    def text(self, name: str) -> bytes | None:
        entry = self.index["files"].get(name)
        return None if entry is None else self.content(self.index, entry)


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def outbox(bucket: MemoryBucket, tmp_path: Path, said: list[str]) -> Iterator[Outbox]:
    made = Outbox(bucket, "n/out/", tmp_path, said.append)
    yield made
    made.close()


def push_until(outbox: Outbox, done: Callable[[], Any], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while True:
        outbox.push({"state": "up"}, force=True)
        if done():
            return
        assert time.monotonic() < until
        time.sleep(0.01)


def job(root: Path, job_id: str = "j1", state: str = "running", log: bytes = b"") -> Path:
    place = root / "jobs" / job_id
    place.mkdir(parents=True, exist_ok=True)
    with (place / "log.txt").open("ab") as file:
        file.write(log)
    write_json(place / "status.json", {"state": state})
    return place


def test_an_index_names_nothing_that_is_not_there(bucket: MemoryBucket, outbox: Outbox, tmp_path: Path) -> None:
    """Whatever request fails, at whatever moment: each index that is written is whole (the bucket checks it)."""
    count = iter(range(10**6))
    bucket.fail = lambda *_: next(count) % 3 == 1
    uploads = tmp_path / "uploads" / "j1"
    for number in range(12):
        job(tmp_path, log=bytes([65 + number]) * 30_000)
        if number == 6:
            (uploads / "files").mkdir(parents=True)
            (uploads / "files" / "big").write_bytes(b"m" * 100_000)
            write_json(uploads / "manifest.json", {})
        for _ in range(4):
            try:
                outbox.push({"state": "up"}, force=True)
            except BucketError:
                continue
            break
    bucket.fail = lambda *_: False
    job(tmp_path, state="succeeded")
    push_until(outbox, lambda: b"succeeded" in (bucket.text("jobs/j1/status.json") or b""))
    assert len(bucket.text("jobs/j1/log.txt")) == 12 * 30_000
    assert "uploads/j1" in bucket.index["packs"]


def test_a_final_status_waits_for_what_belongs_to_the_end(bucket: MemoryBucket, outbox: Outbox, tmp_path: Path) -> None:
    """The upload cannot be sent: the status before it stays, the log goes on; then both are told at once."""
    job(tmp_path, state="running", log=b"one\n")
    outbox.push({"state": "up"})
    uploads = tmp_path / "uploads" / "j1"
    (uploads / "files").mkdir(parents=True)
    (uploads / "files" / "big").write_bytes(b"m" * 100_000)
    write_json(uploads / "manifest.json", {})
    job(tmp_path, state="succeeded", log=b"two\n")
    bucket.fail = lambda what, key: "/packs/" in key
    whole = outbox.push({"state": "up"})
    assert (whole, outbox.idle) == (False, False)
    assert (bucket.text("jobs/j1/status.json"), bucket.text("jobs/j1/log.txt")) == (
        b'{"state": "running"}',
        b"one\ntwo\n",
    )
    bucket.fail = lambda *_: False
    push_until(outbox, lambda: b"succeeded" in bucket.text("jobs/j1/status.json"))
    assert "uploads/j1" in bucket.index["packs"]


def test_nothing_new_is_no_request_until_a_beat_is_due(
    bucket: MemoryBucket, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats are no news; a status is, at once; lines of a log wait for each other."""
    job(tmp_path, log=b"x")
    assert outbox.push({"state": "up", "heartbeat": 1.0})
    count = len(bucket.log)
    assert outbox.push({"state": "up", "heartbeat": 2.0})
    assert len(bucket.log) == count
    job(tmp_path, log=b"y")
    (tmp_path / "jobs" / "j1" / "status.json").touch()
    outbox.push({"state": "up"})
    job_log = bucket.text("jobs/j1/log.txt")
    assert job_log == b"xy"
    with (tmp_path / "jobs" / "j1" / "log.txt").open("ab") as file:
        file.write(b"z")
    assert outbox.push({"state": "up"}) is False  # chatter
    monkeypatch.setattr("mlinfra_prefect.agent.outbox.CHATTER_SECONDS", 0.0)
    assert outbox.push({"state": "up"}) is True
    assert bucket.text("jobs/j1/log.txt") == b"xyz"
    monkeypatch.setattr("mlinfra_prefect.agent.outbox.BEAT_SECONDS", 0.0)
    version = bucket.index["version"]
    outbox.push({"state": "up"})
    assert bucket.index["version"] == version + 1


def test_old_blocks_go_after_a_while_and_named_ones_stay(
    bucket: MemoryBucket, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that just read an older index still finds its blocks."""
    for number in range(5):
        job(tmp_path, log=bytes([65 + number]) * 5000)
        outbox.push({"state": "up"}, force=True)
    kept = [key for key in bucket.objects if "/blocks/" in key]
    assert len(kept) == 5
    monkeypatch.setattr(outpacks, "KEPT_SECONDS", 0.0)
    outbox.push({"state": "up"}, force=True)
    assert len([key for key in bucket.objects if "/blocks/" in key]) == 1
    assert len(bucket.text("jobs/j1/log.txt")) == 25_000


def commit(root: Path, job_id: str, n: int) -> None:
    place = root / "checkpoint"
    place.mkdir(exist_ok=True)
    (place / "n").write_bytes(str(n).encode() * 5000)
    checkpoints.store(place, checkpoints.commit(place, n), root / "checkpoints" / job_id)


def offered(bucket: MemoryBucket) -> list[str]:
    return sorted(name for name in bucket.index["packs"] if name.startswith("checkpoints/"))


def test_a_slow_client_still_gets_one_whole_checkpoint(
    bucket: MemoryBucket, outbox: Outbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest stays until it was taken, beside the newest; trainings hear what is in the bucket."""
    monkeypatch.setattr(outpacks, "KEPT_SECONDS", 0.0)
    job(tmp_path)
    store = tmp_path / "checkpoints" / "j1"
    for number in range(1, 7):
        commit(tmp_path, "j1", number)
        push_until(outbox, lambda n=number: f"checkpoints/j1/{n}" in offered(bucket))
        assert (store / "FORWARDED").read_text() == str(number)
    push_until(outbox, lambda: offered(bucket) == ["checkpoints/j1/1", "checkpoints/j1/6"])
    bucket.check(bucket.index)
    outbox.taken = {"j1": 1}
    push_until(outbox, lambda: offered(bucket) == ["checkpoints/j1/6"])
    push_until(outbox, lambda: len([key for key in bucket.objects if "/packs/" in key]) == 1)
    outbox.taken = {"j1": 6}
    push_until(outbox, lambda: offered(bucket) == [])


def test_a_checkpoint_that_came_with_the_job_is_not_sent_back(
    bucket: MemoryBucket, outbox: Outbox, tmp_path: Path
) -> None:
    """The client has it: only what is new goes out."""
    job(tmp_path)
    commit(tmp_path, "j1", 1)
    outbox.taken = {"j1": 1}
    outbox.push({"state": "up"}, force=True)
    assert outbox.idle
    assert offered(bucket) == []


def test_an_upload_that_cannot_be_read_does_not_hold_the_end_back(
    bucket: MemoryBucket, outbox: Outbox, tmp_path: Path, said: list[str]
) -> None:
    """A link that leads out is refused for good, and said."""
    uploads = tmp_path / "uploads" / "j1"
    (uploads / "files").mkdir(parents=True)
    (uploads / "files" / "link").symlink_to("/etc/hostname")
    write_json(uploads / "manifest.json", {})
    job(tmp_path, state="succeeded")
    push_until(outbox, lambda: b"succeeded" in (bucket.text("jobs/j1/status.json") or b""))
    assert "uploads/j1" not in bucket.index["packs"]
    assert any("uploads/j1 was not sent" in line for line in said)


def test_links_among_the_files_of_a_job_are_not_followed(bucket: MemoryBucket, outbox: Outbox, tmp_path: Path) -> None:
    """A training that replaces its log by a link sends nobody's file."""
    place = job(tmp_path, log=b"mine")
    (tmp_path / "secret").write_text("secret")
    for name in ("log.txt", "error.json"):
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(tmp_path / "secret")
    outbox.push({"state": "up"}, force=True)
    assert bucket.text("jobs/j1/status.json") == b'{"state": "running"}'
    assert b"secret" not in b"".join(bucket.objects.values())


# --- in --------------------------------------------------------------------------------------------------------------


def hand_over(bucket: MemoryBucket, job_id: str = "j1", **more: Any) -> list[str]:
    """Put a job with one file of two blocks; returns the names of its blocks."""
    data = b"c" * 1000
    pack = blocks.Pack((blocks.Packed("code.zip", len(data), "f"),), (blocks.sha256(data),))
    listing = pack.listing()
    bucket.objects[f"n/in/blocks/{pack.blocks[0]}"] = data
    bucket.objects[f"n/in/blocks/{blocks.sha256(listing)}"] = listing
    told = {
        "schema": unpacking.HANDOVER_SCHEMA, "job": {"job_id": job_id, "upload_dir": f"/@node/uploads/{job_id}"},
        "packs": {"job": {"size": len(listing), "blocks": [blocks.sha256(listing)]}}, "fetch": [], "checkpoint": None,
        "inline": {}, **more,
    }  # fmt: skip
    bucket.objects[f"n/in/jobs/{job_id}.json"] = json.dumps(told).encode()
    return [pack.blocks[0], blocks.sha256(listing)]


@pytest.fixture
def inbox(bucket: MemoryBucket, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Inbox]:
    monkeypatch.setattr(unpacking, "AGAIN_SECONDS", 0.01)
    made = Inbox(bucket, "n/in/", tmp_path, said.append, lambda _: "there are none here")
    yield made
    made.jobs.close()


def until(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    pytest.fail("never")


def test_a_job_appears_whole_and_once(bucket: MemoryBucket, inbox: Inbox, tmp_path: Path) -> None:
    """By one rename, with the node's own paths; looking again changes nothing."""
    hand_over(bucket)
    inbox.look(with_jobs=False)
    assert not (tmp_path / "jobs").exists()
    inbox.look(with_jobs=True)
    place = tmp_path / "jobs" / "j1"
    until(place.exists)
    assert (place / "code.zip").read_bytes() == b"c" * 1000
    assert json.loads((place / "job.json").read_text())["upload_dir"] == f"{tmp_path}/uploads/j1"
    inbox.look(with_jobs=True)
    assert [each.name for each in (tmp_path / "jobs").iterdir()] == ["j1"]
    assert not list((tmp_path / "incoming").iterdir())


def test_a_torn_block_is_fetched_again_and_a_wrong_one_fails_the_job(
    bucket: MemoryBucket, inbox: Inbox, tmp_path: Path
) -> None:
    """What is not what its name says is not unpacked; the client hears of it."""
    name, _ = hand_over(bucket)
    bucket.objects[f"n/in/blocks/{name}"] = b"torn"
    inbox.look(with_jobs=True)
    told = until(lambda: inbox.jobs.said["j1"]["state"] == "failed" and inbox.jobs.said["j1"])
    assert "not what its name says" in told["reason"]
    assert told["error"]["type"] == "InvalidInput"
    assert not (tmp_path / "jobs" / "j1").exists()


def test_a_bucket_that_fails_is_asked_for_ever(bucket: MemoryBucket, inbox: Inbox, tmp_path: Path) -> None:
    """Errors of S3 fail no job."""
    hand_over(bucket)
    inbox.look(with_jobs=False)
    failed = iter(range(30))
    bucket.fail = lambda *_: next(failed, None) is not None
    inbox.jobs.take("j1")
    until((tmp_path / "jobs" / "j1").exists)


def test_a_full_disk_fails_the_job_and_says_so(
    bucket: MemoryBucket, inbox: Inbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room a job never will be there."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(blocks.Assembly, "write", full)
    hand_over(bucket)
    inbox.look(with_jobs=True)
    told = until(lambda: inbox.jobs.said["j1"]["state"] == "failed" and inbox.jobs.said["j1"])
    assert "No space left" in told["reason"]
    assert not (tmp_path / "incoming" / "j1").exists()


@pytest.mark.parametrize(
    "more", [{"schema": "other/9"}, {"packs": {"../x": {"size": 0, "blocks": []}}}, {"job": None}, {"fetch": 7}]
)
def test_a_job_that_cannot_be_read_is_a_failed_job(bucket: MemoryBucket, inbox: Inbox, more: dict[str, Any]) -> None:
    """Another version's, paths that lead out, nothing at all."""
    hand_over(bucket, **more)
    inbox.look(with_jobs=True)
    until(lambda: inbox.jobs.said["j1"]["state"] == "failed")


def test_a_job_that_is_told_to_stop_on_its_way_never_runs(bucket: MemoryBucket, inbox: Inbox, tmp_path: Path) -> None:
    """The order comes with it, or while it is brought; it is stopped, and not failed."""
    hand_over(bucket)
    bucket.objects["n/in/stops/j1.json"] = json.dumps({"action": "checkpoint", "grace_seconds": 1.0}).encode()
    inbox.look(with_jobs=False)
    inbox.look(with_jobs=True)
    until(lambda: inbox.jobs.said["j1"]["state"] == "stopped")
    assert not (tmp_path / "jobs" / "j1").exists()


def test_stop_orders_lie_where_the_agent_looks_and_change_with_the_client_s(
    bucket: MemoryBucket, inbox: Inbox, tmp_path: Path
) -> None:
    """Of one job, and of the node; a second order replaces the first; one for no job waits."""
    (tmp_path / "jobs" / "j1").mkdir(parents=True)
    order = {"action": "checkpoint", "grace_seconds": 9.0}
    for name in ("stop.json", "stops/j1.json", "stops/j9.json"):
        bucket.objects[f"n/in/{name}"] = json.dumps(order).encode()
    inbox.look(with_jobs=True)
    for place in (tmp_path, tmp_path / "jobs" / "j1"):
        assert json.loads((place / "stop.json").read_text()) == order
    bucket.objects["n/in/stops/j1.json"] = json.dumps({**order, "action": "kill"}).encode()
    inbox.look(with_jobs=True)
    assert json.loads((tmp_path / "jobs" / "j1" / "stop.json").read_text())["action"] == "kill"
    (tmp_path / "jobs" / "j9").mkdir()
    inbox.obey()
    assert (tmp_path / "jobs" / "j9" / "stop.json").exists()


def test_a_grant_is_over_only_when_it_is_gone_or_another_one(bucket: MemoryBucket, inbox: Inbox) -> None:
    """The same text under another tag is the same grant; an error of S3 says nothing."""
    inbox.look(with_jobs=True)
    assert (inbox.grant, inbox.revoked) == (None, None)
    bucket.objects["n/in/grant"] = b"secret\n"
    inbox.look(with_jobs=True)
    bucket.objects["n/in/grant"] = b"secret\n\n"
    inbox.look(with_jobs=True)
    assert (inbox.grant, inbox.revoked) == ("secret", None)
    bucket.fail = lambda what, key: what == "get"
    del bucket.objects["n/in/grant"]
    with pytest.raises(BucketError):
        inbox.look(with_jobs=True)
    assert inbox.revoked is None
    bucket.fail = lambda *_: False
    inbox.look(with_jobs=True)
    assert inbox.revoked == "the grant was revoked"


def test_a_grant_that_came_and_went_unseen_is_not_waited_for(bucket: MemoryBucket, inbox: Inbox) -> None:
    """Given and taken between two looks: the node must not wait for another one until its deadline."""
    bucket.objects["n/in/revoked"] = b""
    inbox.look(with_jobs=True)
    assert (inbox.grant, inbox.revoked) == (None, "the grant was revoked")


def test_only_the_node_s_own_paths_are_made_local(tmp_path: Path) -> None:
    """Parameters are the user's, whatever they begin with."""
    told = {
        "upload_dir": "/@node/uploads/j", "checkpoint": {"key": "/@node/k", "store": "/@node/checkpoints/j"},
        "inputs": {"A": "/@node/inputs/j/A"}, "artifacts": {"a": "/@node/jobs/j/artifacts/a"},
        "params": {"p": "/@node/x"}, "command": ["/@node/y"], "env": {"E": "/@node/z"},
    }  # fmt: skip
    found = localised(told, tmp_path)
    assert found["upload_dir"] == f"{tmp_path}/uploads/j"
    assert found["checkpoint"] == {"key": "/@node/k", "store": f"{tmp_path}/checkpoints/j"}
    assert found["inputs"] == {"A": f"{tmp_path}/inputs/j/A"}
    assert found["artifacts"] == {"a": f"{tmp_path}/jobs/j/artifacts/a"}
    assert (found["params"], found["command"], found["env"]) == (told["params"], told["command"], told["env"])
    with pytest.raises(ValueError, match="leads out"):
        localised({**told, "upload_dir": "/@node/../x"}, tmp_path)


# --- what is told at boot ---------------------------------------------------------------------------------------------


def boot(**changes: Any) -> str:
    told = {
        "schema": "mlinfra-prefect/boot/1", "region": "r", "endpoint": "", "bucket": "b", "agent_url": "u",
        "agent_sha256": "s", "role_id": "AROA1", "ledger_id": "l", "lease_id": "l", "attempt": 1, "deadline": 5.0,
        "acceptance": {"gpus": 1, "gpu_memory_gib": 16.0}, **changes,
    }  # fmt: skip
    return base64.b64encode(json.dumps({k: v for k, v in told.items() if v is not None}).encode()).decode()


def test_what_is_told_at_boot_is_read_field_by_field() -> None:
    """A whole one is taken; the address of the archive is not kept, for it is a secret."""
    found = Boot.from_text(boot())
    assert (found.bucket, found.deadline, found.gpus, found.gpu_memory_gib) == ("b", 5.0, 1, 16.0)
    assert not hasattr(found, "agent_url")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": "x"}, "schema"), ({"bucket": None}, "bucket"), ({"deadline": "soon"}, "deadline"),
        ({"endpoint": "s3.local"}, "endpoint"), ({"role_id": "../x"}, "role_id"), ({"more": 1}, "more"),
        ({"acceptance": {"gpus": -1, "gpu_memory_gib": 1.0}}, "gpus"), ({"acceptance": 7}, "acceptance"),
        ({"acceptance": {"gpus": 1}}, "gpu_memory_gib"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_it_is_named(changes: dict[str, Any], field: str) -> None:
    """One sentence names the field."""
    with pytest.raises(SpecError, match=f"boot.*'{field}'"):
        Boot.from_text(boot(**changes))


def test_a_node_spec_may_say_little() -> None:
    """Every field has a default; an unknown one is refused."""
    assert NodeSpec.from_payload({"schema": "mlinfra-prefect/node-spec/1"}) == NodeSpec()
    assert NodeSpec.from_payload(NodeSpec(sync_seconds=3.0).to_payload()).sync_seconds == 3.0
    with pytest.raises(SpecError, match="unknown field 'x'"):
        NodeSpec.from_payload({"schema": "mlinfra-prefect/node-spec/1", "x": 1})
