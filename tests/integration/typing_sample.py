"""What a type checker sees; `test_typing` runs mypy --strict over it. Never imported."""

from __future__ import annotations

from concurrent.futures import Future
from typing import assert_type

from prefect import flow, task
from prefect.futures import PrefectFuture, PrefectFutureList
from prefect.tasks import Task

from mlinfra_prefect import (
    Endpoint,
    Infra,
    ModelArtifact,
    Plan,
    Receipt,
    adeploy,
    attach,
    current,
    deploy,
    evaluate,
    gpu,
    lease,
    plan,
    provision,
    release,
    train,
)


@task
@gpu("cpu", max_minutes=5)
def under(a: int, b: int) -> int:
    return a + b


@gpu("cpu", max_minutes=5)
@task(retries=1)
def over(a: int, b: int) -> int:
    return a + b


@gpu("cpu")
def plain(a: int) -> str:
    return str(a)


@task
@gpu("cpu")
async def later(a: int) -> int:
    return a


def fit(weight: float) -> ModelArtifact:
    raise ValueError(weight)


async def fit_later(weight: float) -> float:
    return weight


def score(model: ModelArtifact) -> dict[str, float]:
    raise ValueError(model)


@flow
@lease("cpu")
def held(infra: Infra, a: int) -> int:
    return infra.run(plain_add, a, b=1)


def plain_add(a: int, b: int) -> int:
    return a + b


@flow
def run() -> None:
    assert_type(under(1, 2), int)
    assert_type(over(1, 2), int)
    assert_type(plain(1), str)
    assert_type(under.submit(1, 2), PrefectFuture[int])
    assert_type(over.map([1, 2], 3), PrefectFutureList[int])
    tasks: list[Task[[int, int], int]] = [under, over, under.with_options(name="x")]
    assert_type(tasks[0](1, 2), int)
    assert_type(plan("cpu"), Plan)
    with lease("cpu", wait=False) as infra:
        assert_type(infra, Infra)
        assert_type(infra.run(fit, 1.0), ModelArtifact)
        assert_type(infra.run(fit_later, 1.0), float)
        assert_type(infra.submit(fit, weight=1.0), Future[ModelArtifact])
        assert_type(infra.with_options(resume="x").run(plain_add, 1, 2), int)
        model = train(infra, fit, 1.0)
        assert_type(model, ModelArtifact)
        assert_type(evaluate(infra, score, model), dict[str, float])
    assert_type(deploy(model, serving="x"), Endpoint)
    assert_type(release(provision("cpu")), Receipt)
    assert_type(attach("l1"), Infra)
    assert_type(current("x"), ModelArtifact | None)
    assert_type(held(1), int)
    held("one")  # type: ignore[call-overload]
    under("one", 2)  # type: ignore[call-overload]
    infra.run(fit, "heavy")  # type: ignore[call-overload]


@flow
async def run_later() -> None:
    async with lease("cpu") as infra:
        assert_type(await infra.arun(fit_later, 1.0), float)
        assert_type(await infra.arun(fit, 1.0), ModelArtifact)
        assert_type(await later(1), int)
        assert_type(await adeploy(await infra.arun(fit, 1.0), serving="x"), Endpoint)
