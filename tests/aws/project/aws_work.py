"""What runs on the machines of the emulated AWS."""

from __future__ import annotations

import hashlib
import json
import os
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.node import node
from mlinfra_prefect.model.artifact import ModelArtifact


def scaled(rows: Any, by: float) -> Any:
    """An array in, an array out."""
    return rows * by


def whoami() -> dict[str, str]:
    """What the training sees of where it runs, and of who rented it."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "MLINFRA_"))}
    return {**kept, "cwd": os.getcwd(), "home": os.environ.get("HOME", "")}


def fit(rows: Any, steps: int = 3) -> ModelArtifact:
    """Learn a mean, tell of it, and leave it as a model; go on from a checkpoint where there is one."""
    here = node()
    begun = int((here.checkpoint_dir / "step.txt").read_text()) if here.resumed else 0
    for step in range(begun, steps):
        print(f"step {step}", flush=True)
        here.progress((step + 1) / steps, f"step {step}")
        here.metrics(step=step, loss=1.0 / (step + 1))
    (here.output_dir / "model.json").write_text(json.dumps({"mean": float(rows.mean()), "begun": begun}))
    return here.artifact(format="json", metrics={"mean": float(rows.mean())})  # type: ignore[return-value]


def of_input(name: str) -> str:
    """What lies in an input."""
    return "".join(
        path.read_text() for path in sorted(Path(os.environ[f"MLINFRA_INPUT_{name.upper()}"]).rglob("*.txt"))
    )


def version_of(distribution: str) -> str:
    """Which version of a package the training has."""
    return metadata.version(distribution)


def of_secrets(*names: str) -> dict[str, list[str]]:
    """Hashes of secrets, and where they lie while this training knows them: on this node, and in other processes."""
    values = [os.environ[name] for name in names]
    root = Path(os.environ["MLINFRA_OUTPUT_DIR"]).parents[2]
    assert (root / "agent.json").exists()
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    others = [entry for entry in Path("/proc").iterdir() if entry.name.isdecimal() and int(entry.name) != os.getpid()]

    def holds(path: Path) -> bool:
        try:
            return any(value.encode() in path.read_bytes() for value in values)
        except OSError:
            return False

    return {
        "hashes": [hashlib.sha256(value.encode()).hexdigest() for value in values],
        "files": [str(path) for path in files if holds(path)],
        "processes": [entry.name for entry in others if holds(entry / "environ") or holds(entry / "cmdline")],
    }


def until_told(step: int) -> int:
    """Train until it is told to stop; then commit a checkpoint and return."""
    here = node()
    print(f"training, resumed={here.resumed}", flush=True)
    while not here.should_stop:
        time.sleep(0.02)
    (here.checkpoint_dir / "step.txt").write_text(str(step))
    here.commit_checkpoint(step=step)
    return step


def resumes() -> dict[str, object]:
    """What a second lease finds of the first one's work."""
    here = node()
    path = here.checkpoint_dir / "step.txt"
    return {"resumed": here.resumed, "step": path.read_text() if path.exists() else None}


def refuses(kind: str) -> None:
    raise ValueError(kind, 1)


def other_mailboxes() -> list[str]:
    """Other nodes' mailboxes beside this one's, as far as a path can reach them."""
    return sorted(str(path) for path in Path.cwd().glob("../../../*/in/*"))
