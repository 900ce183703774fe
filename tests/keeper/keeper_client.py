"""What the client scripts of these tests begin with: plain Python, no Prefect. It runs in processes of their own."""

from __future__ import annotations

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
from mlinfra_prefect.keeper import client as keeper, rollouts
from mlinfra_prefect.lifecycle import leasing
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.lifecycle.training import Outcome, Work, run_job
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest

TRAINING = Path(__file__).with_name("keeper_training.py")
context = Context()
_me = Owner(user="tester", host="here")


def say(what: str, **values: Any) -> None:
    """Tell the test something."""
    print(json.dumps({"what": what, **values}), flush=True)


def me() -> Client:
    return Client(kind="process", process=identify())


def nobody() -> Client:
    return Client(kind="none")


def live_for(seconds: float) -> None:
    """Give leases asked for from now on a life shorter than a request can ask for."""
    leasing.longest_life_seconds = lambda *_: seconds  # type: ignore[assignment]


def ask(key: str = "one", *, client: Client | None = None, **request: Any) -> LeaseRecord:
    """Ask for a lease and entrust it; does not wait."""
    asked = leasing.ask(
        context,
        TrainingRequest(**{"max_minutes": 5, **request}),
        key=leasing.Key("run", "training", key),
        owner=_me,
        client=client or me(),
        announce=lambda record: keeper.announce(context, record),
        withdraw=lambda record: keeper.withdraw(context, record),
    )
    say("asked", id=asked.record.id, adopted=asked.adopted)
    keeper.entrust(context, asked.record)
    return asked.record


def ready(key: str = "one", **request: Any) -> LeaseRecord:
    """Ask for a lease, entrust it and wait until it is ready."""
    began = time.time()
    record = keeper.wait_ready(context, ask(key, **request).id, timeout=60)
    assert isinstance(record, LeaseRecord)
    say("ready", id=record.id, seconds=time.time() - began)
    return record


def work(*arguments: str, **options: Any) -> Work:
    """A training that does what `keeper_training.py` says."""
    return Work(
        label=arguments[0],
        command=(sys.executable, str(TRAINING), *arguments),
        **{"expects": "model", "code_hash": "code-1", **options},
    )


def train(record: LeaseRecord, *arguments: str, **options: Any) -> Outcome:
    """Run a training and say what became of it."""
    outcome = run_job(
        context, record.id, work(*arguments, **options), used=set(), on_job=lambda job: say("job", job=job),
        on_progress=lambda news: say("news", log=news.log, message=news.message) if news.log or news.message else None,
    )  # fmt: skip
    artifact = outcome.artifact
    say("trained", job=outcome.job_id, artifact=artifact and artifact.model_dump(mode="json"))
    return outcome


def give_back(record: LeaseRecord | EndpointRecord, why: str = "done") -> None:
    """Release, wait, and say the receipt."""
    keeper.release(context, record.id, reason=why)
    receipt = keeper.wait_released(context, record.id, timeout=60)
    say("released", id=record.id, receipt=receipt.model_dump(mode="json"), clean=receipt.clean)


def model(source: str, *, corrupt: bool = False) -> ModelArtifact:
    """Store the model that the session trained, as if a lease of this home had made it."""
    incoming = context.artifacts.incoming("l0-1", f"j{time.time_ns()}")
    shutil.copytree(source, incoming)
    lineage = Lineage(
        name="digits", lease_id="l0-1", environment="dev", code_hash="c", request_hash="r", environment_hash="e",
        versions=json.loads((incoming / "versions.json").read_text()),
    )  # fmt: skip
    return context.artifacts.commit(incoming, lineage)


def deploy(
    artifact: ModelArtifact, name: str = "digits", *, canary: Any = None, probe: Any = None, promote: bool = True,
    **serving: Any,
) -> EndpointRecord:  # fmt: skip
    """Ask for a serving change, entrust it and wait until requests go to it."""
    wanted = ServingRequest(name=name, **{"expires_minutes": 5, "retire_seconds": 0, **serving})
    ask = functools.partial(
        ask_to_serve, context, artifact, wanted, owner=_me, client=me(), canary=canary,
        probe=ProbeRequest(**{"seconds": 0.2, **(probe or {})}), promote=promote,
    )  # fmt: skip
    found = rollouts.begin(context, ask)
    endpoint, rollout = context.endpoint(found.rollout.endpoint), found.rollout
    say("deploying", id=endpoint.id, rollout=rollout.id, version=rollout.version, port=endpoint.port, url=endpoint.url)
    rollouts.wait_rolled(context, rollout, on_step=lambda seen: say("step", steps=len(seen.steps)))
    say("deployed", id=endpoint.id, rollout=rollout.id, version=rollout.version)
    return context.endpoint(endpoint.id)


def die() -> None:
    """End as a machine's out-of-memory killer would end it."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path: str | Path) -> None:
    """Wait until the test has made a file."""
    while not Path(path).exists():
        time.sleep(0.01)
