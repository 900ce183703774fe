"""Train the same model with three settings, each on a node of its own, and keep the best.

`@gpu` makes the body of a task run on a leased node: the lease is asked for when the task is called, and given back
when the call returns. `.map` still maps, so three settings are three leases side by side.
"""

from __future__ import annotations

from prefect import flow, task

from mlinfra_prefect import ModelArtifact, gpu, node


@task
@gpu("cpu", max_minutes=5)
def fit(regularisation: float) -> ModelArtifact:
    """Train on the node. scikit-learn is imported here, where it is needed, and not at the top of the file."""
    import skops.io
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    images, held_out, labels, held_out_labels = train_test_split(images, labels, random_state=0, stratify=labels)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=regularisation, max_iter=200)).fit(images, labels)
    here = node()
    skops.io.dump(model, here.output_dir / "model.skops")
    accuracy = float(model.score(held_out, held_out_labels))
    return here.artifact(format="sklearn-skops", name="digits", metrics={"accuracy": accuracy})


@flow(log_prints=True)
def sweep_digits(settings: tuple[float, ...] = (0.001, 0.1, 10.0)) -> str:
    """Return the id of the best model's artifact."""
    models = [future.result() for future in fit.map(list(settings))]
    for setting, model in zip(settings, models, strict=True):
        print(f"C={setting:g}: accuracy {model.metrics['accuracy']:.4f}, trained on lease {model.lease_id}")
    best = max(models, key=lambda model: model.metrics["accuracy"])
    print(f"best: artifact {best.id}, {len(best.files)} file, sha256 {best.sha256[:16]}")
    return best.id


if __name__ == "__main__":
    sweep_digits()
