"""Deploy: the write-ahead records of a serving change. The keeper owns them from then on.

The first deployment of a name writes two records: the endpoint (its stable URL) and the rollout of version 1. Every
later one writes a rollout only, and never touches what serves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from mlinfra_prefect.errors import AlreadyExists, InvalidInput, LeaseHeld, MlinfraError
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TRIES, TTL_SECONDS, asked_place, beating
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.versions import enter, refuse_second
from mlinfra_prefect.local.serving import check_servable, check_trusted
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, KeptRecord, RolloutRecord
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.model.names import as_line, endpoint_base, rollout_base
from mlinfra_prefect.model.probe import ProbeRequest
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest

Tell = Callable[[KeptRecord], None]


@dataclass(frozen=True, slots=True)
class ServingAsked:
    """What asking led to. `endpoint` is None where it stood already."""

    rollout: RolloutRecord
    endpoint: EndpointRecord | None


def canary_shares(canary: object) -> tuple[int, ...]:
    """Return the shares before the promotion, rising; 100 at the end is the promotion itself. Pure.

    Args:
        canary: None, a percentage, or a list of rising percentages.

    Raises:
        InvalidInput: naming the field.
    """
    if canary is None:
        return ()
    listed: list[Any] = (
        list(canary) if isinstance(canary, Sequence) and not isinstance(canary, str | bytes) else [canary]
    )
    for each in listed:
        if isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= 100:
            raise InvalidInput(
                "canary", f"{each!r} is not a whole percentage from 1 to 100", "Write canary=[10, 50, 100]."
            )
    if sorted(set(listed)) != listed:
        raise InvalidInput("canary", f"{listed} does not rise", "Write canary=[10, 50, 100].")
    return tuple(each for each in listed if each < 100)


def ask_to_serve(
    context: Context,
    model: ModelArtifact,
    serving: ServingRequest,
    *,
    owner: Owner,
    client: Client,
    canary: object = None,
    probe: ProbeRequest | None = None,
    promote: bool = True,
    announce: Tell = lambda _: None,
    withdraw: Tell = lambda _: None,
) -> ServingAsked:
    """Write a rollout's record, and its endpoint's where there is none; nothing runs yet.

    Args:
        context: where.
        model: what is served.
        serving: how.
        owner: who asks, for listings.
        client: who waits for it: gone before the promotion, the rollout is rolled back.
        canary: a percentage or rising percentages: the steps before the promotion.
        probe: what each step must pass.
        promote: whether the keeper promotes it after the last step, or somebody else will.
        announce: called with a record before it is written: the keeper may expect it.
        withdraw: called with an announced record that was not written.

    Raises:
        RolloutHeld: another rollout of this endpoint is in flight.
        EndpointExists: the endpoint is being given back.
        InvalidInput: the format cannot be served, a port is in use, or the canary makes no sense.
        ArtifactCorrupted, NotFound: the model is not what was stored.
    """
    shares = canary_shares(canary)
    environment = context.config.environment(serving.environment)
    client = beating(context, client, serving.environment)
    platform = context.platform(serving.platform or environment.platform)
    check_servable(model.format, serving.predictor)
    artifact = context.artifacts.verified(model.id)
    check_trusted(artifact, serving.trusted_types)
    for _ in range(TRIES):
        created: EndpointRecord | None = None
        standing = _standing(context, serving)
        if standing is None:
            standing = created = _create_endpoint(
                context, platform.name, serving, owner=owner, client=client, announce=announce, withdraw=withdraw
            )
        if standing is None:
            continue  # somebody else was faster: theirs stands now
        serving = serving.revised(auth=standing.serving.auth)
        killpoint("after-router-record", context.home.root)
        try:
            rollout = _create_rollout(
                context, standing, artifact, serving, owner=owner, client=client, announce=announce,
                withdraw=withdraw, shares=shares, probe=probe or ProbeRequest(), promote=promote,
            )  # fmt: skip
            if rollout is None:
                refuse_second(context.endpoint(standing.id))  # theirs is in flight, or has come and gone
                continue
            killpoint("after-candidate-record", context.home.root)
            _enter(context, rollout)
        except BaseException as error:
            if created is not None:
                told = as_line(str(error)) or type(error).__name__
                begin_release(context, created.id, reason=told, drain=False, error=type(error).__name__)
            raise
        return ServingAsked(rollout, created)
    raise LeaseHeld(f"Endpoint {serving.name!r} changes faster than it can be read.", "Try again.")


def _enter(context: Context, rollout: RolloutRecord) -> None:
    try:
        enter(context, rollout)
    except MlinfraError as error:
        begin_release(context, rollout.id, reason=error.message, drain=False, error=type(error).__name__)
        raise


def _standing(context: Context, serving: ServingRequest) -> EndpointRecord | None:
    """Return the endpoint of a name, fit for another version; None where there is none."""
    holder = context.ledger.holder(f"endpoint:{serving.environment}:{serving.name}")
    seen = context.ledger.read(holder) if holder is not None else None
    if seen is None or seen.record.state is State.RELEASED:
        return None
    endpoint = seen.record
    assert isinstance(endpoint, EndpointRecord)  # the hold is an endpoint's
    refuse_second(endpoint)
    if serving.port is not None and serving.port != endpoint.port:
        raise InvalidInput(
            "serving.port",
            f"endpoint {endpoint.name!r} answers on port {endpoint.port}, and its URL is stable",
            "Leave the port out, or release the endpoint first.",
        )
    auth = endpoint.serving.auth or "none"  # a record without it was written before there were tokens
    if serving.auth not in {None, auth}:
        raise InvalidInput(
            "serving.auth",
            f"endpoint {endpoint.name!r} has auth={auth!r}, and its clients rely on it",
            "Leave it out, or release the endpoint first.",
        )
    return endpoint


def _create_endpoint(
    context: Context, platform: str, serving: ServingRequest, *, owner: Owner, client: Client, announce: Tell,
    withdraw: Tell,
) -> EndpointRecord | None:  # fmt: skip
    """Write an endpoint's record, its name and its port reserved; None when somebody else was faster."""
    ledger = context.ledger
    port = _port(context, platform, serving.port)
    serving = serving.revised(auth=serving.auth or "token")
    base, now = endpoint_base(serving.environment, serving.name), ledger.now()
    record = EndpointRecord(
        id=f"{base}-{len(ledger.rounds(base)) + 1}",
        ledger_id=ledger.ledger_id,
        name=serving.name,
        environment=serving.environment,
        platform=platform,
        owner=owner,
        client=client,
        keeper_place=asked_place(context, serving.environment),
        created_at=now,
        renewed_until=now + timedelta(seconds=TTL_SECONDS),
        serving=serving,
        url=f"http://127.0.0.1:{port}",
        port=port,
        expires_at=None if serving.expires_minutes is None else now + timedelta(minutes=serving.expires_minutes),
        versions=(),
    )
    holds = (f"endpoint:{serving.environment}:{serving.name}", f"port:{port}")
    return record if _written(context, record, holds, announce, withdraw) else None


