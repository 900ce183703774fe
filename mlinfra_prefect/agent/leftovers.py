"""What stays of a node's directory on the client's machine when the node is gone: its logs."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Final

KEPT_OF_A_JOB: Final = frozenset({"log.txt", "events.jsonl", "status.json"})


def keep_logs_only(node_dir: Path, attempt: int) -> None:
    """Copy the logs of an attempt's node to ``logs`` above it, and delete the rest. Idempotent; never raises OSError.

    Files never stop a release: what cannot be copied or deleted stays as it is.
    """
    if not node_dir.is_dir():
        return
    logs = node_dir.parent.parent / "logs"
    with contextlib.suppress(OSError):
        logs.mkdir(mode=0o700, exist_ok=True)
        for log in node_dir.glob("jobs/*/*"):
            if log.name in KEPT_OF_A_JOB and log.is_file() and not log.is_symlink():
                shutil.copyfile(log, logs / f"{log.parent.name}.{log.name}")
        for log in node_dir.glob("*.log"):
            shutil.copyfile(log, logs / f"{attempt}.{log.name}")
    shutil.rmtree(node_dir, ignore_errors=True)
    shutil.rmtree(node_dir.parent / "staging", ignore_errors=True)
