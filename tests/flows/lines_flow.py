"""Flows for the lines that Prefect has: one that will not end, one with a hook, one that is killed with everything."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from prefect import flow, serve, suspend_flow_run

from mlinfra_prefect import lease, node, provision, release, release_on_end


def deaf(seconds: float) -> int:
    """A training that ignores *checkpoint now*: its drain takes the whole grace."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    node().progress(0.5, "deaf")
    (node().output_dir / "deaf").write_text("")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.05)
    return 1


@flow
def stubborn(said: str) -> None:
    """Its lease drains for longer than Prefect's 30 s, and so long its own clean-up holds the process."""
    place = Path(said)
    try:
        with lease("cpu", max_minutes=10, grace_seconds=38) as infra:
            try:
                infra.run(deaf, 600.0)
            except BaseException as error:
                place.write_text(f"{os.getpid()} {type(error).__name__} {time.time()}")
                raise
    finally:
        time.sleep(600)
        place.with_suffix(".ended").write_text("")


@flow(on_crashed=[release_on_end], on_cancellation=[release_on_end])
def hooked(said: str) -> None:
    """It is killed together with its keeper: only the hook is left to start a release."""
    with lease("cpu", max_minutes=10):
        Path(said).write_text(f"{os.getpid()}")
        time.sleep(600)


def double(number: int) -> int:
    return 2 * number


@flow(persist_result=True)
def suspended(said: str) -> int:
    """It suspends itself once, between two uses of one node; results are persisted, as those do who suspend."""
    place = Path(said)
    infra = provision("cpu", max_minutes=10, key="node")
    with place.open("a") as file:
        file.write(f"{infra.id} {infra.state}\n")
    doubled = infra.run(double, 21)
    if len(place.read_text().splitlines()) == 1:
        suspend_flow_run(timeout=300)
    doubled = infra.run(double, doubled)
    release(infra)
    place.with_suffix(".done").write_text(str(doubled))
    return doubled


@flow
def doomed(said: str) -> None:
    """It says who it is, and asks for a node that Terraform makes and never tells of."""
    Path(said).write_text(f"{os.getpid()}")
    with lease("cpu", max_minutes=10):
        time.sleep(600)


if __name__ == "__main__":
    assert sys.argv[1] == "serve"
    serve(*(each.to_deployment(name="served") for each in (stubborn, hooked, suspended, doomed)))
