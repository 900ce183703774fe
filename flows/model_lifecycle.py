"""The whole life of a model in one flow: lease → train → evaluate → release → deploy → predict → report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mlinfra_prefect import deploy, evaluate, lease, plan, release
from mlinfra_prefect.flows.digits import score_digits, split, train_digits


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one run. Ids lead to the records in the ledger."""

    lease_id: str
    artifact_id: str
    artifact_sha256: str
    scores: dict[str, float]
    endpoint_id: str
    url: str
    asked: int
    served_accuracy: float
    kept: bool


@flow(name="model-lifecycle", log_prints=True)
def model_lifecycle(
    accelerator: str = "cpu",
    environment: str = "dev",
    max_minutes: int = 15,
    epochs: int = 10,
    regularisation: float = 0.1,
    accuracy_floor: float = 0.9,
    endpoint: str = "digits",
    keep_minutes: int = 0,
) -> Any:
    """Train digits on just-in-time infrastructure, serve the model, ask it for the held-out images, give all back.

    Args:
        accelerator: what the node has, such as cpu or L4:1.
        environment: dev, staging, prod: whose caps hold.
        max_minutes: the hard limit of the lease.
        epochs: rounds of the optimiser.
        regularisation: the inverse of the penalty's strength.
        accuracy_floor: below it the model is not deployed.
        endpoint: the endpoint's name.
        keep_minutes: how long the endpoint goes on serving after the run; 0 gives it back at the end.
    """
    plan(accelerator, environment=environment, max_minutes=max_minutes, code=train_digits)
    with lease(accelerator, environment=environment, max_minutes=max_minutes) as infra:
        model = infra.run(train_digits, epochs=epochs, regularisation=regularisation)
        scores = evaluate(infra, score_digits, model)
    # The node is gone here: nothing below this line pays for it.
    if scores["accuracy"] < accuracy_floor:
        return refused(f"accuracy {scores['accuracy']:.3f} is below the floor of {accuracy_floor:.3f}")
    served = deploy(model, serving=endpoint, environment=environment, expires_minutes=keep_minutes or max_minutes)
    try:
        _, images, _, labels = split()
        answers = served.predict(images)
        right = sum(int(answer) == int(label) for answer, label in zip(answers, labels, strict=True))
    except BaseException:
        release(served)
        raise
    if not keep_minutes:
        release(served)
    report = Report(
        lease_id=infra.id,
        artifact_id=model.id,
        artifact_sha256=model.sha256,
        scores=scores,
        endpoint_id=served.id,
        url=served.url,
        asked=len(answers),
        served_accuracy=right / len(answers),
        kept=bool(keep_minutes),
    )
    print(f"{report.asked} held-out digits asked of {report.url}: {100 * report.served_accuracy:.1f} % right")
    return asdict(report)


def refused(why: str) -> State[None]:
    """End the run well, without a deployment: a model that is not good enough is an answer and no failure."""
    return Completed(name="GateRefused", message=why)


if __name__ == "__main__":
    model_lifecycle()
