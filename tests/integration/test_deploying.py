"""Rows about deploying from flows; what an endpoint does is proven by the tests of serving."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from pathlib import Path

import node_work
import pytest
from integration_harness import eventually, row
from prefect import flow

from mlinfra_prefect import Endpoint, ModelArtifact, adeploy, current, lease, release
from mlinfra_prefect.errors import EndpointExists
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.model.endpoint import EndpointRecord
from mlinfra_prefect.model.lease import State


@pytest.fixture(scope="module")
def model(home: Path) -> Iterator[ModelArtifact]:
    with lease("cpu", max_minutes=5) as infra:
        yield infra.run(node_work.fit_classifier)


def endpoints() -> list[EndpointRecord]:
    return [seen.record for seen in context().ledger.records() if isinstance(seen.record, EndpointRecord)]


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
    with pytest.raises(EndpointExists):
        asyncio.run(adeploy(model, serving="dummy"))
    assert release.fn(endpoint).clean
    assert current("dummy") is None


@row("deploy-cancelled")
def test_a_cancelled_deployment_is_given_back(model: ModelArtifact) -> None:
    """Cancelled before it is ready: nothing is left of it, and its name is free."""

    async def run() -> None:
        deploying = asyncio.ensure_future(adeploy(model, serving="cancelled"))
        while not any(record.name == "cancelled" for record in endpoints()):  # noqa: ASYNC110 (a ledger has no events)
            await asyncio.sleep(0.01)
        deploying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await deploying

    asyncio.run(run())
    (record,) = (record for record in endpoints() if record.name == "cancelled")
    assert eventually(lambda: context().record(record.id).state is State.RELEASED)
    assert context().ledger.holder("endpoint:dev:cancelled") is None
