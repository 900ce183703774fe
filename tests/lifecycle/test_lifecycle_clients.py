"""Rules of the lost client: dead is said only of what is provably dead, and each policy does what it says, once."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from mlinfra_prefect.agent import identity
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle.clients import look_at_client, still_wanted, why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.provisioning import renewed
from mlinfra_prefect.local import process
from mlinfra_prefect.local.process import identify, is_here, is_provably_dead
from mlinfra_prefect.model.lease import Client, LeaseRecord, State

Ask = Callable[..., LeaseRecord]


def test_a_zombie_a_reused_pid_and_a_reboot_are_dead_and_another_host_is_not() -> None:
    """By pid and start time, on the same boot; what cannot be seen is not called dead."""
    child = subprocess.Popen(["sleep", "600"])
    found = identify(child.pid)
    try:
        assert is_here(found)
        assert not is_provably_dead(found)
        assert is_provably_dead(found.revised(start_time="1"))
        assert is_provably_dead(found.revised(boot="an-earlier-boot"))
        assert not is_provably_dead(found.revised(boot="an-earlier-boot", host="another-host"))
    finally:
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert is_provably_dead(found)  # a zombie: nobody has looked at it yet
    child.wait()
    assert is_provably_dead(found)


def test_a_host_that_changed_its_name_still_knows_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A laptop's name comes and goes with its network; the boot does not."""
    child = subprocess.Popen(["sleep", "600"])
    found = identify(child.pid)
    monkeypatch.setattr(process.socket, "gethostname", lambda: "renamed")
    try:
        assert not is_provably_dead(found)
    finally:
        child.kill()
        child.wait()
    assert is_provably_dead(found)


@pytest.mark.skipif(identity.boot().count("/") > 0, reason="only the first PID namespace sees into the others")
def test_a_process_of_another_pid_namespace_is_looked_for_by_its_own_number() -> None:
    """Its pid out here is another one, so the plain look would call it dead."""
    argv = ["unshare", "--pid", "--fork", "--kill-child", "sleep", "600"]
    try:
        outside = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        time.sleep(0.2)
        if outside.poll() is not None:
            pytest.skip("PID namespaces may not be made here")
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    try:
        with open(f"/proc/{outside.pid}/task/{outside.pid}/children") as children:
            inner = int(children.read().split()[0])
        namespace = os.stat(f"/proc/{inner}/ns/pid").st_ino
        found = identify(inner).revised(pid=1, boot=f"{identity.boot()}/{namespace}")
        assert not is_here(found)
        assert not is_provably_dead(found)
        assert is_provably_dead(found.revised(start_time="1"))
    finally:
        outside.kill()
        outside.wait()
    deadline = time.monotonic() + 5
    while not is_provably_dead(found) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_provably_dead(found)


@pytest.mark.parametrize(
    ("request_fields", "state", "drain", "kept"),
    [
        ({}, State.RELEASING, True, False),
        ({"on_client_lost": "release_now"}, State.RELEASING, False, False),
        ({"on_client_lost": "keep", "keep_minutes": 2}, State.REQUESTED, True, True),
    ],
    ids=["checkpoint_then_release", "release_now", "keep"],
)
def test_each_policy(
    context: Context, asked: Ask, dead: Client, request_fields: dict[str, object], state: State, drain: bool, kept: bool
) -> None:
    """What the request says is done once, and the loss is written down."""
    record = look_at_client(context, asked(client=dead, **request_fields))
    assert (record.state, record.drain, record.client.lost_at is not None) == (state, drain, True)
    assert isinstance(record, LeaseRecord)
    if kept:
        assert record.keep_until is not None
        assert record.keep_until - context.ledger.now() == pytest.approx(timedelta(minutes=2), abs=timedelta(seconds=5))
    assert look_at_client(context, record) == record
    assert why_gone(record) is None


def test_keeping_never_passes_the_hard_deadline(context: Context, asked: Ask, dead: Client) -> None:
    """Nothing extends past it (R5)."""
    record = asked(client=dead, max_minutes=1, on_client_lost="keep", keep_minutes=60)
    kept = look_at_client(context, record)
    assert isinstance(kept, LeaseRecord)
    assert kept.keep_until == record.deadline
    renewal = renewed(kept, context.ledger.now(), TTL_SECONDS)
    assert renewal is not None
    assert renewal.renewed_until == record.deadline


def test_a_lease_that_a_retry_adopted_meanwhile_is_left_alone(context: Context, asked: Ask, dead: Client) -> None:
    """The keeper saw the old client dead; by the time it writes the lease has a new one."""
    seen = asked(client=dead)
    adopted = asked()
    assert look_at_client(context, seen) == adopted
    assert context.lease(seen.id).state is State.REQUESTED


def test_a_living_client_nobody_by_design_and_a_client_that_ended(context: Context, asked: Ask) -> None:
    """Alive and nobody: nothing is done. Ended, though its process lives: released."""
    assert why_gone(asked("alive")) is None
    assert why_gone(asked("nobody", client=Client(kind="none"))) is None
    record = asked("ended")
    over = record.client.revised(ended_at=context.ledger.now())
    ended = revise(context.ledger, record.id, lambda r: r.revised(client=over), actor="t", reason="over")
    assert look_at_client(context, ended).reason == "its client ended without releasing it (checkpoint_then_release)"


def test_a_long_wait_learns_that_nobody_wants_it_any_more(context: Context, asked: Ask, dead: Client) -> None:
    """Released or lost: not wanted. Kept: wanted, whoever died."""
    assert still_wanted(context, asked("alive"))()
    assert not still_wanted(context, asked("dead", client=dead))()
    assert still_wanted(context, asked("kept", client=dead, on_client_lost="keep", keep_minutes=5))()
