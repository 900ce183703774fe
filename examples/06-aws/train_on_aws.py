"""Train on a machine that is rented from AWS for as long as the block lasts, and say what that was and what it cost.

The price is fixed before anything exists: `max_usd` buys the deadline, and what buys less than it asks for is refused.
Beside `platform` and the money nothing here knows of AWS; with `platform="local"` the same flow trains on this machine.
"""

from __future__ import annotations

from prefect import flow

from mlinfra_prefect import ModelArtifact, evaluate, lease, node

NEEDS = ["scikit-learn", "skops"]
"""Installed on the node before the training: a machine image has a GPU driver and none of this."""


def train_digits(regularisation: float) -> ModelArtifact:
    """Train on the node. scikit-learn is imported here, where it is needed, and not at the top of the file."""
    import skops.io
    from sklearn.linear_model import LogisticRegression

    images, _, labels, _ = split()
    model = LogisticRegression(C=regularisation, max_iter=200).fit(images, labels)
    here = node()
    here.log(f"trained on {len(labels)} images")
    skops.io.dump(model, here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits")


def score_digits(model: ModelArtifact) -> dict[str, float]:
    """Score the stored files of a model on the held-out images, on the node."""
    import skops.io

    _, held_out, _, labels = split()
    return {"accuracy": float(skops.io.load(model.path / "model.skops").score(held_out, labels))}


def split() -> tuple[list[list[float]], list[list[float]], list[int], list[int]]:
    """Return training images, held-out images and the labels of both, scaled to 0…1; the same each time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images / 16, labels, random_state=0, stratify=labels)
    return parts[0].tolist(), parts[1].tolist(), parts[2].tolist(), parts[3].tolist()


@flow(log_prints=True)
def train_on_aws(accelerator: str = "L4:1", max_usd: float = 1.0) -> str:
    """Return the id of the model's artifact, which outlives the machine.

    Args:
        accelerator: what the machine has.
        max_usd: for all of it, over all attempts.
    """
    block = lease(accelerator, platform="aws", name="digits", max_minutes=30, max_usd=max_usd)
    with block as infra:
        work = infra.with_options(requirements=NEEDS)
        model = work.run(train_digits, 0.1)
        scores = evaluate(work, score_digits, model)
    # The machine is gone here, and this is the proof of it.
    receipt = block.receipt
    assert receipt is not None
    print(f"lease {receipt.id}: clean={receipt.clean}, {receipt.cost_usd:.4f} of {max_usd:.2f} USD")
    print(f"accuracy on the node: {scores['accuracy']:.4f}, artifact {model.id}")
    return model.id


if __name__ == "__main__":
    train_on_aws()
