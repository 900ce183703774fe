"""A real flow that leases and trains, for the rows that kill parts of Prefect; a run copies it into a project."""

from __future__ import annotations

import os
import sys
import time

from prefect import flow

from mlinfra_prefect import ModelArtifact, lease, node


def fit(seconds: float) -> ModelArtifact:
    """Train for some seconds, or until told to stop."""
    (node().output_dir / "model.json").write_text("{}")
    end = time.monotonic() + seconds
    while time.monotonic() < end and not node().should_stop:
        time.sleep(0.05)
    return node().artifact(format="json")


@flow
def doomed(seconds: float = 2.0) -> str:
    """One lease for a block."""
    if os.environ.get("CHAOS_PLATFORM") == "aws":  # a minute of an emulated machine's dead-man is shorter; no secrets
        with lease("cpu", platform="aws", max_minutes=120, grace_seconds=5) as infra:
            return str(infra.run(fit, seconds).id)
    with lease("cpu", max_minutes=5, grace_seconds=5) as infra:
        return str(infra.with_options(secrets={"CHAOS_SECRET": "env:CHAOS_CANARY"}).run(fit, seconds).id)


if __name__ == "__main__" and sys.argv[1:] == ["serve"]:
    doomed.serve(name="served")
