"""The whole life of a model in one flow: plan → approval → lease → train → evaluate → gate → deploy → predict.

Its parameters are flat scalars, so that they are a form in the Prefect UI, and so that a schedule or an event can fill
them. Prefect checks their types and bounds; what only we know (accelerators, environments, shares) is checked in the
first lines, before anything exists.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from mlinfra_prefect import Endpoint, current, deploy, evaluate, lease, plan, release
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.flows.digits import DATASET, score_digits, split, train_digits
from mlinfra_prefect.integration.approval import approve_plan, not_approved
from mlinfra_prefect.integration.gate import gate, gate_refused
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.integration.requesting import find_environment
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import MAX_MINUTES, ServingRequest, TrainingRequest

FORMAT = "sklearn-skops"
MAX_EPOCHS = 1000


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
    verdict: str
    replaced: str | None
    """The artifact that the endpoint served before; None: it is the first version."""


@flow(name="model-lifecycle", log_prints=True)
def model_lifecycle(
    accelerator: str = "cpu",
    environment: str = "dev",
    platform: Literal["environment's", "local", "aws"] = "environment's",
    max_minutes: Annotated[int, Field(ge=1, le=MAX_MINUTES)] = 15,
    dataset: str = "",
    epochs: Annotated[int, Field(ge=1, le=MAX_EPOCHS)] = 10,
    regularisation: Annotated[float, Field(gt=0)] = 0.1,
    accuracy_floor: Annotated[float, Field(ge=0, le=1)] = 0.9,
    tolerance: Annotated[float, Field(ge=0, le=1)] = 0.01,
    endpoint: str = "digits",
    canary: str = "",
    keep: bool = False,
    keep_minutes: Annotated[int, Field(ge=0, le=MAX_MINUTES)] = 0,
    approve: bool = False,
    approval_minutes: Annotated[int, Field(ge=1, le=MAX_MINUTES)] = 30,
    reason: str = "",
) -> Any:
    """Train digits on just-in-time infrastructure, compare with the model that is served, and serve the better one.

    Args:
        accelerator: What the node has, such as cpu or L4:1.
        environment: Whose caps hold: dev, staging, prod.
        platform: Where the model is trained. It is served on this machine.
        max_minutes: The hard limit of the lease.
        dataset: A .npz file (path or file:// URI) with images (n by 64) and labels (n). Empty: what scikit-learn ships.
        epochs: Rounds of the optimiser.
        regularisation: The inverse of the penalty's strength.
        accuracy_floor: Below it the model is not deployed.
        tolerance: By how much its accuracy may be below that of the version served now, on the same data.
        endpoint: The endpoint's name; one that exists gets a new version.
        canary: Shares of the requests that a new version gets one after the other, such as 10,50,100. Empty: all.
        keep: Leave the endpoint serving after the run. One that served before the run is never given back.
        keep_minutes: How long a new endpoint serves, then it ends; 0 with keep: until it is released.
        approve: Wait until somebody approves the plan in the UI. Nothing exists before.
        approval_minutes: How long to wait for that; then nothing is created.
        reason: Why this run was started; events fill it in.
    """
    if reason:
        print(f"started because: {reason}")
    steps = shares(canary)
    # Not the bare text: a request may be read from a file, and a form must not name files of the worker.
    where = None if platform == "environment's" else platform
    request = parsed(
        TrainingRequest,
        {"accelerator": accelerator, "environment": environment, "platform": where, "max_minutes": max_minutes},
    )
    find_environment(context(), environment)
    context().config.environment(environment)
    served_before = current(checked_name(endpoint, environment), environment=environment)
    inputs = checked_inputs(dataset)
    if served_before is not None and served_before.format != FORMAT:
        raise InvalidInput("endpoint", f"{endpoint!r} serves a model of format {served_before.format}", "Name another.")

    planned = plan(request, code=train_digits)
    if approve:
        approval = approve_plan(planned, minutes=approval_minutes)
        if not approval:
            return not_approved(approval)

    with lease(request) as infra:
        node = infra.with_options(inputs=inputs)
        model = node.run(train_digits, epochs=epochs, regularisation=regularisation)
        scores = evaluate(node, score_digits, model)
        # On the same data and while the node lives: an older score would be one on other data.
        scores_before = evaluate(node, score_digits, served_before) if served_before is not None else None
    # The node is gone here: nothing below this line pays for it.
    verdict = gate(
        {"accuracy": scores["accuracy"]},
        current=None if scores_before is None else {"accuracy": scores_before["accuracy"]},
        by=-tolerance,
        floors={"accuracy": accuracy_floor},
    )
    if not verdict:
        return gate_refused(verdict)

    kept = keep or keep_minutes > 0 or served_before is not None
    served = deploy(model, serving=endpoint, environment=environment, **serving_options(
        steps if served_before is not None else None, keep_minutes or (None if kept else max_minutes)
    ))  # fmt: skip
    try:
        answers, right = ask(served, inputs.get(DATASET))
    except BaseException:
        if not kept:
            release(served)
        raise
    if not kept:
        release(served)
    print(f"{answers} held-out digits asked of {served.url}: {100 * right / answers:.1f} % right")
    return asdict(
        Report(
            lease_id=infra.id,
            artifact_id=model.id,
            artifact_sha256=model.sha256,
            scores=scores,
            endpoint_id=served.id,
            url=served.url,
            asked=answers,
            served_accuracy=right / answers,
            kept=kept,
            verdict=verdict.reason,
            replaced=None if served_before is None else served_before.id,
        )
    )


def shares(canary: str) -> list[int] | None:
    """Read shares such as ``10,50,100``; None where there are none.

    Raises:
        InvalidInput: they are no rising percentages that end with 100.
    """
    if not canary.strip():
        return None
    try:
        found = [int(word) for word in canary.split(",")]
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] != 100 or found != sorted(set(found)):
        raise InvalidInput(
            "canary", f"{canary!r} is no list of rising percentages that ends with 100", "Write 10,50,100 or nothing."
        )
    return found


def checked_name(endpoint: str, environment: str) -> str:
    """Return the endpoint's name if it can be one; the node must not be paid before that is known.

    Raises:
        InvalidInput: naming ``endpoint`` or ``environment``.
    """
    try:
        return parsed(ServingRequest, {"name": endpoint, "environment": environment}).name
    except InvalidInput as error:
        field = "endpoint" if error.field == "name" else error.field
        raise InvalidInput(field, error.args[1], error.remedy) from None


def checked_inputs(dataset: str) -> dict[str, str]:
    """Return what the node gets as input: nothing for the data that scikit-learn ships.

    Raises:
        InvalidInput: there is no such file.
    """
    if not dataset:
        return {}
    path = Path(dataset.removeprefix("file://"))
    if "\0" in dataset or not path.is_file():
        raise InvalidInput("dataset", f"{dataset!r} is not a file", "Give the path of a .npz file, or nothing.")
    return {DATASET: str(path.absolute())}


def serving_options(canary: list[int] | None, expires_minutes: int | None) -> dict[str, Any]:
    """What `deploy` is told besides the model and the name; what is not said stays as the endpoint has it."""
    options: dict[str, Any] = {"canary": canary, "expires_minutes": expires_minutes}
    return {name: value for name, value in options.items() if value is not None}


def ask(served: Endpoint, dataset: str | None) -> tuple[int, int]:
    """Ask an endpoint for every held-out image; returns how many were asked, and how many answers are right."""
    _, images, _, labels = split(Path(dataset) if dataset else None)
    answers = served.predict(images)
    return len(answers), sum(int(answer) == int(label) for answer, label in zip(answers, labels, strict=True))


if __name__ == "__main__":
    model_lifecycle()
