"""The trainings of these tests: each does one thing that a keeper must cope with."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from mlinfra_prefect.agent.node import node


def write_model(text: str = "a model") -> None:
    (node().output_dir / "model.txt").write_text(text)


def quick() -> None:
    """End at once."""
    write_model()


def until_told() -> None:
    """Train until it is told to stop; then commit a checkpoint and end."""
    here = node()
    assert not here.should_stop
    print(f"training, resumed={here.resumed}", flush=True)
    while not here.should_stop:
        time.sleep(0.02)
    (here.checkpoint_dir / "weights.txt").write_text("weights")
    here.commit_checkpoint(7)


def for_seconds(seconds: str) -> None:
    """Train for a while, whatever happens around it."""
    print("training", flush=True)
    time.sleep(float(seconds))
    write_model(f"resumed={node().resumed}")


def stubborn() -> None:
    """Hear nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("training", flush=True)
    time.sleep(600)


def breeder() -> None:
    """Leave a daemon behind that left the process group: only its mark can find it."""
    subprocess.Popen(
        [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"],
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    write_model()


def until_file(path: str) -> None:
    """Train until the test has made a file."""
    print("training", flush=True)
    while not Path(path).exists():
        time.sleep(0.02)
    write_model()


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
