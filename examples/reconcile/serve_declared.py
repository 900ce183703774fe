"""Train and serve one model, and leave it serving: from here on `endpoints.yaml` says how."""

from __future__ import annotations

from prefect import flow

from mlinfra_prefect import ModelArtifact, deploy, lease, node


def train_digits() -> ModelArtifact:
    """Train on the node and save the model there."""
    import skops.io
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    images, labels = load_digits(return_X_y=True)
    here = node()
    skops.io.dump(LogisticRegression(max_iter=200).fit(images / 16, labels), here.output_dir / "model.skops")
    return here.artifact(format="sklearn-skops", name="digits")


@flow(log_prints=True)
def serve_declared() -> str:
    """Train, give the node back, serve; return the endpoint's URL."""
    with lease("cpu", name="digits", max_minutes=10) as infra:
        model = infra.run(train_digits)
    endpoint = deploy(model, serving="digits-declared", expires_minutes=30)
    print(f"artifact {model.id} is served as {endpoint.name}")
    return endpoint.url


if __name__ == "__main__":
    serve_declared()
