"""The phases as public Prefect tasks: plan, provision, train, evaluate, deploy, probe, promote, release.

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
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from mlinfra_prefect.errors import BadMetrics, InvalidInput, NotFound
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.asking import Asking, Deploying, await_rollout, obtain, serve
from mlinfra_prefect.integration.canary import Judge, ProbeLike, probe_now
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra, model_of
from mlinfra_prefect.integration.keys import ticket
from mlinfra_prefect.integration.requesting import RequestLike, as_request, find_environment
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.settings import apply_settings
from mlinfra_prefect.integration.work import callable_work, code_of, job_work
from mlinfra_prefect.keeper import client as keeper, rollouts
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.planning import make_plan
from mlinfra_prefect.lifecycle.training import Outcome, Work
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import ServingRequest, TrainingJob
from mlinfra_prefect.model.verdict import Verdict

RELEASE_WAIT_SECONDS = 900.0
P = ParamSpec("P")
R = TypeVar("R")
_contexts: dict[tuple[Home, int], Context] = {}


def context() -> Context:
    """The context of the home that ``MLINFRA_HOME`` names now; a forked child gets its own."""
    apply_settings()
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
    wanted = as_request(request, overrides)
    find_environment(here, wanted.environment)
    made = make_plan(here, wanted, code=code_of(here, code) if code is not None else ((), 0))
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
    probe: ProbeLike = None,
    promote: bool = True,
    **overrides: Any,
) -> Endpoint:
    """Serve a model behind a stable URL, and return when requests go to it.

    The first deployment of a name makes the endpoint. Every later one rolls a new version out beside the current one,
    which serves on whatever happens, and is retired when the new one has been promoted.

    Args:
        model: from `train`.
        serving: the endpoint's name, or a `ServingRequest`.
        canary: a percentage or rising ones, such as ``[10, 50, 100]``: the steps before the promotion.
        probe: what each step must pass: criteria (`ProbeRequest` or a mapping), a function of the `Canary`, or both
            (the function under ``check``).
        promote: False: wait at the last canary share, for `promote` or `rollback`.
        **overrides: fields of the serving request, such as ``expires_minutes``.

    Raises:
        ProbeFailed: the canary was rolled back; the current version serves on.
        EndpointNotReady: the server did not become ready; everything started for it is given back.
        RolloutHeld: another rollout of this endpoint is in flight.
        RolledBack: somebody took the rollout back.
        InvalidInput, ArtifactCorrupted, EndpointExists: as said, nothing was created.
    """
    wanted = _serving(model, serving, overrides)
    return serve(context(), Deploying(wanted, model, canary=canary, probe=probe, promote=promote))


@_phase("deploy")
def deploy_noticed(deploying: Deploying) -> Endpoint:
    """The same for `adeploy`, which may be cancelled."""
    return serve(context(), deploying)


async def adeploy(
    model: ModelArtifact,
    *,
    serving: str | ServingRequest | Mapping[str, Any],
    canary: object = None,
    probe: ProbeLike = None,
    promote: bool = True,
    **overrides: Any,
) -> Endpoint:
    """Like `deploy`, without blocking the event loop. Cancelled, what was started for it is given back."""
    deploying = Deploying(
        _serving(model, serving, overrides), model, canary=canary, probe=probe, promote=promote
    )  # fmt: skip
    try:
        return await asyncio.to_thread(phase, deploy_noticed, deploying)
    except asyncio.CancelledError:
        deploying.give_up(context())
        raise


@_phase("probe")
def probe(
    name: str,
    *,
    version: int | None = None,
    environment: str = "dev",
    check: Judge | None = None,
    **criteria: Any,
) -> Verdict:
    """Judge a live canary once and return the verdict, which is true when it passed. Changes nothing.

    Args:
        name: the endpoint's.
        version: which version; None: the one whose rollout is in flight.
        environment: the endpoint's.
        check: a function of the `Canary`: True or None passes; False, a sentence or an exception does not.
        **criteria: fields of `ProbeRequest`, such as ``seconds`` (how long it is watched) and ``max_error_rate``.

    Raises:
        NotFound: no such endpoint, or nothing to probe.
        EndpointNotReady: its router does not answer.
    """
    here = context()
    wanted = parsed(ProbeRequest, criteria, prefix="probe")
    verdict = probe_now(here, here.endpoint(name, environment), version, wanted, check)
    say(f"endpoint {name}: {verdict}")
    return verdict


@_phase("promote")
def promote(name: str, version: int | None = None, *, environment: str = "dev", reason: str = "") -> Endpoint:
    """Have all requests of an endpoint go to one version, and return when they do. Idempotent.

    Args:
        name: the endpoint's.
        version: which version; None: the one whose rollout is in flight.
        environment: the endpoint's.
        reason: for the history.

    Raises:
        NotFound: no such endpoint or version, or it is gone.
        EndpointNotReady: the version's servers are not up.
        RolledBack: it was rolled back before.
    """
    here = context()
    after = rollouts.promote(here, here.endpoint(name, environment), version, reason=reason or "asked for")
    current = after.current
    say(f"endpoint {name}: version {current.version if current else version} is promoted")
    return Endpoint(here, after.id)


@_phase("rollback")
def rollback(name: str, *, environment: str = "dev", reason: str = "asked for") -> Endpoint:
    """Take the rollout in flight back; where there is none, serve the version before the current one again.

    That one serves at once while its retirement lease lasts; later its model is deployed once more.

    Raises:
        NotFound: no such endpoint, or nothing to go back to.
    """
    runs.refuse_elsewhere("a rollback")
    here = context()
    back = rollouts.roll_back(
        here, here.endpoint(name, environment), reason=reason, owner=runs.owner(), client=runs.client(),
        ended=run_end(),
    )  # fmt: skip
    say(f"endpoint {name}: rolled back from version {back.from_version} to {back.to_version}")
    return Endpoint(here, back.endpoint.id) if back.asked is None else await_rollout(here, back.asked, None)


@_phase("retire")
def retire(name: str, version: int, *, environment: str = "dev", reason: str = "asked for") -> Endpoint:
    """End a version that does not serve alone: its requests go to the others, then its servers go. Returns at once.

    Raises:
        NotFound: no such endpoint or version.
        VersionServes: it is all that the endpoint serves; release the endpoint instead.
        RolloutHeld: it is being rolled out; roll it back instead.
    """
    here = context()
    after = rollouts.retire(here, here.endpoint(name, environment), version, reason=reason)
    say(f"endpoint {name}: version {version} retires")
    return Endpoint(here, after.id)


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
    return None if record.current is None else here.artifacts.read(record.current.artifact.id)


__all__ = [
    "adeploy", "attach", "current", "deploy", "evaluate", "plan", "probe", "promote", "provision", "release", "retire",
    "rollback", "train",
]  # fmt: skip
