"""What a successful training leaves behind, copied to where the client collects it.

``manifest.json`` is written last and atomically: an upload without it never happened.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from . import events
from .folders import private_folder
from .transfer import copy_tree, tree
from .wire import DRAFT, MANIFEST, MANIFEST_SCHEMA, OUTPUTS, read_json_if_there, write_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def upload(job_dir: Path, upload_dir: Path, metrics: Mapping[str, float], tick: Callable[[], None]) -> int:
    """Copy the outputs to ``upload_dir/files`` durably, then write the manifest; returns the number of files.

    Raises:
        TransferError: the outputs hold a link that leads out of them, a socket, a pipe or a device.
        OSError: the place cannot be written.
    """
    private_folder(upload_dir)
    (upload_dir / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(upload_dir / "files", ignore_errors=True)
    outputs = job_dir / OUTPUTS
    entries = copy_tree(outputs, upload_dir / "files", tree(outputs), tick)
    payload = {
        "schema": MANIFEST_SCHEMA,
        "files": [entry.to_payload() for entry in entries],
        "metrics": {name: events.as_json(value) for name, value in metrics.items()},
        "draft": read_json_if_there(job_dir / DRAFT),
    }
    write_json(upload_dir / MANIFEST, payload, durable=True)
    return len(entries)
