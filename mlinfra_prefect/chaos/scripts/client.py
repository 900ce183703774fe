"""The client of a run: plain Python, no Prefect, in a process of its own that may be killed anywhere.

It does what ``lease(...)`` and ``deploy(...)`` do around a flow's body, and writes each thing that it has reached as a
line of JSON with the time into a file: what it said is on disk whatever becomes of it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.errors import LeaseHeld, MlinfraError
from mlinfra_prefect.keeper import client as keeper, rollouts
from mlinfra_prefect.lifecycle import leasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.lifecycle.training import Work, run_job
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest

OWNER = Owner(user="chaos", host="here")
TRAINING = Path(__file__).with_name("training.py")
WAIT_SECONDS = 120.0
REQUESTS: dict[str, dict[str, Any]] = {
    "local": {"accelerator": "cpu", "max_minutes": 5, "grace_seconds": 5},
    # A minute of an emulated machine's dead-man is shorter than a minute.
    "aws": {"accelerator": "cpu", "platform": "aws", "max_minutes": 120, "grace_seconds": 5},
}


def say(what: str, **values: object) -> None:
    """Write down what was reached."""
    line = json.dumps({"what": what, "at": time.time(), "pid": os.getpid(), **values}) + "\n"
    with Path(os.environ["CHAOS_SAID"]).open("a", encoding="utf-8") as said:
        said.write(line)


def lease(context: Context, order: dict[str, Any], key: str = "one") -> LeaseRecord:
    """Ask for a lease and wait until it is ready."""
    if "life_seconds" in order:
        # Shorter than a request can ask for.
        setattr(leasing, "longest_life_seconds", lambda *_: float(order["life_seconds"]))  # noqa: B010
    client = Client(kind="none") if order.get("nobody") else Client(kind="process", process=identify())
    asked = leasing.ask(
        context,
        TrainingRequest.model_validate({**REQUESTS[order.get("platform", "local")], **order.get("request", {})}),
        key=leasing.Key("run", "training", key),
        owner=OWNER,
        client=client,
        announce=lambda record: keeper.announce(context, record),
        withdraw=lambda record: keeper.withdraw(context, record),
    )
    say("asked", id=asked.record.id, adopted=asked.adopted)
    keeper.entrust(context, asked.record)
    return asked.record


def train(context: Context, record: LeaseRecord, seconds: float) -> None:
    """Run a training on the node, with a secret; a node on AWS gets none, and needs no credentials of its client's."""
    secrets = {"CHAOS_SECRET": "env:CHAOS_CANARY"} if record.platform == "local" else {}
    work = Work(
        label="chaos", command=(sys.executable, str(TRAINING), str(seconds), *secrets), expects="model",
        code_hash="chaos", secrets=secrets, params={"seconds": seconds},
    )  # fmt: skip
    run_job(context, record.id, work, used=set(), on_job=lambda job: say("job", job=job))
    say("trained")


def run_lease(context: Context, order: dict[str, Any]) -> None:
    """Lease, train, give back: also when told to end meanwhile, as the block of ``lease(...)`` does."""
    record = None
    try:
        record = lease(context, order, str(order.get("key", "one")))
        keeper.wait_ready(context, record.id, timeout=WAIT_SECONDS)
        say("ready", id=record.id)
        train(context, record, float(order.get("seconds", 1.0)))
    finally:
        say("over")
        if record is not None:
            keeper.release(context, record.id, reason="the block ended")
            say("marked")
    keeper.wait_released(context, record.id, timeout=WAIT_SECONDS)
    say("released")


def run_up(context: Context, order: dict[str, Any]) -> None:
    """Lease nodes for nobody, as ``up`` does, and end."""
    wanted = [lease(context, {**order, "nobody": True}, f"n{number}") for number in range(int(order.get("count", 1)))]
    if order.get("wait", True):
        for record in wanted:
            with contextlib.suppress(MlinfraError):  # its life may be over by now, and that is what is looked at
                keeper.wait_ready(context, record.id, timeout=WAIT_SECONDS)
    say("up", ids=[record.id for record in wanted])


def run_double(context: Context, order: dict[str, Any]) -> None:
    """The same key as another client's, again and again: held, or adopted when that one is dead."""
    until = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < until:
        try:
            run_lease(context, order)
        except LeaseHeld:
            say("held")
            time.sleep(0.2)
        else:
            return


def model(context: Context, source: str) -> ModelArtifact:
    """Store a small model that was trained before."""
    incoming = context.artifacts.incoming("l0-1", f"j{time.time_ns()}")
    shutil.copytree(source, incoming)
    lineage = Lineage(
        name="digits", lease_id="l0-1", environment="dev", code_hash="c", request_hash="r", environment_hash="e",
        versions=json.loads((incoming / "versions.json").read_text()),
    )  # fmt: skip
    return context.artifacts.commit(incoming, lineage)


def run_serve(context: Context, order: dict[str, Any]) -> None:
    """Deploy one version; with ``canary``, as a candidate of the endpoint that stands."""
    artifact = model(context, order["model"])
    serving = ServingRequest.model_validate({"name": "digits", "expires_minutes": 10, "retire_seconds": 1})
    ask = functools.partial(
        ask_to_serve, context, artifact, serving, owner=OWNER, client=Client(kind="process", process=identify()),
        canary=order.get("canary"), probe=ProbeRequest(seconds=0.5),
    )  # fmt: skip
    found = rollouts.begin(context, ask)
    endpoint = context.endpoint(found.rollout.endpoint)
    say("deploying", id=endpoint.id, rollout=found.rollout.id, version=found.rollout.version, url=endpoint.url)
    rollouts.wait_rolled(context, found.rollout)
    say("deployed", id=endpoint.id, rollout=found.rollout.id, version=found.rollout.version, url=endpoint.url)


def run_give_back(context: Context, order: dict[str, Any]) -> None:
    """Release everything that there is, and wait."""
    del order
    there = [seen.record for seen in context.ledger.records() if seen.record.receipt is None]
    there.sort(key=lambda record: record.kind != "endpoint")
    say("over")
    for record in there:
        with contextlib.suppress(MlinfraError):  # a version that serves goes with its endpoint
            keeper.release(context, record.id, reason="the run is over")
    for record in there:
        keeper.wait_released(context, record.id, timeout=WAIT_SECONDS)
    say("released")


def run_reap(context: Context, order: dict[str, Any]) -> None:
    """One pass of the reaper, whose clock may be wrong by some seconds."""
    from datetime import timedelta

    from mlinfra_prefect.keeper.reap import as_json, reap
    from mlinfra_prefect.ledger import SqliteLedger

    wrong = float(order.get("clock", 0.0))
    if wrong:
        true = SqliteLedger.now
        SqliteLedger.now = lambda self: true(self) + timedelta(seconds=wrong)  # type: ignore[method-assign]
    found = reap(context, settle_seconds=float(order.get("settle", 30.0)))
    say("reaped", **as_json(found))


def main() -> None:
    """Do what the order (JSON, the only argument) says."""
    order = json.loads(sys.argv[1])
    # What Prefect's runner does on cancel: an exception in the main thread, and a second signal aborts the cleaning up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say("began")
    do = {
        "lease": run_lease, "up": run_up, "double": run_double, "serve": run_serve, "give-back": run_give_back,
        "reap": run_reap,
    }[order["do"]]  # fmt: skip
    try:
        do(Context(), order)
    except MlinfraError as error:
        say("failed", error=type(error).__name__, message=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
