"""A Terraform whose starter was killed is respected until its operation's deadline, and ended after it (rule R3).

Its starter would have done that. Before the deadline nobody signals it: a cancelled apply leaves behind what it made.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

from mlinfra_prefect.keeper.watch import OPERATION_SECONDS, OVERDUE_SECONDS
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.releasing import terraform_runs
from mlinfra_prefect.local.process import carriers, end, holders

OPERATION_LOCK = "operation.lock"
"""In a record's directory: held by its operation, touched when that began."""
GRACE_SECONDS = 10.0
"""Between SIGINT and SIGKILL: time for Terraform to write its state."""


def end_overdue_terraform(context: Context, record: KeptRecord) -> bool:
    """End what runs of Terraform on a record past its recorded deadline. Returns whether none runs now.

    What was ended may have made things that its state does not name: the state is marked suspect first.
    """
    now = context.ledger.now()
    for attempt in terraform_runs(record):
        if attempt.operation_deadline is None or now < attempt.operation_deadline:
            continue
        place = Path(attempt.directory)
        context.open_stack(place, record, attempt.number).mark_suspect(f"{attempt.operation} went past its deadline")
        # By the lock that they inherited, and by the mark: a stranger who opened the file is not ours.
        ours = holders(carriers(record.ledger_id, record.id), place / LOCK_NAME)
        end(ours, grace_seconds=GRACE_SECONDS, first=signal.SIGINT)
    return not terraform_runs(record)


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
