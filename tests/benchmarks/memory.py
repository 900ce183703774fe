"""The watcher's memory: it is the one thing of ours that stays, so it is measured with one lease and with many."""

from __future__ import annotations

import socket
import time

import psutil

from mlinfra_prefect.keeper.client import entrust, release, wait_released
from mlinfra_prefect.keeper.desk import watcher_identity
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.local.process import is_provably_dead
from mlinfra_prefect.model.lease import Client, State
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
