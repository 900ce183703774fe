"""The phases as public Prefect tasks: plan, provision, train, evaluate, deploy, release.

Each is a node in the run's graph with its own state and logs. Because the keeper owns the lease, a flow that forgets to
release, or dies before it, does not leak: that is what makes a bare `provision` task safe here.

None of them is cached, persisted or retried by Prefect: a cached handle would be one to a destroyed machine
(RELIABILITY 8), and our own loop knows the lock (rule R12).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from mlinfra_prefect.errors import BadMetrics, InvalidInput, NotFound
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.asking import Asking, Deploying, obtain, serve
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra, model_of
from mlinfra_prefect.integration.keys import ticket
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.work import callable_work, code_of, job_work
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.planning import make_plan
from mlinfra_prefect.lifecycle.request_file import as_request
from mlinfra_prefect.lifecycle.training import Outcome, Work
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import EndpointRecord, State
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest

RELEASE_WAIT_SECONDS = 900.0
P = ParamSpec("P")
R = TypeVar("R")
RequestLike = str | Path | TrainingRequest | Mapping[str, Any]
_contexts: dict[tuple[Home, int], Context] = {}


def context() -> Context:
    """The context of the home that ``MLINFRA_HOME`` names now; a forked child gets its own."""
    home = Home.from_environment()
    key = (home, os.getpid())
    if key not in _contexts:
        _contexts[key] = Context(home)
    return _contexts[key]


def phase(kind: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a phase as a task inside a Prefect run, and as a plain function outside of one."""
    call: Callable[P, R] = kind if runs.in_run() else kind.fn
    return call(*args, **kwargs)


def _phase(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)


@_phase("plan")
def plan(request: RequestLike, *, code: Callable[..., Any] | str | None = None, **overrides: Any) -> Plan:
    """Say what would exist, for how long at most and at what cost. Creates nothing.

    Args:
        request: an accelerator, a `TrainingRequest`, or the path of a YAML file.
        code: the function that would travel; its files and size are then in the plan.
        **overrides: fields of the request, merged in.

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded, EngineMissing: as said.
    """
    here = context()
    made = make_plan(here, as_request(request, overrides), code=code_of(here, code) if code is not None else ((), 0))
    say(f"plan: {made.summary}")
    return made


@_phase("provision")
def provision(request: RequestLike, *, wait: bool = True, key: str | None = None, **overrides: Any) -> Infra:
    """Ask for a lease and return it, ready (or at once with ``wait=False``). Give it back with `release`.

    Without `release` it is given back when the flow run ends, when its process dies, or at its deadline.

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded, QuotaExceeded: nothing was created.
        LeaseHeld, LeaseAmbiguous: another live runner has this very lease.
    """
    runs.refuse_elsewhere()
    wanted = as_request(request, overrides)
    asking = Asking(wanted, ticket(wanted.name, key), wait=wait)
    try:
        return obtain(context(), asking)
    finally:
        asking.ticket.close()


@_phase("provision")
def provision_for_lease(asking: Asking) -> Infra:
    """The same for `lease`, whose key was made where the block stands."""
    return obtain(context(), asking)


@_phase("train")
def train_work(infra: Infra, work: Work) -> Outcome:
    """One job on a node, as a node of the run's graph."""
    return infra.follow(work)


def run_phase(infra: Infra, work: Work) -> Outcome:
    """Run prepared work as the `train` phase, named after what runs."""
    name = f"train {work.label}".replace("{", "(").replace("}", ")")
    return phase(train_work.with_options(task_run_name=name), infra, work)


@_phase("train")
def train(
    infra: Infra, job: TrainingJob | Callable[..., Any] | Mapping[str, Any], *args: Any, **kwargs: Any
) -> ModelArtifact:
    """Run a training on a lease and return its model: stored, verified, with its lineage.

    Args:
        infra: from `lease`, `provision` or `attach`.
        job: a `TrainingJob` (function by address, or command), or a function.
        *args: for a function.
        **kwargs: for a function.

    Raises:
        NodeError, NoModel, BadMetrics, NodeLost, TrainingStopped, ResumeHeld, InvalidInput: as said.
    """
    here = context()
    if callable(job):
        work = callable_work(here, job, args, kwargs, infra.options, model=True)
    elif args or kwargs:
        raise InvalidInput("args", "go with a function only", "Put them into the job's params.")
    else:
        work = job_work(here, job if isinstance(job, TrainingJob) else parsed(TrainingJob, dict(job), prefix="job"))
    artifact = model_of(infra.follow(work), work)
    shown = ", ".join(f"{name}={value:.4g}" for name, value in artifact.metrics.items())
    say(f"artifact {artifact.id}: {len(artifact.files)} file(s) {shown}".rstrip())
    return artifact


