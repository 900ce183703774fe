"""Resume keys: where checkpoints outlive leases, who may use a key now, and whose code made what is there."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import LeaseHeld, ResumeHeld
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.names import digest

WAIT_BEYOND_GRACE_SECONDS = 120.0
"""How long to wait, beyond its grace, for a lease that is going and still commits its last checkpoint."""
POLL_SECONDS = 0.1
_MAKERS = "makers.json"


@dataclass(frozen=True, slots=True)
class ResumePlace:
    """Where the checkpoints of one key lie, and which code made the ones that are there (see `other_code`)."""

    key: str
    store: Path
    makers: tuple[Mapping[str, Any], ...]


def take_resume_key(context: Context, record: LeaseRecord, key: str, code_hash: str) -> ResumePlace:
    """Take a key for a lease, and write down that its checkpoints are made by this code from now on.

    A lease that is going gives its key back when it is gone: until then it may still commit, so it is waited for.

    Raises:
        ResumeHeld: another live lease has it, or one that does not go.
    """
    _hold(context, record, key)
    return note_maker(context, record.environment, key, code_hash)


def note_maker(context: Context, environment: str, key: str, code_hash: str) -> ResumePlace:
    """Write down in this home that a key's checkpoints are made by this code from now on; makes its place."""
    store = context.home.checkpoints / environment / digest("checkpoint", key)
    private_folder(store)
    path = store / _MAKERS
    makers = json.loads(path.read_bytes())["makers"] if path.exists() else []
    last = max((int(place.name) for place in store.iterdir() if place.name.isdecimal()), default=0)
    staged = path.with_suffix(".new")
    staged.touch(mode=0o600)
    staged.write_text(json.dumps({"key": key, "makers": [*makers, {"after": last, "code_hash": code_hash}]}))
    staged.rename(path)
    return ResumePlace(key, store, tuple(makers))


def other_code(resumed_from: str | None, makers: Sequence[Mapping[str, Any]], code_hash: str) -> bool:
    """Whether the checkpoint that a job resumed from (``<key>/<number>``) was made by other code than its own. Pure.

    Args:
        resumed_from: as the node reports it; None: it began anew.
        makers: in order of time, each ``{"after": n, "code_hash": h}``: commits beyond the n-th were made by that code.
        code_hash: the job's own.
    """
    if not resumed_from:
        return False
    number = int(resumed_from.rpartition("/")[2])
    made_by = next((maker["code_hash"] for maker in reversed(makers) if maker["after"] < number), code_hash)
    return bool(made_by != code_hash)


def _hold(context: Context, record: LeaseRecord, key: str) -> None:
    name = f"resume:{record.environment}:{key}"
    until = None
    while True:
        try:
            context.ledger.hold(name, record.id)
        except LeaseHeld as error:
            problem = error
        else:
            return
        seen = context.ledger.read(context.ledger.holder(name) or "")
        if seen is not None:
            holder = seen.record
            grace = holder.request.grace_seconds if isinstance(holder, LeaseRecord) else 0.0
            until = until or time.monotonic() + grace + WAIT_BEYOND_GRACE_SECONDS
            if holder.live or time.monotonic() > until:
                raise ResumeHeld(
                    f"resume: the key {key!r} of environment {record.environment!r} is in use: {problem.message}",
                    "Wait for that lease, release it, or use another key.",
                ) from None
        time.sleep(POLL_SECONDS)
