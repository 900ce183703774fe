"""Where a job's artifact will come from, written down in the home before the job is handed over."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.lease import LeaseRecord


def payload(lineage: Lineage, makers: Sequence[Any]) -> dict[str, Any]:
    """Return a lineage, and who made the checkpoints that a job may resume from, as plain JSON. Pure."""
    return {**asdict(lineage), "makers": list(makers)}


def parse(values: dict[str, Any]) -> tuple[Lineage, list[Any]]:
    """Return what `payload` wrote. Pure.

    Raises:
        KeyError, TypeError: it is none.
    """
    fields = dict(values)
    makers = list(fields.pop("makers"))
    return Lineage(**fields), makers


def note_lineage(context: Context, record: LeaseRecord, job_id: str, lineage: Lineage, makers: Sequence[Any]) -> None:
    """Write down where a job's artifact will come from: durable, and where the node cannot reach it (rule R15)."""
    path = lineage_file(context, record.id, job_id)
    private_folder(path.parent)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as stream:
        stream.write(json.dumps(payload(lineage, makers)))
        stream.flush()
        os.fsync(stream.fileno())


def noted_lineage(context: Context, record: LeaseRecord, job_id: str) -> tuple[Lineage, list[Any]]:
    """Return what was written down.

    Raises:
        OSError, ValueError, KeyError, TypeError: nothing that can be read.
    """
    return parse(json.loads(lineage_file(context, record.id, job_id).read_bytes()))


def lineage_file(context: Context, lease_id: str, job_id: str) -> Path:
    """Where that is: beside the node's directory and not inside it, for it is not the node's to write."""
    return context.home.record_dir(lease_id) / "lineage" / f"{job_id}.json"
