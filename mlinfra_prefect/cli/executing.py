"""``exec``: one command on the node of a lease, its output here as it comes, its exit code as ours."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from mlinfra_prefect.cli.logs import Printer, Source, kept_log
from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE, complain
from mlinfra_prefect.errors import InvalidInput, LeaseLost, MlinfraError, NodeError, NotFound, TrainingStopped
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.lifecycle.training import Progress, Work, run_job
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.names import as_line, digest, minted

GRACE_SECONDS = 5.0
"""Between SIGTERM and SIGKILL of a command whose user pressed Ctrl-C."""
SIGNALLED = 128


def execute(lease: str, command: tuple[str, ...]) -> int:
    """Run a command and return its exit code; Ctrl-C ends it on the node, too.

    Raises:
        InvalidInput: no command was given.
        LeaseLost, NodeLost, TrainingStopped: as `run_job` says.
    """
    if not command:
        raise InvalidInput("command", "is missing", "Write: mlinfra-prefect exec LEASE -- COMMAND")
    context = opened()
    found = meant(context, lease)
    if not isinstance(found, LeaseRecord):
        raise NotFound(f"{found.id} is an endpoint, not a lease: nothing can be run on it.")
    record = keeper.wait_ready(context, found.id)
    attempt = record.attempt
    if attempt is None:
        raise LeaseLost(f"Lease {record.id} has no node.")
    node = context.platform(record.platform).node(attempt)
    # Work is known by what it is, so that a retried flow picks it up again. Every exec is a new piece of work,
    # and a look at a running training does not wait for its end.
    work = Work(
        label=as_line(shlex.join(command)), command=command, code_hash=digest("exec", minted()), expects="none",
        beside=True,
    )  # fmt: skip
    jobs: list[str] = []
    output = _Output(node, lambda job: kept_log(context, record.id, job), jobs)
    try:
        done = run_job(context, record.id, work, used=set(), on_progress=output.copy, on_job=jobs.append)
    except KeyboardInterrupt:
        _end(context, record.id, node, work, jobs)
        raise
    except NodeError:
        code = _exit_code(node, jobs)
        if code is None:
            raise
        return code
    finally:
        output.copy()
    if done.artifact is not None:
        complain(f"artifact {done.artifact.id} holds what the command wrote", word="note")
    return int(done.value or DONE)


class _Output:
    """Copies what the command wrote, byte by byte: news come by the line, without progress bars and the last piece."""

    def __init__(self, node: Node, kept: Callable[[str], Path], jobs: list[str]) -> None:
        self._node, self._kept, self._jobs = node, kept, jobs
        self._source: Source | None = None
        self._printer = Printer()

    def copy(self, _: Progress | None = None) -> None:
        """Copy what is new to standard output."""
        if self._source is None and self._jobs:
            job = self._jobs[-1]
            self._source = Source(job, "", (self._node.file(job, "log.txt"),), self._kept(job))
        if self._source is not None:
            self._printer.print(self._source)


def _exit_code(node: Node, jobs: list[str]) -> int | None:
    """The command's own exit code, as a shell tells it; None where it never ran."""
    status = node.status(jobs[-1]) if jobs else None
    if status is None or status.exit_code is None:
        return None
    return SIGNALLED - status.exit_code if status.exit_code < 0 else status.exit_code


def _end(context: Context, lease_id: str, node: Node, work: Work, jobs: list[str]) -> None:
    """End the command on the node and wait until it has; the same work again is the same job."""
    if not jobs or node.status(jobs[-1]) is None:
        return
    complain("ending the command on the node", word="interrupted")
    node.stop(jobs[-1], grace_seconds=GRACE_SECONDS)
    try:
        run_job(context, lease_id, work, used=set())
    except (TrainingStopped, NodeError):
        return
    except MlinfraError as error:
        complain(error.message, word="warning")
