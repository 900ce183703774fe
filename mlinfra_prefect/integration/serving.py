"""The phases of serving as public Prefect tasks: deploy, probe, promote, rollback, retire; and which model serves now.

Each decides through the keeper, which owns every serving change: a flow that dies in one leaves nothing half-done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from mlinfra_prefect.errors import InvalidInput, NotFound
from mlinfra_prefect.integration import runs, telling
from mlinfra_prefect.integration.asking import Deploying, await_rollout, serve
from mlinfra_prefect.integration.canary import Judge, ProbeLike, probe_now
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.phase import as_phase, context, phase
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.keeper import rollouts
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import ServingRequest
from mlinfra_prefect.model.verdict import Verdict


@as_phase("deploy")
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


@as_phase("deploy")
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


@as_phase("probe")
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
    telling.judged(verdict, name)
    return verdict


@as_phase("promote")
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
    telling.served(here, after)
    return Endpoint(here, after.id)


@as_phase("rollback")
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
    telling.went_back(here, back.endpoint, back.from_version, reason)
    return Endpoint(here, back.endpoint.id) if back.asked is None else await_rollout(here, back.asked, None)


@as_phase("retire")
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
    telling.served(here, after)
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
