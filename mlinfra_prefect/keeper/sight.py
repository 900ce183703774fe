"""What a home remembers of its ledger, to notice that it got another one: a copy, or one restored from yesterday.

Such a ledger knows nothing of what was created since, so what it does not know is no orphan. It may have a live keeper
in the home that the copy was made of. Until its own deadline such a thing is left alone (rule R8).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import LedgerUnreadable
from mlinfra_prefect.ledger import Versioned
from mlinfra_prefect.lifecycle.context import Context

NAME = "ledger.json"


def unknown_before(context: Context, seen: Sequence[Versioned], *, dry_run: bool = False) -> float:
    """Return the moment (epoch seconds) before which the ledger may have missed records; 0.0: it never has.

    Looks whether the file is the one of the last pass, and whether the newest record of that pass is still in it. A
    home whose first pass this is may have been given a copy of somebody's ledger, so nothing is known of before it.

    Args:
        context: where.
        seen: the records of this pass, to remember the newest of them.
        dry_run: remember nothing.
    """
    path = context.home.keeper / NAME
    before = read_json_if_there(path) or {}
    since = float(before.get("unknown_before") or 0.0)
    inode = context.home.ledger.stat().st_ino if context.home.ledger.exists() else None
    newest = str(before.get("newest") or "")
    if not before or before.get("inode") != inode or not _knows(context, newest):
        since, newest = time.time(), ""
    latest = max(seen, key=lambda each: each.record.created_at, default=None)
    now = {
        "ledger_id": context.ledger.ledger_id, "inode": inode, "unknown_before": since,
        "newest": latest.record.id if latest is not None else newest,
    }  # fmt: skip
    if now != before and not dry_run:
        with contextlib.suppress(OSError):  # a full disk: the next pass remembers
            write_json(path, now)
    return since


def _knows(context: Context, record_id: str) -> bool:
    try:
        return not record_id or context.ledger.read(record_id) is not None
    except LedgerUnreadable:
        return True
