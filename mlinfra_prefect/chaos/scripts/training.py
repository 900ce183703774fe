"""The training of the fault tests: a second or two of work, a checkpoint when it is told to stop, one file."""

from __future__ import annotations

import os
import sys
import time

from mlinfra_prefect.agent.node import node

POLL_SECONDS = 0.02


def main(seconds: float, *secrets: str) -> None:
    """Train for some seconds, or until told to stop; then commit a checkpoint and leave a model."""
    here = node()
    if any(name not in os.environ for name in secrets):
        sys.exit("the secret did not arrive")
    until = time.monotonic() + seconds
    while time.monotonic() < until and not here.should_stop:
        time.sleep(POLL_SECONDS)
    (here.checkpoint_dir / "weights.txt").write_text("weights")
    here.commit_checkpoint(1)
    (here.output_dir / "model.txt").write_text("a model")


if __name__ == "__main__":
    main(float(sys.argv[1]), *sys.argv[2:])