@_phase("evaluate")
def evaluate(infra: Infra, function: Callable[..., Mapping[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
    """Call a function on the node that returns metrics, and return them, finite.

    Raises:
        BadMetrics: a value is NaN, infinite or no number, or it returned no mapping.
    """
    value = infra.follow(callable_work(context(), function, args, kwargs, infra.options)).value
    if not isinstance(value, Mapping) or not value:
        raise BadMetrics(f"evaluate: the function returned {type(value).__name__}, not a mapping of metrics.")
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise BadMetrics(f"evaluate: the metric {name!r} is {number!r}, not a finite number.")
    scores = {str(name): float(number) for name, number in value.items()}
    say("evaluated: " + ", ".join(f"{name}={number:.4g}" for name, number in scores.items()))
    return scores


@_phase("deploy")
def deploy(
    model: ModelArtifact,
    *,
    serving: str | ServingRequest | Mapping[str, Any],
    canary: object = None,
    **overrides: Any,
) -> Endpoint:
    """Serve a model behind a stable URL, and return when it answers.

    Args:
        model: from `train`.
        serving: the endpoint's name, or a `ServingRequest`.
        canary: refused until rollouts exist.
        **overrides: fields of the serving request, such as ``expires_minutes``.

    Raises:
        EndpointExists: the name is in use; replacing a version needs a rollout.
        UnsupportedHere: a canary was asked for.
        EndpointNotReady: the server did not become ready; everything started for it is given back.
        InvalidInput, ArtifactCorrupted: as said, nothing was created.
    """
    return serve(context(), Deploying(_serving(model, serving, overrides), model, canary))


@_phase("deploy")
def deploy_noticed(deploying: Deploying) -> Endpoint:
    """The same for `adeploy`, which may be cancelled."""
    return serve(context(), deploying)


async def adeploy(
    model: ModelArtifact,
    *,
    serving: str | ServingRequest | Mapping[str, Any],
    canary: object = None,
    **overrides: Any,
) -> Endpoint:
    """Like `deploy`, without blocking the event loop. Cancelled, what was started for it is given back."""
    deploying = Deploying(_serving(model, serving, overrides), model, canary)
    try:
        return await asyncio.to_thread(phase, deploy_noticed, deploying)
    except asyncio.CancelledError:
        deploying.give_up(context())
        raise


def _serving(
    model: ModelArtifact, serving: str | ServingRequest | Mapping[str, Any], overrides: Mapping[str, Any]
) -> ServingRequest:
    if not isinstance(model, ModelArtifact):
        raise InvalidInput("model", f"is a {type(model).__name__}, not a ModelArtifact", "Pass what `train` returned.")
    if isinstance(serving, ServingRequest):
        wanted = serving
    elif isinstance(serving, Mapping):
        wanted = parsed(ServingRequest, dict(serving), prefix="serving")
    else:
        wanted = parsed(ServingRequest, {"name": serving, "environment": model.environment}, prefix="serving")
    return wanted.merged(overrides) if overrides else wanted


@_phase("release")
def release(infra_or_id: Infra | Endpoint | str) -> Receipt:
    """Give a lease or an endpoint back and return the receipt. A safe no-op when it is already gone.

    Raises:
        NotFound: there is none of that id.
        NotYetDestroyed: it could not be given back yet; the keeper retries for ever.
    """
    wanted = infra_or_id if isinstance(infra_or_id, str) else infra_or_id.id
    here = context()
    record = keeper.release(here, wanted, reason="released")
    receipt = keeper.wait_released(here, record.id, timeout=RELEASE_WAIT_SECONDS)
    say(
        f"{receipt.kind} {receipt.id}: released; up {receipt.up_seconds:.1f} s, idle {receipt.idle_seconds:.1f} s, "
        f"{receipt.cost_usd:.2f} USD; {len(receipt.destroyed)} of {len(receipt.created)} resource(s) destroyed, "
        f"{'nothing' if receipt.clean else 'SOMETHING'} found by the last two sweeps"
    )
    return receipt


def attach(lease_id: str) -> Infra:
    """Pick a live lease up again. As a context manager it detaches at the end and never releases.

    Raises:
        NotFound: there is none of that id.
        LeaseLost: it is going or gone.
    """
    here = context()
    record = here.lease(lease_id)
    if not record.live:
        raise keeper.why(record)
    run = runs.here().flow_run_id
    mine = run is not None and record.owner.flow_run_id == run and runs.is_client(record.client)
    if mine and record.id not in keeper.CLIENT.held():
        # It was asked for in a child process of this one, and the child's handle came here: it goes with this run.
        keeper.CLIENT.hold(here, record.id, run_end())
    return Infra(here, record.id)


def current(name: str, *, environment: str = "dev") -> ModelArtifact | None:
    """Return the model that an endpoint serves now (the champion), or None when there is no such endpoint."""
    here = context()
    holder = here.ledger.holder(f"endpoint:{environment}:{name}")
    if holder is None:
        return None
    try:
        record = here.record(holder)
    except NotFound:
        return None
    if not isinstance(record, EndpointRecord) or record.state is not State.READY:
        return None
    return here.artifacts.read(record.versions[-1].artifact.id)


__all__ = ["adeploy", "attach", "current", "deploy", "evaluate", "plan", "provision", "release", "train"]
