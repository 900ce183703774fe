"""Four candidates for one endpoint: the first, a better one, one that the gate refuses, one that the probe rolls back.

The last one is the reason for having both. Its training and its scoring share a mistake (they invert the images), so
its score is fine and the gate sees nothing. Clients send images as they are: what the canary answers to them tells.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection

from prefect import flow

from mlinfra_prefect import Canary, Endpoint, ModelArtifact, current, deploy, evaluate, gate, lease, node, release
from mlinfra_prefect.errors import ProbeFailed

NAME = "digits-rollout"
ASKED = 100


def train_digits(regularisation: float, inverted: bool) -> ModelArtifact:
    """Train on the node."""
    import skops.io
    from sklearn.linear_model import LogisticRegression

    images, _, labels, _ = split(inverted=inverted)
    model = LogisticRegression(C=regularisation, max_iter=200).fit(images, labels)
    here = node()
    skops.io.dump(model, here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits", inverted=inverted)


def score_both(candidate: ModelArtifact, served: ModelArtifact | None) -> dict[str, float]:
    """Score the candidate and the model that is served now on the same held-out images, on the node."""
    import skops.io

    scores = {}
    for who, model in (("candidate", candidate), ("current", served)):
        if model is not None:
            _, held_out, _, labels = split(inverted=bool(model.metadata["inverted"]))  # the mistake that is shared
            scores[f"{who}.accuracy"] = float(skops.io.load(model.path / "model.skops").score(held_out, labels))
    return scores


def split(*, inverted: bool = False) -> tuple[list[list[float]], list[list[float]], list[int], list[int]]:
    """Return training images, held-out images and the labels of both, scaled to 0…1; the same each time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = 1 - images / 16 if inverted else images / 16
    parts = train_test_split(images, labels, random_state=0, stratify=labels)
    return parts[0].tolist(), parts[1].tolist(), parts[2].tolist(), parts[3].tolist()


def ask_as_clients_do(url: str, token: str | None, rows: list[list[float]]) -> str:
    """Ask the endpoint's URL for one row at a time, and say which version answered how often."""
    answered: Counter[str] = Counter()
    connection = HTTPConnection(url.removeprefix("http://"), timeout=30)
    for row in rows[:ASKED]:
        tensor = {"name": "input", "shape": [1, len(row)], "datatype": "FP64", "data": row}
        question = json.dumps({"inputs": [tensor], "outputs": [{"name": "predict"}]})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        connection.request("POST", f"/v2/models/{NAME}/infer", question, headers)
        answer = connection.getresponse()
        answer.read()
        answered[answer.headers["Mlinfra-Version"]] += 1
    connection.close()
    return ", ".join(f"version {version} answered {count}" for version, count in sorted(answered.items()))


def check_of(url: str | None, rows: list[list[float]], labels: list[int]) -> Callable[[Canary], str | None]:
    """Return the function that judges each step of a rollout. It runs here, in the flow's process."""

    def check(canary: Canary) -> str | None:
        if canary.share == 0:
            return None  # it gets no requests yet, and the samples are asked by the keeper
        if url is not None:
            print(f"at {canary.share} %: of {ASKED} requests {ask_as_clients_do(url, canary.token, rows)}")
        right = sum(int(a) == label for a, label in zip(canary.predict(rows), labels, strict=True)) / len(labels)
        return None if right >= 0.8 else f"only {right:.0%} of the held-out images are recognised"

    return check


def roll_out(regularisation: float, *, inverted: bool = False, url: str | None = None) -> Endpoint | None:
    """Train a candidate and serve it if it is good enough; return the endpoint, or None where the gate refused.

    Args:
        regularisation: of the training.
        inverted: the mistake.
        url: of the endpoint; None: there is none yet.
    """
    with lease("cpu", name="digits", max_minutes=10) as infra:
        model = infra.run(train_digits, regularisation, inverted)
        scores = evaluate(infra, score_both, model, current(NAME))
    # The node is gone here: nothing below pays for it.
    verdict = gate(scores, by=-0.01, floors={"accuracy": 0.8})
    print(f"{'passed' if verdict else 'REFUSED'} by the gate: {verdict.reason}")
    if not verdict:
        return None
    _, rows, _, labels = split()
    return deploy(
        model,
        serving=NAME,
        expires_minutes=30,
        canary=[10, 50, 100],  # the first version has nobody to share with and skips them
        probe={
            "seconds": 1.0,
            "min_requests": 5,
            "samples": rows[:50],
            "min_agreement": 0.7,
            "check": check_of(url, rows, labels),
        },
    )


@flow(log_prints=True)
def rollout_digits() -> str:
    """Roll four candidates out, and return what is served at the end."""
    _, rows, _, _ = split()
    endpoint = roll_out(0.0005)
    assert endpoint is not None
    try:
        print(f"first: of {ASKED} requests {ask_as_clients_do(endpoint.url, endpoint.token, rows)}")

        roll_out(1.0, url=endpoint.url)
        print(f"better: of {ASKED} requests {ask_as_clients_do(endpoint.url, endpoint.token, rows)}")

        refused = roll_out(0.0001, url=endpoint.url)
        assert refused is None
        print(f"worse: of {ASKED} requests {ask_as_clients_do(endpoint.url, endpoint.token, rows)}")

        try:
            roll_out(1.0, inverted=True, url=endpoint.url)
        except ProbeFailed as error:
            print(f"ROLLED BACK by the probe: {error}")
        served = ask_as_clients_do(endpoint.url, endpoint.token, rows)
        print(f"inverted: of {ASKED} requests {served}")
    finally:
        print(f"endpoint {endpoint.id}: clean={release(endpoint).clean}")
    return served


if __name__ == "__main__":
    rollout_digits()
