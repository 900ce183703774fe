"""The phases of a lease as public Prefect tasks: plan, provision, train, evaluate, release.

Each is a node in the run's graph with its own state and logs. Because the keeper owns the lease, a flow that forgets to
release, or dies before it, does not leak: that is what makes a bare `provision` task safe here.

None of them is cached, persisted or retried by Prefect (`integration.phase`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from mlinfra_prefect.errors import BadMetrics, InvalidInput, NotYetDestroyed
from mlinfra_prefect.integration import runs, telling
from mlinfra_prefect.integration.asking import Asking, obtain
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra, model_of
from mlinfra_prefect.integration.keys import ticket
from mlinfra_prefect.integration.phase import as_phase, context, phase
from mlinfra_prefect.integration.requesting import RequestLike, as_request, find_environment
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.work import callable_work, code_of, job_work
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.lifecycle.planning import make_plan
from mlinfra_prefect.lifecycle.training import Outcome, Work
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingJob

RELEASE_WAIT_SECONDS = 900.0


@as_phase("plan")
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
    telling.planned(made)
    return made


@as_phase("provision")
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


@as_phase("provision")
def provision_for_lease(asking: Asking) -> Infra:
    """The same for `lease`, whose key was made where the block stands."""
    return obtain(context(), asking)


@as_phase("train")
def train_work(infra: Infra, work: Work) -> Outcome:
    """One job on a node, as a node of the run's graph."""
    return infra.follow(work)


def run_phase(infra: Infra, work: Work) -> Outcome:
    """Run prepared work as the `train` phase, named after what runs."""
    name = f"train {work.label}".replace("{", "(").replace("}", ")")
    return phase(train_work.with_options(task_run_name=name), infra, work)


@as_phase("train")
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


@as_phase("evaluate")
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


@as_phase("release")
def release(infra_or_id: Infra | Endpoint | str) -> Receipt:
    """Give a lease or an endpoint back and return the receipt. A safe no-op when it is already gone.

    Raises:
        NotFound: there is none of that id.
        NotYetDestroyed: it could not be given back yet; the keeper retries for ever.
    """
    wanted = infra_or_id if isinstance(infra_or_id, str) else infra_or_id.id
    here = context()
    record = keeper.release(here, wanted, reason="released")
    try:
        receipt = keeper.wait_released(here, record.id, timeout=RELEASE_WAIT_SECONDS)
    except NotYetDestroyed:
        telling.stuck(here, record.id)
        raise
    say(
        f"{receipt.kind} {receipt.id}: released; up {receipt.up_seconds:.1f} s, idle {receipt.idle_seconds:.1f} s, "
        f"{receipt.cost_usd:.2f} USD; {len(receipt.destroyed)} of {len(receipt.created)} resource(s) destroyed, "
        f"{'nothing' if receipt.clean else 'SOMETHING'} found by the last two sweeps"
    )
    telling.released(here, receipt)
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
        keeper.CLIENT.hold(here, record, run_end())
    return Infra(here, record.id)
