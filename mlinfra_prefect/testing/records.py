"""Sample records: valid ones of every kind, so that a test writes down only what it is about."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from mlinfra_prefect.model.artifact import ArtifactFile, ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord, Version
from mlinfra_prefect.model.lease import TRANSITIONS, Attempt, Client, Keeper, LeaseRecord, State
from mlinfra_prefect.model.names import endpoint_base, lease_base, lease_id, rollout_base
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest

MOMENT = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_PROCESS = ProcessIdentity(host="laptop", boot="5b6c1f0e", pid=4711, start_time="1873002")
_OWNER = Owner(user="ada", host="laptop", flow="model-lifecycle", flow_run="nimble-fox")
_KEEPER = Keeper(place="process", process=_PROCESS)
_CLIENT = Client(kind="process", process=_PROCESS)


def sample_offer(**changes: Any) -> Offer:
    """Return an offer of the local platform."""
    return Offer(type="local", region="local", market="on-demand", usd_per_hour=0.5, gpus=0).revised(**changes)


def sample_attempt(number: int = 1, **changes: Any) -> Attempt:
    """Return a planned attempt."""
    place = f"/home/ada/.mlinfra-prefect/work/x/{number}"
    attempt = Attempt(
        number=number,
        offer=sample_offer(),
        stack="local-node",
        directory=f"{place}/terraform",
        node_dir=f"{place}/node",
    )
    return attempt.revised(**changes)


def sample_artifact(**changes: Any) -> ModelArtifact:
    """Return an artifact of one file."""
    artifact = ModelArtifact(
        id="a0f3c5d7e9b1a2c4d6e8f",
        name="acme.churn:train",
        format="sklearn-skops",
        uri="file:///home/ada/.mlinfra-prefect/artifacts/a0f3c5d7e9b1a2c4d6e8f",
        sha256=SHA256,
        files=(ArtifactFile(path="model.skops", sha256=SHA256, size=48213),),
        metrics={"auc": 0.91},
        lease_id="l0f3c5d7e9b1a2c4d6e8f-1",
        environment="dev",
        code_hash="9f86d081884c7d659a2f",
        request_hash="60303ae22b998861bce3",
        environment_hash="fd61a03af4f77d870fc2",
        created_at=MOMENT,
    )
    return artifact.revised(**changes)


def sample_lease(name: str = "training", round_number: int = 1, **changes: Any) -> LeaseRecord:
    """Return a lease as it is first written; its id comes from its name and round."""
    base = lease_base("run", name, "task-0")
    request = TrainingRequest(name=name)
    record = LeaseRecord(
        id=lease_id(base, round_number),
        base=base,
        round=round_number,
        ledger_id="7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11",
        name=name,
        environment="dev",
        platform="local",
        owner=_OWNER,
        client=_CLIENT,
        keeper=_KEEPER,
        created_at=MOMENT,
        renewed_until=MOMENT + timedelta(minutes=2),
        request=request,
        request_hash=request.hash,
        deadline=MOMENT + timedelta(hours=1),
    )
    return record.revised(**changes)


def sample_endpoint(name: str = "churn", round_number: int = 1, **changes: Any) -> EndpointRecord:
    """Return an endpoint whose first version serves; its id comes from its name and round."""
    endpoint_id = lease_id(endpoint_base("dev", name), round_number)
    version = Version(
        version=1, share=100, state="serving", sha256=SHA256, artifact=sample_artifact(),
        rollout=f"{rollout_base(endpoint_id)}-1", urls=("http://127.0.0.1:9001",), promoted_at=MOMENT,
    )  # fmt: skip
    record = EndpointRecord(
        id=endpoint_id,
        ledger_id="7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11",
        name=name,
        environment="dev",
        platform="local",
        owner=_OWNER,
        client=Client(kind="none"),
        created_at=MOMENT,
        renewed_until=MOMENT + timedelta(minutes=2),
        serving=ServingRequest(name=name, auth="token"),
        url="http://127.0.0.1:8123",
        port=8123,
        versions=(version,),
    )
    return record.revised(**changes)


def sample_rollout(name: str = "churn", version: int = 1, **changes: Any) -> RolloutRecord:
    """Return a rollout as it is first written, of the endpoint `sample_endpoint(name)`; its id comes from both."""
    endpoint_id = lease_id(endpoint_base("dev", name), 1)
    record = RolloutRecord(
        id=f"{rollout_base(endpoint_id)}-{version}",
        ledger_id="7f0c1a3e-5f0a-4d0e-9a53-0f6f6c1d2b11",
        name=name,
        environment="dev",
        platform="local",
        owner=_OWNER,
        client=_CLIENT,
        keeper=_KEEPER,
        created_at=MOMENT,
        renewed_until=MOMENT + timedelta(minutes=2),
        endpoint=endpoint_id,
        version=version,
        serving=ServingRequest(name=name, auth="token"),
        artifact=sample_artifact(),
        ports=(9000 + version,),
        shares=(10, 50),
        until=MOMENT + timedelta(hours=1),
    )
    return record.revised(**changes)


def path_to(state: State) -> tuple[State, ...]:
    """Return a shortest legal way from `requested` to a state, without `requested` itself."""
    ways: deque[tuple[State, ...]] = deque([()])
    while ways:
        way = ways.popleft()
        last = way[-1] if way else State.REQUESTED
        if last is state:
            return way
        ways.extend((*way, following) for following in sorted(TRANSITIONS[last]) if following not in way)
    raise ValueError(f"{state} cannot be reached")
