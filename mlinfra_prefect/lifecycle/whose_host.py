"""Which host answers for a record: what runs on the platform ``local`` can be seen and proven gone there only.

With a shared ledger every host sees every record. A sweep of another host would find nothing of a local one, and call
it released while it runs.
"""

from __future__ import annotations

import socket
from datetime import datetime
from pathlib import Path

from mlinfra_prefect.agent.identity import boot
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.process import is_here
from mlinfra_prefect.model.lease import AttemptState
from mlinfra_prefect.model.process import ProcessIdentity


def on_another_host(context: Context, record: KeptRecord) -> str | None:
    """Return the name of the host that a local record of a shared ledger belongs to; None: it may be kept here."""
    if not context.shared or record.platform != "local":
        return None
    if record.keeper is None and not record.attempts and record.keeper_place == "service":
        return None  # nothing of it exists yet, and it is on the host of whichever service claims it
    process = record.keeper.process if record.keeper else record.client.process
    host = process.host if process else record.owner.host
    named, here = host == socket.gethostname(), process is not None and is_here(process)
    if named == here:  # both its name and its boot, which stays when a host is renamed, or neither
        return None if here else host
    # Booted again since, or a host, or a container beside this one, of the same name or boot? Only on the right one
    # lies the record's directory, made before its first attempt.
    if not record.attempts or any(_is_there(Path(each.directory).parents[1]) for each in record.attempts):
        return None
    return host


def busy_until(record: KeptRecord) -> datetime:
    """Until when a keeper that cannot be looked at from here may still be at work on a record (rule R6).

    On this kernel (it was in a container, say) that is as long as it renews: the lock of a Terraform that is left tells
    of it. Of another host nobody can know, so an operation in flight is respected until its deadline.
    """
    if record.keeper is None or _same_kernel(record.keeper.process):
        return record.renewed_until
    left = [each.operation_deadline for each in record.attempts if each.state is not AttemptState.RELEASED]
    return max([record.renewed_until, *(deadline for deadline in left if deadline is not None)])


def _is_there(directory: Path) -> bool:
    try:
        return directory.exists()
    except OSError:
        return False  # in another user's home


def _same_kernel(process: ProcessIdentity | None) -> bool:
    return process is not None and process.boot.partition("/")[0] == boot().partition("/")[0]