def _create_rollout(
    context: Context, endpoint: EndpointRecord, artifact: ModelArtifact, serving: ServingRequest, *, owner: Owner,
    client: Client, shares: tuple[int, ...], probe: ProbeRequest, promote: bool, announce: Tell, withdraw: Tell,
) -> RolloutRecord | None:  # fmt: skip
    """Write a rollout's record, its ports reserved; None when somebody else was faster."""
    ledger = context.ledger
    base, now = rollout_base(endpoint.id), ledger.now()
    ports: list[int] = []
    while len(ports) < serving.most_replicas:
        ports.append(_port(context, endpoint.platform, None, taken=(*ports, endpoint.port)))
    number = len(ledger.rounds(base)) + 1
    expires = None if serving.expires_minutes is None else now + timedelta(minutes=serving.expires_minutes)
    if endpoint.expires_at is not None and expires is not None:
        expires = max(expires, endpoint.expires_at)
    record = RolloutRecord(
        id=f"{base}-{number}",
        ledger_id=ledger.ledger_id,
        name=serving.name,
        environment=serving.environment,
        platform=endpoint.platform,
        owner=owner,
        client=client,
        keeper_place=asked_place(context, serving.environment),
        created_at=now,
        renewed_until=now + timedelta(seconds=TTL_SECONDS),
        endpoint=endpoint.id,
        version=number,
        serving=serving,
        artifact=artifact,
        ports=tuple(ports),
        shares=shares,
        probe=probe,
        promote=promote,
        until=now + timedelta(minutes=serving.rollout_minutes),
        expires_at=expires,
    )
    holds = tuple(f"port:{port}" for port in ports)
    return record if _written(context, record, holds, announce, withdraw) else None


def _written(context: Context, record: KeptRecord, holds: Sequence[str], announce: Tell, withdraw: Tell) -> bool:
    announce(record)
    try:
        context.ledger.create(record, actor=context.actor, reason="asked for", holds=holds)
    except (AlreadyExists, LeaseHeld):
        withdraw(record)
        return False
    except BaseException:
        withdraw(record)
        raise
    return True


def _port(context: Context, platform: str, wanted: int | None, taken: Sequence[int] = ()) -> int:
    def is_taken(number: int) -> bool:
        return number in taken or context.ledger.holder(f"port:{number}") is not None

    return context.platform(platform).choose_port(wanted, is_taken)
