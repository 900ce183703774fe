"""What stays while nothing happens: the watcher with one lease and with many, and what it costs to renew hundreds."""

from __future__ import annotations

import socket
import time
from contextlib import suppress

import psutil

from mlinfra_prefect.keeper.client import entrust, release, wait_released
from mlinfra_prefect.keeper.desk import lay, take_off, watcher_identity
from mlinfra_prefect.keeper.starting import ensure_watcher
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.lifecycle.marking import begin_release, mark
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.local.process import is_provably_dead
from mlinfra_prefect.model.lease import Client, LeaseRecord, State
from mlinfra_prefect.model.names import minted
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import TrainingRequest
from tests.benchmarks.homes import Bench, bench
from tests.benchmarks.lines import Line

FIRST_MIB = 40.0
EACH_MIB = 1.0
MINUTES = 4


def watcher(leases: int, seconds: float) -> list[Line]:
    """Resident memory of the watcher with one and with `leases` real leases of the local platform, none with a client.

    Where they are not all ready in `seconds`, it is measured with as many as are.
    """
    with bench() as here:
        ids = [_lease(here)]
        _ready(here, seconds)
        one = _resident(here)
        ids += [_lease(here) for _ in range(leases - 1)]
        count = _ready(here, seconds)
        many = _resident(here)
        for lease_id in ids:
            release(here.context, lease_id, reason="measured", drain=False)
        for lease_id in ids:
            wait_released(here.context, lease_id, timeout=2 * seconds)
    each = (many - one) / (count - 1)
    return [
        Line("watcher's resident memory with 1 lease", "MiB", (one,), FIRST_MIB),
        Line(
            f"watcher's resident memory per further lease (of {count})",
            "MiB",
            (each,),
            EACH_MIB,
            f"in all {many:.1f} MiB",
        ),
    ]


def at_rest(leases: int, seconds: float) -> list[Line]:
    """A keeper of `leases` ready leases with nothing to do, over `seconds`: the watcher, and the operations that renew.

    The records are real and have no node: hundreds of nodes would be measured instead of the keeper.
    """
    with bench() as here:
        for _ in range(leases):
            record = _asked(here)
            for state in (State.PROVISIONING, State.READY):
                record = mark(here.context, record, "for a benchmark", state=state)
            lay(here.context, record, asked_here=True)
        ensure_watcher(here.context)
        kept = _kept(here, max(300.0, 2 * seconds))
        told = watcher_identity(here.home)
        assert told is not None
        process = psutil.Process(told[0])
        began, before, most = time.monotonic(), process.cpu_times(), 0.0
        while time.monotonic() - began < seconds:
            most = max(most, sum(_rss(each) for each in (process, *process.children(recursive=True))))
            time.sleep(0.25)
        after, took = process.cpu_times(), time.monotonic() - began
        # An operation that has ended counts among the children of its watcher.
        own = after.user + after.system - before.user - before.system
        renewals = after.children_user + after.children_system - before.children_user - before.children_system
        resident = _resident(here)
        for seen in here.context.ledger.records():  # here, because hundreds of operations would take minutes
            take_off(here.home, seen.record.id)
            release_pass(here.context, begin_release(here.context, seen.record.id, reason="measured", drain=False))
    named = f"(of {kept} leases at rest)"
    return [
        Line(f"keeper's watcher: resident memory {named}", "MiB", (resident,), FIRST_MIB + leases * EACH_MIB / 10),
        Line(f"keeper with a renewal: most resident memory {named}", "MiB", (most,)),
        Line(f"keeper's processor time for each minute {named}", "s", (60.0 * (own + renewals) / took,),
             1.8, f"3 % of a core; the watcher itself {60.0 * own / took:.2f} s"),
    ]  # fmt: skip


def _rss(process: psutil.Process) -> float:
    """Mebibytes; 0 when it has ended."""
    with suppress(psutil.Error):
        return float(process.memory_info().rss) / 2**20
    return 0.0


def _kept(here: Bench, seconds: float) -> int:
    """Wait until the watcher keeps all, or the time is over; returns how many it keeps."""
    until = time.monotonic() + seconds
    while True:
        kept = [seen.record.keeper is not None for seen in here.context.ledger.records()]
        if all(kept) or time.monotonic() > until:
            return sum(kept)
        time.sleep(0.5)


def _asked(here: Bench) -> LeaseRecord:
    """Write a lease record that nobody is the client of, as `mlinfra-prefect up` does."""
    key = Key(run=minted(), name="bench", task_key="up")
    return ask(
        here.context, TrainingRequest(name="bench", max_minutes=60), key=key,
        owner=Owner(user="bench", host=socket.gethostname()), client=Client(kind="none"), is_dead=is_provably_dead,
    ).record  # fmt: skip


def _lease(here: Bench) -> str:
    """Ask for a lease that nobody is the client of, as `mlinfra-prefect up` does."""
    key = Key(run=minted(), name="bench", task_key="up")
    asked = ask(
        here.context, TrainingRequest(name="bench", max_minutes=MINUTES), key=key,
        owner=Owner(user="bench", host=socket.gethostname()), client=Client(kind="none"), is_dead=is_provably_dead,
    )  # fmt: skip
    entrust(here.context, asked.record)
    return asked.record.id


def _ready(here: Bench, seconds: float) -> int:
    """Wait until all are ready, or the time is over; returns how many are."""
    until = time.monotonic() + seconds
    while True:
        states = [seen.record.state for seen in here.context.ledger.records()]
        ready = states.count(State.READY)
        if ready == len(states) or time.monotonic() > until:
            return ready
        time.sleep(0.1)


def _resident(here: Bench) -> float:
    """Mebibytes, once the watcher has nothing to do."""
    told = watcher_identity(here.home)
    assert told is not None
    until = time.monotonic() + 10
    process = psutil.Process(told[0])
    while process.children() and time.monotonic() < until:
        time.sleep(0.1)
    return process.memory_info().rss / 2**20
