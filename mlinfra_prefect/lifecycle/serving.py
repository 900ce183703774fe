"""Deploy: the write-ahead record of an endpoint. The keeper owns it until it is ready; then the server holds a grant.

One version with the whole share: what replaces a version without a gap needs rollouts, so it is refused until they
exist, before anything is created.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from mlinfra_prefect.errors import AlreadyExists, EndpointExists, LeaseHeld, UnsupportedHere
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TRIES, TTL_SECONDS
from mlinfra_prefect.local.serving import check_servable, check_trusted
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import Client, EndpointRecord, Version
from mlinfra_prefect.model.names import endpoint_base
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.request import ServingRequest


def ask_to_serve(
    context: Context,
    model: ModelArtifact,
    serving: ServingRequest,
    *,
    owner: Owner,
    client: Client,
    canary: object = None,
    announce: Callable[[EndpointRecord], None] = lambda _: None,
    withdraw: Callable[[EndpointRecord], None] = lambda _: None,
) -> EndpointRecord:
    """Write an endpoint's record, its name and its port reserved; nothing runs yet.

    Args:
        context: where.
        model: what is served.
        serving: how.
        owner: who asks, for listings.
        client: who waits for it; afterwards the endpoint stands by itself.
        canary: refused until rollouts exist.
        announce: called with the record before it is written: the keeper may expect it.
        withdraw: called with an announced record that was not written.

    Raises:
        UnsupportedHere: a canary was asked for.
        EndpointExists: the name is in use.
        InvalidInput: the format cannot be served, or the port is in use.
        ArtifactCorrupted, NotFound: the model is not what was stored.
    """
    if canary is not None:
        raise UnsupportedHere("canary: rollouts do not exist yet, so an endpoint has one version with share 100.")
    environment = context.config.environment(serving.environment)
    platform = context.platform(serving.platform or environment.platform)
    check_servable(model.format, serving.predictor)
    artifact = context.artifacts.verified(model.id)
    check_trusted(artifact, serving.trusted_types)
    ledger = context.ledger
    base = endpoint_base(serving.environment, serving.name)
    hold = f"endpoint:{serving.environment}:{serving.name}"
    for _ in range(TRIES):
        _refuse_existing(context, hold, serving)
        port = platform.choose_port(serving.port, lambda number: ledger.holder(f"port:{number}") is not None)
        now = ledger.now()
        record = EndpointRecord(
            id=f"{base}-{len(ledger.rounds(base)) + 1}",
            ledger_id=ledger.ledger_id,
            name=serving.name,
            environment=serving.environment,
            platform=platform.name,
            owner=owner,
            client=client,
            created_at=now,
            renewed_until=now + timedelta(seconds=TTL_SECONDS),
            serving=serving,
            url=f"http://127.0.0.1:{port}",
            port=port,
            expires_at=None if serving.expires_minutes is None else now + timedelta(minutes=serving.expires_minutes),
            versions=(Version(version=1, share=100, state="deploying", sha256=artifact.sha256, artifact=artifact),),
        )
        announce(record)
        try:
            ledger.create(record, actor=context.actor, reason="asked for", holds=(hold, f"port:{port}"))
        except (AlreadyExists, LeaseHeld):
            withdraw(record)
            continue  # somebody else was faster: with this name, which is refused then, or with this port
        except BaseException:
            withdraw(record)
            raise
        return record
    raise LeaseHeld(f"Endpoint {serving.name!r} changes faster than it can be read.", "Try again.")


def _refuse_existing(context: Context, hold: str, serving: ServingRequest) -> None:
    holder = context.ledger.holder(hold)
    if holder is None:
        return
    there = f"serving.name: endpoint {serving.name!r} of environment {serving.environment!r}"
    seen = context.ledger.read(holder)
    if seen is not None and not seen.record.live:
        raise EndpointExists(f"{there} is still being given back ({holder}).", "Try again when it is gone.")
    raise EndpointExists(
        f"{there} exists already ({holder}).",
        f"Release it first: mlinfra-prefect release {holder}. Replacing a version needs a rollout, which does not "
        "exist yet.",
    )
