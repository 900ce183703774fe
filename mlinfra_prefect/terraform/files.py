"""Writes private files so that no reader ever sees half of one: mode 0600, in a directory of mode 0700, by rename."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder


def write_private(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
    """Replaces the file atomically; ``durable`` also forces the content to disk before the rename."""
    private_folder(path.parent)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
