"""The reaper: how soon it takes over what lost both its client and its keeper, and what many releases at once cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.desk import lay, wake, watcher_identity
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import TrainingRequest
from tests.benchmarks.homes import Bench, bench, processes
from tests.benchmarks.lines import Line
from tests.benchmarks.side_by_side import Effort

TAKEN_SECONDS = 5.0
PATIENCE = 180.0
MIB = 1 << 20


def taken_over(effort: Effort) -> list[Line]:
    """Client and keeper are killed together; then `mlinfra-prefect reap` starts. Its own start counts."""
    values = []
    with bench() as here:
        for _ in effort.each():
            holder = here.holder("--for-ever")
            lease_id = holder.says()["id"]
            os.kill(holder.process.pid, signal.SIGSTOP)  # or it would start a new keeper
            _kill_keeper(here)
            holder.process.kill()
            holder.end()
            began = time.time()
            reaper = subprocess.Popen(
                [sys.executable, "-m", "mlinfra_prefect", "reap", "--json"],
                cwd=here.project, env=here.env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            reaper.wait(timeout=PATIENCE)
            lines = here.context.ledger.history(lease_id)
            taken = next(line.time.timestamp() for line in lines if line.generation == 2)
            values.append(taken - began)
    question = "client and keeper killed: start of a reaper to taken over, p95"
    return [Line(question, "s", tuple(values), TAKEN_SECONDS, p95=True)]


def _kill_keeper(here: Bench) -> None:
    """The watcher, and its operations: one that is at work would give the lease back itself."""
    identity = watcher_identity(here.home)
    if identity is None:
        raise RuntimeError("there is no watcher to kill")
    os.kill(identity[0], signal.SIGKILL)
    until = time.monotonic() + PATIENCE
    while (watcher_identity(here.home) is not None or _operations(here)) and time.monotonic() < until:
        for pid in _operations(here):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _operations(here: Bench) -> list[int]:
    found = []
    for pid in processes(here.context.ledger.ledger_id):
        with suppress(psutil.Error):
            if "mlinfra_prefect.keeper" in psutil.Process(pid).cmdline():
                found.append(pid)
    return found


def releases(number: int) -> list[Line]:
    """Many leases are given back at once: what the keeper's processes take, and when the last meter stops.

    Memory is the sum of the proportional shares of all processes of the ledger but the nodes, at its highest.
    """
    with bench() as here:
        leases = [_leased(here, index) for index in range(number)]
        for lease in leases:
            keeper.wait_ready(here.context, lease.id, timeout=PATIENCE)
        grants = [here.home.record_dir(lease.id) / "1" / "grant" for lease in leases]
        nodes = set(processes(here.context.ledger.ledger_id)) - {(watcher_identity(here.home) or (0, ""))[0]}
        began = time.monotonic()
        for lease in leases:
            begin_release(here.context, lease.id, reason="the benchmark")
        keeper.release(here.context, leases[0].id, reason="the benchmark")
        for lease in leases:
            lay(here.context, here.context.record(lease.id))
        wake(here.home, *[lease.id for lease in leases])
        stopped = gone = 0.0
        peak = 0
        while not gone:
            time.sleep(0.1)
            now = time.monotonic() - began
            peak = max(peak, _memory(here, nodes))
            if not stopped and not any(grant.exists() for grant in grants):
                stopped = now
            if all(here.context.record(lease.id).released_at is not None for lease in leases):
                gone = now
            if now > PATIENCE * 2:
                raise RuntimeError("the releases do not end")
    many = f"{number} releases at once"
    return [
        Line(f"{many}: memory of the keeper's processes at its highest", "MiB", (peak / MIB,)),
        Line(f"{many}: begun to the last meter stopped", "s", (stopped,)),
        Line(f"{many}: begun to the last one released", "s", (gone,)),
    ]


def _leased(here: Bench, index: int) -> LeaseRecord:
    record = ask(
        here.context, TrainingRequest(max_minutes=20), key=Key("bench", "release", str(index)),
        owner=Owner(user="bench", host="here"), client=Client(kind="none"),
    ).record  # fmt: skip
    keeper.entrust(here.context, record)
    return record


def _memory(here: Bench, nodes: set[int]) -> int:
    total = 0
    for pid in processes(here.context.ledger.ledger_id):
        with suppress(psutil.Error, OSError):
            if pid not in nodes:
                total += psutil.Process(pid).memory_full_info().pss
    return total
