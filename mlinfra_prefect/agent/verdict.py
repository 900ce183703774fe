"""How a training that ended is judged: the one table from what is on disk to succeeded, failed or stopped.

Kept apart from the process that watches, because these rules are what users argue about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .exits import exit_reason
from .specs import JobSpec
from .status import JobFailure
from .transfer import TransferError, tree
from .wire import ERROR, FAILED, OUTPUTS, RESULT, STOPPED, read_json_if_there


@dataclass(frozen=True)
class Verdict:
    """A final state other than success: why, and the training's error if it had one."""

    state: str
    reason: str
    error: JobFailure | None = None


def failed(type_name: str, message: str) -> Verdict:
    """A failure that we found, and not the training."""
    return Verdict(FAILED, message, JobFailure(type_name, message))


def judge(
    job: JobSpec,
    job_dir: Path,
    code: int,
    metrics: Mapping[str, float],
    *,
    stopped: str | None,
    out_of_memory: bool,
) -> Verdict | None:
    """The verdict on a training that ended, or None when it succeeded and its outputs are to be uploaded.

    Args:
        job: what was asked.
        job_dir: where it ran.
        code: its exit code, negative for a signal.
        metrics: the last value of each metric.
        stopped: why it was told to stop; None when it was not.
        out_of_memory: whether the kernel's out-of-memory killer was seen at work meanwhile.
    """
    error = _error(job_dir)
    has_result = (job_dir / RESULT).exists()
    try:
        has_output = bool(tree(job_dir / OUTPUTS))
    except TransferError as problem:
        return failed("BadOutput", f"the output directory cannot be uploaded: {problem}")
    if stopped is not None:
        # Told to stop, but it had finished: the work is done and is not thrown away.
        evidence = {"result": has_result, "model": has_output, "none": False}[job.expects]
        if code != 0 or not evidence:
            return Verdict(STOPPED, stopped, error)
    if code != 0 or error is not None:
        return Verdict(FAILED, f"the training {exit_reason(code, out_of_memory=out_of_memory)}", error)
    bad = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
    if job.check_metrics and bad is not None:
        return failed("BadMetrics", f"the last value of the metric {bad!r} is {metrics[bad]}")
    if job.expects == "model" and not has_output:
        return failed("NoModel", "the training wrote nothing to its output directory (MLINFRA_OUTPUT_DIR)")
    if job.expects == "result" and job.kind == "callable" and not has_result:
        return failed("NoResult", "the training process exited with 0 before the function returned")
    return None


def _error(job_dir: Path) -> JobFailure | None:
    payload: dict[str, Any] | None = read_json_if_there(job_dir / ERROR)
    return None if payload is None else JobFailure(**{**payload, "args": tuple(payload.get("args") or ())})
