"""Rows about deploying from flows; what an endpoint does is proven by the tests of serving."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path

import node_work
import pytest
from integration_harness import eventually, records, row
from prefect import flow

from mlinfra_prefect import Endpoint, ModelArtifact, adeploy, current, deploy, lease, release
from mlinfra_prefect.errors import ProbeFailed
from mlinfra_prefect.integration.canary import Canary
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import State


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[ModelArtifact]:
    with lease("cpu", max_minutes=5) as infra:
        yield infra.run(node_work.fit_classifier)


def versions(endpoint: Endpoint) -> list[tuple[int, str, int]]:
    return [(each.version, each.state.value, each.share) for each in context().endpoint(endpoint.id).versions]


@row("deploy-async")
@pytest.mark.slow
def test_deploy_in_an_async_flow(model: ModelArtifact) -> None:
    """`await adeploy(...)`: a served model that outlives the run; a flow may return it, and it travels as its id."""

    @flow(persist_result=True)
    async def run() -> Endpoint:
        return await adeploy(model, serving="dummy", expires_minutes=5)

    endpoint = pickle.loads(pickle.dumps(asyncio.run(run())))
    assert endpoint.predict([[0.0]]) == [3]
    assert current("dummy") == context().artifacts.read(model.id)
    assert release.fn(endpoint).clean
    assert current("dummy") is None


@row("deploy-cancelled")
def test_a_cancelled_deployment_is_given_back(model: ModelArtifact) -> None:
    """Cancelled before it is ready: nothing is left of it, and its name is free."""

    async def run() -> None:
        deploying = asyncio.ensure_future(adeploy(model, serving="cancelled"))
        while not any(record.name == "cancelled" for record in records(EndpointRecord)):  # noqa: ASYNC110 (a ledger has no events)
            await asyncio.sleep(0.01)
        deploying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deploying

    asyncio.run(run())
    (record,) = (record for record in records(EndpointRecord) if record.name == "cancelled")
    assert eventually(lambda: context().record(record.id).state is State.RELEASED)
    assert context().ledger.holder("endpoint:dev:cancelled") is None


@row("deploy-again")
@row("deploy-canary")
@pytest.mark.slow
def test_a_later_deployment_is_a_rollout_and_a_probe_that_raises_is_a_rollback(model: ModelArtifact) -> None:
    """The URL stays; what the user's own probe does not pass never serves, and the current version is untouched."""
    endpoint = deploy.fn(model, serving="again", expires_minutes=5, retire_seconds=0)
    seen: list[int] = []

    def explodes(canary: Canary) -> bool:
        seen.append(canary.share)
        if canary.share:
            raise ZeroDivisionError("no sample")
        return canary.predict([[0.0]]) == canary.predict_current([[0.0]])

    with pytest.raises(ProbeFailed, match=r"with 50 % of the requests: the probe raised ZeroDivisionError: no sample"):
        deploy.fn(model, serving="again", canary=[50, 100], probe={"seconds": 0, "check": explodes})
    assert seen == [0, 50]
    assert versions(endpoint) == [(1, "serving", 100), (2, "rolled-back", 0)]
    assert endpoint.predict([[0.0]]) == [3]
    third = deploy.fn(model, serving="again", canary=[50, 100], probe={"seconds": 0}, retire_seconds=0)
    assert (third.id, third.url) == (endpoint.id, endpoint.url)
    assert versions(endpoint)[2] == (3, "serving", 100)
    assert endpoint.predict([[0.0]]) == [3]
    assert release.fn(endpoint).clean
