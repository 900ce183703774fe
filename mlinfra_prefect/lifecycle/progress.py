"""Liveness by progress: a training that hangs while every process around it lives (rule R4).

The node's launcher keeps the limit (`progress_timeout_minutes`): silence is *checkpoint now*, then the end of the job,
and who follows the job decides what becomes of the lease. The keeper looks after the rest: a job that was ended so and
to which nobody attends, and one whose launcher hangs, too. A lease of such a job is not worth renewing.
"""

from __future__ import annotations

import json
from contextlib import suppress

from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.model.lease import JobNote

NO_PROGRESS = "no progress for"
"""How the launcher's reason begins."""
UNATTENDED_SECONDS = 30.0
"""A client that follows its job notes the end of it within a moment."""
LAUNCHER_SECONDS = 60.0
"""What a launcher may take beyond the limit and the grace."""
_OVER = frozenset({"succeeded", "failed", "stopped"})


def why_hung(node: Node, jobs: tuple[JobNote, ...], now: float) -> str | None:
    """Say which job makes no progress and is attended to by nobody; None: there is none.

    Args:
        node: where they run.
        jobs: as the record remembers them; those whose end was noted have had their client's attention.
        now: seconds since the epoch, on the node's clock.
    """
    for job in jobs:
        status = node.status(job.job_id) if job.state not in _OVER else None
        if status is None:
            continue
        if status.ended:
            silent = status.state == "stopped" and NO_PROGRESS in status.reason
            if silent and status.finished_at is not None and now - status.finished_at > UNATTENDED_SECONDS:
                return f"job {job.job_id}: {status.reason}; nobody attends to it"
            continue
        limit, grace = _limits(node, job.job_id)
        if limit is None or status.started_at is None:
            continue
        moved = status.started_at
        with suppress(OSError):
            moved = max(moved, node.file(job.job_id, "events.jsonl").stat().st_mtime)
        if now - moved > limit + grace + LAUNCHER_SECONDS:
            return f"job {job.job_id}: {NO_PROGRESS} {limit:g} s, and its launcher does not end it"
    return None


def _limits(node: Node, job_id: str) -> tuple[float | None, float]:
    """The seconds without progress that a job may have (None: any), and its grace."""
    try:
        job = json.loads(node.file(job_id, "job.json").read_bytes())
    except (OSError, ValueError):
        return None, 0.0
    limit, grace = job.get("progress_timeout_seconds"), job.get("grace_seconds")
    return (float(limit) if limit is not None else None), float(grace or 0.0)
