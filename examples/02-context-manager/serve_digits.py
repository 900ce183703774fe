"""One lease for a training and its evaluation; then the model is served, asked, and given back.

The node exists inside the `with` block and nowhere else. The training commits checkpoints under a resume key, so that
the next run goes on where this one was when its node was lost.
"""

from __future__ import annotations

import json

from prefect import flow

from mlinfra_prefect import ModelArtifact, deploy, evaluate, lease, node, release

EPOCHS = 20


def train_digits(learning_rate: float) -> ModelArtifact:
    """Train in epochs, telling progress and metrics, committing a checkpoint after each fifth."""
    import numpy as np
    import skops.io
    from sklearn.linear_model import SGDClassifier

    images, _, labels, _ = split()
    here = node()
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=learning_rate, random_state=0)
    saved, began = here.checkpoint_dir / "model.skops", 0
    if here.resumed:
        model = skops.io.load(saved)
        began = json.loads((here.checkpoint_dir / "epoch.json").read_text())
        here.log(f"resumed after epoch {began}")
    for epoch in range(began + 1, EPOCHS + 1):
        model.partial_fit(images, labels, classes=np.arange(10))
        here.metrics(step=epoch, training_accuracy=float(model.score(images, labels)))
        here.progress(epoch / EPOCHS)
        if epoch % 5 == 0 or here.should_stop:
            skops.io.dump(model, saved)
            (here.checkpoint_dir / "epoch.json").write_text(json.dumps(epoch))
            here.commit_checkpoint(epoch)
        if here.should_stop:
            raise SystemExit("told to stop; the checkpoint is committed")
    skops.io.dump(model, here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits", epochs=EPOCHS)


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
def serve_digits(learning_rate: float = 0.05, data: str = "2026-11") -> float:
    """Train, evaluate, deploy, predict, release; return the accuracy as asked of the endpoint.

    Args:
        learning_rate: of the training.
        data: the version of the data. It is part of the resume key, because a key names one piece of work: with the
            same key a second run would resume the finished training and have nothing to do.
    """
    block = lease("cpu", name="digits", max_minutes=10)
    with block as infra:
        model = infra.with_options(resume=f"digits-{data}-{learning_rate}").run(train_digits, learning_rate)
        scores = evaluate(infra, score_digits, model)
    # The node is gone here, and this is the proof of it.
    assert block.receipt is not None
    print(f"lease {block.receipt.id}: clean={block.receipt.clean}, destroyed {', '.join(block.receipt.destroyed)}")
    print(f"accuracy on the node: {scores['accuracy']:.4f}")

    endpoint = deploy(model, serving="digits-example", expires_minutes=10)
    _, held_out, _, labels = split()
    answers = endpoint.predict(held_out)
    accuracy = sum(int(answer) == label for answer, label in zip(answers, labels, strict=True)) / len(labels)
    print(f"accuracy as asked of {endpoint.url}: {accuracy:.4f}")
    receipt = release(endpoint)
    print(f"endpoint {receipt.id}: clean={receipt.clean}")
    return accuracy


if __name__ == "__main__":
    serve_digits()
