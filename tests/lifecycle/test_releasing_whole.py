"""Rules of a whole release: resumed after any step to the same receipt, with broken states, and meters before all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.errors import KeeperUnavailable, LedgerUnavailable
from mlinfra_prefect.lifecycle import releasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.provisioning import provision
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.local.platform import LocalPlatform
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.terraform import Slots

Ask = Callable[..., LeaseRecord]


class Crash(BaseException):
    """SIGKILL, as far as this process can play it."""


def facts(receipt: Receipt) -> dict[str, Any]:
    """What a receipt says, without its moments."""
    told = receipt.model_dump(mode="json")
    looks = [(look["what"].replace(receipt.id, "ID"), look["where"], look["found"]) for look in told["searches"]]
    kept = ("kind", "reason", "attempts", "created", "destroyed", "trained_seconds", "cost_usd")
    return {**{name: told[name] for name in kept}, "looks": looks}


def test_a_release_that_is_killed_after_each_of_its_steps_comes_to_the_same_receipt(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One lease goes through a crash after every step, one after the other; another one through none."""
    plain = provision(context, asked("plain"))
    begin_release(context, plain.id, reason="done")
    wanted = release_pass(context, context.record(plain.id)).receipt
    assert wanted is not None

    record = provision(context, asked("crashed"))
    begin_release(context, record.id, reason="done")
    steps = [
        (releasing, "_drain"), (LocalPlatform, "stop_meter"), (releasing, "_stop_meter"), (releasing, "_destroy"),
        (releasing, "_sweep"), (LocalPlatform, "tidy"), (releasing, "write_receipt"),
    ]  # fmt: skip
    for place, name in steps:
        work = getattr(place, name)

        def killed(*given: Any, _work: Any = work, **named: Any) -> None:
            _work(*given, **named)
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(place, name, killed)
            with pytest.raises(Crash):
                release_pass(context, context.record(record.id))
    over = context.record(record.id)
    assert over.state is State.RELEASED
    assert over.receipt is not None
    assert facts(over.receipt) == facts(wanted)
    lines = [line.reason for line in context.ledger.history(record.id)]
    assert lines.count("attempt 1 is destroyed") == 1
    place = Path(over.attempts[0].directory)
    assert json.loads((place / "terraform.tfstate").read_bytes())["resources"] == []
    assert json.loads((place / "terraform.tfstate.backup").read_bytes())["resources"]  # what it had is kept
    assert json.loads((place.parents[1] / "record.json").read_bytes())["state"] == "released"


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "cannot be read (0 bytes)"), (b'{"version": 4, "resour', "cannot be read (22 bytes)")],
    ids=["0 bytes", "truncated"],
)
def test_a_state_that_cannot_be_read_is_said_in_the_receipt(
    context: Context, asked: Ask, content: bytes, told: str
) -> None:
    """What carries the mark decides; nothing is called destroyed; what Terraform could not store stays, private."""
    record = provision(context, asked())
    place = Path(record.attempts[0].directory)
    (place / "terraform.tfstate").write_bytes(content)
    begin_release(context, record.id, reason="done")
    receipt = release_pass(context, context.record(record.id)).receipt
    assert receipt is not None
    assert receipt.clean
    assert receipt.searches[0].found == (told,)
    assert receipt.searches[0].where == str(place / "terraform.tfstate")
    assert (receipt.created, receipt.destroyed) == (("1/terraform_data.node",), ())
    assert (place / "terraform.tfstate").read_bytes() == content


def test_a_state_that_terraform_could_not_store_stays_private(context: Context, asked: Ask) -> None:
    """`errored.tfstate` holds everything, secrets included: it is kept where it is, mode 0600, and told."""
    record = provision(context, asked())
    errored = Path(record.attempts[0].directory) / "root" / "errored.tfstate"
    errored.write_text("{}")
    errored.chmod(0o644)
    begin_release(context, record.id, reason="done")
    receipt = release_pass(context, context.record(record.id)).receipt
    assert receipt is not None
    assert "errored.tfstate" in receipt.searches[0].found[0]
    assert errored.stat().st_mode & 0o777 == 0o600


def test_a_lease_whose_module_and_variables_are_gone_is_destroyed_by_its_bundle(context: Context, asked: Ask) -> None:
    """Everything that it made is destroyed by Terraform all the same, and the receipt says so."""
    record = provision(context, asked())
    place = Path(record.attempts[0].directory)
    shutil.rmtree(place / "root")
    (place / "variables.tfvars.json").unlink()
    begin_release(context, record.id, reason="done")
    receipt = release_pass(context, context.record(record.id)).receipt
    assert receipt is not None
    assert receipt.destroyed == receipt.created == ("1/terraform_data.node",)
    assert all(not look.found for look in receipt.searches)


