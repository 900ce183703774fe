"""The phases as public Prefect tasks: plan, provision, train, evaluate, deploy, release.

Each is a node in the run's graph with its own state and logs. Because the keeper owns the lease, a flow that forgets to
release, or dies before it, does not leak: that is what makes a bare `provision` task safe here.

None of them is cached, persisted or retried by Prefect: a cached handle would be one to a destroyed machine
(RELIABILITY 8), and our own loop knows the lock (rule R12).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from mlinfra_prefect.errors import BadMetrics, EndpointNotReady, InvalidInput, MlinfraError, NotFound
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.work import callable_work, code_of, job_work
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.desk import is_provably_dead
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import ask
from mlinfra_prefect.lifecycle.planning import make_plan
from mlinfra_prefect.lifecycle.request_file import as_request
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.lifecycle.training import Outcome, Work
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import EndpointRecord, State
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import ServingRequest, TrainingJob, TrainingRequest

RELEASE_WAIT_SECONDS = 900.0
RequestLike = str | Path | TrainingRequest | Mapping[str, Any]
_contexts: dict[Home, Context] = {}


def context() -> Context:
    """The context of the home that ``MLINFRA_HOME`` names now."""
    home = Home.from_environment()
    if home not in _contexts:
        _contexts[home] = Context(home)
    return _contexts[home]


def phase(kind: Task[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Run a phase as a task inside a Prefect run, and as a plain function outside of one."""
    return kind(*args, **kwargs) if runs.in_run() else kind.fn(*args, **kwargs)


def _phase(name: str) -> Callable[[Callable[..., Any]], Any]:
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)


def obtain(request: TrainingRequest, ticket: runs.Ticket, *, wait: bool) -> Infra:
    """Ask for a lease, give it to the keeper, and wait for it if that is wanted."""
    here = context()
    asked = ask(
        here, request, key=ticket.key, owner=runs.owner(), client=runs.client(), is_dead=is_provably_dead
    )
    keeper.entrust(here, asked.record, ended=runs.ended())
    infra = Infra(here, asked.record.id)
    say(f"lease {infra.id}: {'adopted' if asked.adopted else 'asked for'} {request.accelerator}")
    if wait:
        try:
            record = keeper.wait_ready(here, infra.id)
        except BaseException:
            with suppress(MlinfraError):
                keeper.release(here, infra.id, reason="the client stopped waiting for it", drain=False)
            raise
        seconds = (record.ready_at - record.created_at).total_seconds() if record.ready_at else 0.0
        say(f"lease {infra.id}: ready after {seconds:.2f} s")
    return infra


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
    wanted = as_request(request, overrides)
    ticket = runs.ticket(wanted.name, key)
    try:
        return obtain(wanted, ticket, wait=wait)
    finally:
        ticket.close()


@_phase("provision")
def provision_for_lease(request: TrainingRequest, ticket: runs.Ticket, wait: bool) -> Infra:  # noqa: FBT001
    """The same for `lease`, whose key was made where the block stands."""
    return obtain(request, ticket, wait=wait)


@_phase("train")
def train_work(infra: Infra, work: Work) -> Outcome:
    """One job on a node, as a node of the run's graph."""
    return infra.follow(work)


def run_phase(infra: Infra, work: Work) -> Outcome:
    """Run prepared work as the `train` phase, named after what runs."""
    if not runs.in_run():
        return infra.follow(work)
    found: Outcome = train_work.with_options(task_run_name=f"train {work.label}".replace("{", "(").replace("}", ")"))(
        infra, work
    )
    return found


@_phase("train")
def train(infra: Infra, job: TrainingJob | Callable[..., Any] | Mapping[str, Any], *args: Any, **kwargs: Any) -> ModelArtifact:
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
        work = callable_work(here, job, args, kwargs, infra._options, model=True)  # noqa: SLF001 (one module in two files)
    else:
        work = job_work(here, job if isinstance(job, TrainingJob) else parsed(TrainingJob, dict(job), prefix="job"))
    artifact = infra.follow(work).artifact
    if artifact is None:
        raise InvalidInput("job", "left no model")
    shown = ", ".join(f"{name}={value:.4g}" for name, value in artifact.metrics.items())
    say(f"artifact {artifact.id}: {len(artifact.files)} file(s) {shown}".rstrip())
    return artifact


@_phase("evaluate")
def evaluate(infra: Infra, function: Callable[..., Mapping[str, float]], *args: Any, **kwargs: Any) -> dict[str, float]:
    """Call a function on the node that returns metrics, and return them, finite.

    Raises:
        BadMetrics: a value is NaN, infinite or no number, or it returned no mapping.
    """
    value = infra.follow(callable_work(context(), function, args, kwargs, infra._options)).value  # noqa: SLF001
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
    here = context()
    if not isinstance(model, ModelArtifact):
        raise InvalidInput("model", f"is a {type(model).__name__}, not a ModelArtifact", "Pass what `train` returned.")
    if isinstance(serving, ServingRequest):
        wanted = serving
    elif isinstance(serving, Mapping):
        wanted = parsed(ServingRequest, dict(serving), prefix="serving")
    else:
        wanted = parsed(ServingRequest, {"name": serving, "environment": model.environment}, prefix="serving")
    wanted = wanted.merged(overrides) if overrides else wanted
    record = ask_to_serve(here, model, wanted, owner=runs.owner(), client=runs.client(), canary=canary)
    keeper.entrust(here, record, ended=runs.ended())
    say(f"endpoint {record.name} ({record.id}): deploying {model.id} at {record.url}")
    try:
        keeper.wait_ready(here, record.id)
    except BaseException:
        with suppress(MlinfraError):
            keeper.release(here, record.id, reason="the client stopped waiting for it", drain=False)
        raise
    keeper.CLIENT.let_go(record.id)
    say(f"endpoint {record.name}: ready at {record.url}")
    return Endpoint(here, record.id)


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


def quietly_released(here: Context, lease_id: str, why: str) -> None:
    """Begin a release where nothing may raise or log through Prefect: a dying run (RELIABILITY 5)."""
    with suppress(MlinfraError):
        keeper.release(here, lease_id, reason=why)


__all__ = [
    "EndpointNotReady", "attach", "current", "deploy", "evaluate", "plan", "provision", "release", "train",
]  # fmt: skip
