"""Handing a job to an agent: write its directory beside the others under a hidden name, then rename it into place.

The agent sees the whole job or none of it, however slowly its code and arguments were written.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from . import secrets
from .folders import private_folder
from .wire import ARGS, JOB, JOBS, STOP, sync_directory, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from .specs import JobSpec, StopOrder


class JobExists(FileExistsError):
    """A job of that id was handed in already."""


def job_directory(node_dir: Path, job_id: str) -> Path:
    """Where a job lies once it is handed in."""
    return node_dir / JOBS / job_id


def stage(node_dir: Path, job_id: str) -> Path:
    """Make an invisible directory for a job and return it; what was left of a former try is removed.

    Put the code archive into it, and what `codecs.encode` writes into its ``args/``.
    """
    staging = node_dir / JOBS / f".{job_id}"
    shutil.rmtree(staging, ignore_errors=True)
    private_folder(staging / ARGS)
    return staging


def hand_in(node_dir: Path, staging: Path, job: JobSpec) -> Path:
    """Make a staged job visible to the agent; returns its directory. Atomic.

    With secrets, the pipe is made here; call `secrets.serve_secrets` with the returned directory.

    Raises:
        JobExists: the id is taken; the staged directory is left as it is.
        SpecError: the job is not what the agent accepts (checked here, where it can still be shown).
    """
    type(job).from_payload(job.to_payload())
    write_json(staging / JOB, job.to_payload(), durable=True)
    if job.secrets:
        secrets.make_fifo(staging)
    target = job_directory(node_dir, job.job_id)
    if target.exists():
        raise JobExists(f"a job {job.job_id!r} was handed in already")
    staging.rename(target)
    sync_directory(target.parent)
    return target


def stop(directory: Path, order: StopOrder) -> None:
    """Order one job (its directory) or the whole node (the node directory) to stop. Returns at once; idempotent."""
    write_json(directory / STOP, order.to_payload())