def test_the_lock_of_a_terraform_that_was_killed_is_broken_and_that_of_a_live_one_is_not(
    context: Context, asked: Ask, tmp_path: Path
) -> None:
    """Only by the very id that was seen, and only where no Terraform of the stack is alive. A real state lock."""
    record = provision(context, asked())
    place = Path(record.attempts[0].directory)
    stack = context.open_stack(place, record, 1)
    info = place / ".terraform.tfstate.lock.info"
    (tmp_path / "main.tf").write_text('resource "terraform_data" "w" {\n provisioner "local-exec" {\n'
                                      '  command = "exec sleep 60"\n }\n}')  # fmt: skip
    command = f"exec {stack.engine.path} apply -input=false -auto-approve -state={place / 'terraform.tfstate'}"
    with (place / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        terraform = subprocess.Popen(
            ["sh", "-c", command], cwd=tmp_path, pass_fds=[held.fileno()], start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while not info.exists() or not info.read_bytes():  # it is written after it was made
            assert time.monotonic() < until
            time.sleep(0.02)
        seen = info.read_bytes()
        assert stack.in_flight()
        assert stack.break_stale_lock() is None
        assert info.read_bytes() == seen
        assert terraform.poll() is None
    finally:
        os.killpg(terraform.pid, signal.SIGKILL)
        terraform.wait()
    elsewhere = {**json.loads(seen), "Who": "root@another-host"}
    info.write_text(json.dumps(elsewhere))
    assert stack.break_stale_lock() is None  # not for us to say that it is dead
    info.write_bytes(seen)
    begin_release(context, record.id, reason="done")
    over = release_pass(context, context.record(record.id))
    assert over.state is State.RELEASED, over.reason
    assert not info.exists()
    lines = " ".join(line.reason for line in context.ledger.history(record.id))
    assert f"broke the lock {json.loads(seen)['ID']}" in lines


def test_every_meter_is_stopped_while_all_destroys_still_wait(context: Context, asked: Ask, tmp_path: Path) -> None:
    """Terraform queues for the host's slots; what costs money does not."""
    records = [provision(context, asked(f"n{number}")) for number in range(3)]
    for record in records:
        begin_release(context, record.id, reason="done")
    context.__dict__["slots"] = Slots(tmp_path / "slots", limit=1)
    places = [Path(record.attempts[0].node_dir).parent / "grant" for record in records]
    over: list[State] = []

    def release(record_id: str) -> None:
        over.append(release_pass(context, context.record(record_id)).state)

    with context.slots.take(time.time() + 60):
        threads = [threading.Thread(target=release, args=(record.id,)) for record in records]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        nodes = [context.platform("local").node(record.attempts[0]) for record in records]
        while any(place.exists() for place in places) or any(node.lives() for node in nodes):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert over == []  # nothing can have been destroyed
    for thread in threads:
        thread.join(120)
    assert over == [State.RELEASED] * 3


def test_a_ledger_that_takes_no_note_does_not_keep_the_meter_running(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: that the lease goes was durable before, so its node ends now, and the rest is tried again."""
    record = provision(context, asked())
    going = begin_release(context, record.id, reason="done")

    def full(*_: Any, **__: Any) -> None:
        raise LedgerUnavailable("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(type(context.ledger), "replace", full)
        with pytest.raises(LedgerUnavailable):
            release_pass(context, going.revised(drain=False))
    assert not context.platform("local").node(record.attempts[0]).lives()
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), LedgerUnavailable("full")], ids=str
)
def test_what_cannot_be_drained_is_waited_for_a_while_and_costs_nothing_then(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Another pass may keep its work; after the grace and the time of an upload the meter stops all the same."""
    record = provision(context, asked(grace_seconds=5))
    going = begin_release(context, record.id, reason="done")
    node = context.platform("local").node(record.attempts[0])

    def full(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(releasing, "_drain", full)
        with pytest.raises(type(error)):
            releasing.stop_pass(context, going)
        assert node.lives()
        late = time.time() + 5 + releasing.UPLOAD_SECONDS + 1
        patch.setattr(releasing.time, "time", lambda: late)
        (told,) = releasing.stop_pass(context, going)
        assert "could not be drained" in told
    assert not node.lives()
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


def test_a_desk_that_cannot_be_written_keeps_no_meter_running(context: Context, asked: Ask) -> None:
    """The fresh card fails; the node ends before anybody is told."""
    record = provision(context, asked())
    going = begin_release(context, record.id, reason="done", drain=False)

    def unwritable(_: object) -> None:
        raise KeeperUnavailable("The card cannot be written.")

    context.tell = unwritable
    assert releasing.stop_pass(context, going)
    assert not context.platform("local").node(record.attempts[0]).lives()
    context.tell = lambda _: None
    assert release_pass(context, context.record(record.id)).state is State.RELEASED


def test_while_the_meter_runs_another_pass_comes_in_time(
    context: Context, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pauses between passes grow to minutes, but never past the moment at which the meter is stopped anyway."""
    record = provision(context, asked(grace_seconds=5))
    begin_release(context, record.id, reason="done")
    failed = context.record(record.id)
    for _ in range(6):
        failed = releasing.record_failed_pass(context, failed, "it does not drain")
    assert failed.retry_at is not None
    assert failed.releasing_at is not None
    waits = (failed.retry_at - failed.releasing_at).total_seconds()
    assert waits <= 5 + releasing.UPLOAD_SECONDS + 1
    assert release_pass(context, context.record(record.id)).state is State.RELEASED
