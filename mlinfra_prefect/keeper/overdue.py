"""A Terraform whose starter was killed is respected until its operation's deadline, and ended after it (rule R3).

Its starter would have done that. Before the deadline nobody signals it: a cancelled apply leaves behind what it made.

Terraform may be killed and its provider not: that one keeps the stack's lock, for ever where it has nothing more to
say. Nobody will ever write down what it does, so it gets the time for the answer to one call, and is ended.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mlinfra_prefect.agent import identity
from mlinfra_prefect.keeper.watch import OPERATION_SECONDS, OVERDUE_SECONDS
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.releasing import terraform_runs
from mlinfra_prefect.local.process import carriers, end, holders
from mlinfra_prefect.model.lease import Attempt
from mlinfra_prefect.terraform.process import ORPHAN_SECONDS

OPERATION_LOCK = "operation.lock"
"""In a record's directory: held by its operation, touched when that began."""
GRACE_SECONDS = 10.0
"""Between SIGINT and SIGKILL: time for Terraform to write its state."""
PROVIDER = "terraform-provider-"
"""How the programs of all providers are called."""


def end_overdue_terraform(context: Context, record: KeptRecord) -> bool:
    """End what runs of Terraform on a record and need not be waited for. Returns whether none runs now.

    That is all of it past its recorded deadline, and before that a provider whose Terraform is dead. What was ended may
    have made things that its state does not name: the state is marked suspect first.
    """
    for attempt in terraform_runs(record):
        place = Path(attempt.directory)
        ours = _holders(record, attempt)
        overdue = _overdue(context, attempt)
        if not overdue and not orphaned(ours):
            continue
        why = "went past its deadline" if overdue else "lost its Terraform"
        context.open_stack(place, record, attempt.number).mark_suspect(f"{attempt.operation} {why}")
        if overdue:
            end(ours, grace_seconds=GRACE_SECONDS, first=signal.SIGINT)
        else:
            _, alive = psutil.wait_procs(ours, timeout=ORPHAN_SECONDS)
            end(alive, grace_seconds=0.0, first=signal.SIGKILL)
    return not terraform_runs(record)


def must_wait_for(context: Context, record: KeptRecord) -> bool:
    """Whether a Terraform runs on a record that `end_overdue_terraform` would leave alone."""
    return any(
        not _overdue(context, attempt) and not orphaned(_holders(record, attempt)) for attempt in terraform_runs(record)
    )


def orphaned(processes: Sequence[psutil.Process]) -> bool:
    """Whether processes that hold a stack's lock are providers alone, whose Terraform is dead.

    Terraform leads the session that its providers are in, and no pid is given away while a session has its number.
    """
    return bool(processes) and all(map(_is_orphan, processes))


def _is_orphan(process: psutil.Process) -> bool:
    try:
        leader = os.getsid(process.pid)
        return Path(process.exe()).name.startswith(PROVIDER) and leader > 0 and identity.start_time(leader) is None
    except (psutil.Error, OSError):
        return False


def _holders(record: KeptRecord, attempt: Attempt) -> list[psutil.Process]:
    # By the lock that they inherited, and by the mark: a stranger who opened the file is not ours.
    return holders(carriers(record.ledger_id, record.id), Path(attempt.directory) / LOCK_NAME)


def _overdue(context: Context, attempt: Attempt) -> bool:
    deadline = attempt.operation_deadline
    return deadline is not None and context.ledger.now() >= deadline


def end_overdue_operation(context: Context, record: KeptRecord) -> None:
    """End an operation that hangs, and that no watcher ends because its own is dead: it blocks its record for ever.

    Before its deadline it is respected. It is killed alone, never what it started: its Terraform goes on, and has a
    deadline of its own.
    """
    path = context.home.record_dir(record.id) / OPERATION_LOCK
    deadlines = [context.here(each.operation_deadline) for each in record.attempts if each.operation_deadline]
    with suppress(OSError):
        until = max(path.stat().st_mtime + OPERATION_SECONDS, *(each + OVERDUE_SECONDS for each in deadlines), 0.0)
        if time.time() > until:
            # Its own operation, or one that saw to the meters of many: that one is nobody's in particular.
            ours = [*carriers(record.ledger_id, record.id), *carriers(record.ledger_id, "")]
            end(holders(ours, path), grace_seconds=GRACE_SECONDS, first=signal.SIGKILL)
