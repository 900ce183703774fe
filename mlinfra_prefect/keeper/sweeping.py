"""The account sweep: what carries the marks of a ledger and has no open record that answers for it (rules R7 and R8).

A closed lease is no proof that nothing more appears: a partitioned Terraform may create something afterwards. So the
released records stay as tombstones, and each pass looks at *everything* that is there, once, and asks the ledger about
it. That is one scan of the processes, however many tombstones there are. It ends what is ours and released, or ours
and unknown. Of any other ledger, and of what cannot be read, it ends leases only, and only past their own deadline and
a grace; what carries no mark is never touched.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from mlinfra_prefect.errors import LedgerUnreadable, MlinfraError
from mlinfra_prefect.keeper.desk import laid, watcher_identity
from mlinfra_prefect.keeper.passes import Notes
from mlinfra_prefect.keeper.watch import is_held
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle import addenda
from mlinfra_prefect.lifecycle.archiving import archive, is_archived
from mlinfra_prefect.lifecycle.belonging import why_foreign
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.provisioning import PROVISION_SECONDS
from mlinfra_prefect.local.census import Carrier, census
from mlinfra_prefect.local.process import described, end, holders
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.names import as_line, is_id
from mlinfra_prefect.model.receipt import Search

MOST_ENDED = 200
"""Processes that one pass may end beside the releases that it takes over (rule R8); the next pass goes on."""
DEADLINE_GRACE_SECONDS = 300.0
"""Past the deadline of what is not known to be ours: its own dead-man, keeper and reaper come first."""
ENDING_SECONDS = 30.0
"""How long the operation that released a record may take to end."""
GRACE_SECONDS = 2.0
TERRAFORM_GRACE_SECONDS = 10.0
"""Between SIGINT and SIGKILL of a Terraform: time to write its state."""


@dataclass(frozen=True, slots=True)
class Stray:
    """Processes of one id that nobody answers for, why that is so, and whose tombstone it is, if any."""

    record_id: str
    why: str
    carriers: tuple[Carrier, ...]
    record: KeptRecord | None = None


def sweep_account(
    context: Context, notes: Notes, *, unknown_before: float, environment: str | None = None, dry_run: bool = False
) -> None:
    """End what carries marks and has no open record, and tell of directories without a record. Idempotent.

    Args:
        context: where.
        notes: gets what was found.
        unknown_before: epoch seconds; what is older and has no record may have had one (see `keeper.sight`).
        environment: only tombstones of this one; what has no record is in none, and is left to a pass over all.
        dry_run: end nothing, write nothing.
    """
    left = MOST_ENDED
    for (ledger_id, record_id), carriers in _groups(context.home, census()).items():
        try:
            stray = _stray(context, ledger_id, record_id, carriers, unknown_before)
            if stray is None or (environment is not None and _environment(stray) != environment):
                continue
            busy = _busy(context, stray)
            told = as_line(record_id or "without an id")
            names = ", ".join(described([each.process for each in stray.carriers]))
            if busy is not None:
                notes.add("skipped", told, busy, again=True)
            elif dry_run:
                notes.add("planned", told, f"{stray.why}: {names} would be ended")
            elif len(stray.carriers) > left:
                notes.add("skipped", told, f"{stray.why}; a pass ends {MOST_ENDED} processes at most", again=True)
            else:
                left -= len(stray.carriers)
                survivors = _end(context, stray)
                notes.add("orphans", told, f"{stray.why}: ended {names}", again=True)
                if survivors:
                    notes.add("stuck", told, f"{stray.why}: still there: {', '.join(survivors)}")
        except (MlinfraError, OSError) as error:  # one bad thing never stops the others (rule R9)
            notes.add("stuck", as_line(record_id), str(error))
    if environment is None:
        _look_at_directories(context, notes, dry_run=dry_run)


def sweep_past_deadlines(home: Home) -> list[str]:
    """End leases of any ledger that are past their deadline and the grace: all that may be done without a ledger.

    Returns what was ended, for people.
    """
    ended = []
    for (ledger_id, record_id), carriers in _groups(home, census()).items():
        overdue = _overdue(record_id, carriers)
        if overdue:
            ended += end([each.process for each in overdue], grace_seconds=GRACE_SECONDS)
            ended[-1] += f" of {as_line(record_id)} in ledger {as_line(ledger_id)}"
    return ended


# --- whose is it ------------------------------------------------------------------------------------------------------


def _groups(home: Home, carriers: Iterable[Carrier]) -> dict[tuple[str, str], list[Carrier]]:
    """By ledger and id; the operations of a live watcher are its own to end, and what works for all is nobody's."""
    watcher = watcher_identity(home)
    found: dict[tuple[str, str], list[Carrier]] = {}
    for each in carriers:
        if each.record_id and (watcher is None or each.parent != watcher[0]):
            found.setdefault((each.ledger_id, each.record_id), []).append(each)
    return found


def _stray(
    context: Context, ledger_id: str, record_id: str, carriers: Sequence[Carrier], unknown_before: float
) -> Stray | None:
    """What of these processes nobody answers for; None: somebody does, or it is not ours to say.

    The processes were looked at before the ledger is: a record is written ahead of all that it is for.
    """
    past = _overdue(record_id, carriers)
    late = Stray(record_id, f"past its own deadline, of ledger {ledger_id}", tuple(past)) if past else None
    if ledger_id != context.ledger.ledger_id:
        return late
    try:
        seen = context.ledger.read(record_id)
    except LedgerUnreadable:
        if late is None:
            raise  # it may be live: fail closed, and say so for as long as something of it is there
        return late
    if seen is None:
        if is_id(record_id) and laid(context.home, record_id) is not None:
            return None  # announced: it is about to be written
        if any(_started(each) < unknown_before for each in carriers):
            return late
        return Stray(record_id, "no record of this ledger names it", tuple(carriers))
    record = seen.record
    if record.state is not State.RELEASED or why_foreign(context, record) is not None:
        return None
    return Stray(record_id, f"it was released at {record.released_at:%Y-%m-%d %H:%M:%S} UTC", tuple(carriers), record)


def _overdue(record_id: str, carriers: Iterable[Carrier]) -> list[Carrier]:
    # Only of leases: how long a served model may live is moved without telling its processes.
    now = time.time()
    return [
        each
        for each in carriers
        if record_id.startswith("l") and each.deadline is not None and now >= each.deadline + DEADLINE_GRACE_SECONDS
    ]


def _environment(stray: Stray) -> str | None:
    return None if stray.record is None else stray.record.environment


def _started(carrier: Carrier) -> float:
    with contextlib.suppress(psutil.Error):
        return float(carrier.process.create_time())
    return time.time()


# --- ending it --------------------------------------------------------------------------------------------------------


def _locks(home: Home, record_id: str) -> list[Path]:
    return sorted(home.record_dir(record_id).glob(f"*/terraform/{LOCK_NAME}")) if is_id(record_id) else []


def terraform_of(home: Home, record_id: str) -> bool:
    """Whether a Terraform of a record runs on this host, whoever started it."""
    return any(is_held(str(path)) for path in _locks(home, record_id))


def _busy(context: Context, stray: Stray) -> str | None:
    """What must be waited for before anything of a stray is ended; None: nothing."""
    home, released = context.home, stray.record.released_at if stray.record is not None else None
    fresh = released is not None and (context.ledger.now() - released).total_seconds() < ENDING_SECONDS
    if fresh and is_held(str(home.record_dir(stray.record_id) / "operation.lock")):
        return "the operation that released it is ending"
    if terraform_of(home, stray.record_id):
        youngest = max(_started(each) for each in stray.carriers)
        if time.time() - youngest < PROVISION_SECONDS:  # never signalled before its deadline (rule R3)
            return "a Terraform of it is still running"
    return None


def _end(context: Context, stray: Stray) -> list[str]:
    """End a stray, write down that it was, and return what survived it."""
    processes = [each.process for each in stray.carriers]
    names = tuple(described(processes))
    for path in _locks(context.home, stray.record_id):
        end(holders(processes, path), grace_seconds=TERRAFORM_GRACE_SECONDS, first=signal.SIGINT)
    record = stray.record
    if record is not None:
        for attempt in record.attempts:
            # A zombie may have made a grant again; taking it away is how a node ends whole.
            context.platform(record.platform).stop_meter(record, attempt)
    end(processes, grace_seconds=GRACE_SECONDS)
    survivors = [name for each, name in zip(processes, names, strict=True) if _lives(each)]
    search = Search(
        what=f"processes that carry the marks of this ledger: {as_line(stray.why)}",
        where=socket.gethostname(),
        at=datetime.now(UTC),
        found=names,
        ended=tuple(name for name in names if name not in survivors),
    )
    with contextlib.suppress(OSError):  # a full disk takes no line; what was found is still told by this pass
        addenda.add(context.home, stray.record_id, search)
    if record is not None:
        for attempt in record.attempts:
            context.platform(record.platform).tidy(record, attempt)
    return survivors


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


# --- directories ------------------------------------------------------------------------------------------------------


def _look_at_directories(context: Context, notes: Notes, *, dry_run: bool) -> None:
    """Tell of directories that no record names; nothing is deleted: they may hold the only state of something."""
    for entry in sorted(os.scandir(context.home.work), key=lambda each: each.name):
        if not entry.is_dir(follow_symlinks=False) or not is_id(entry.name) or is_archived(Path(entry.path)):
            continue
        try:
            seen = context.ledger.read(entry.name)
        except LedgerUnreadable:
            continue
        if seen is None:
            notes.add("orphans", entry.name, f"{entry.path} belongs to no record of this ledger; it was left as it is")
        elif seen.record.state is State.RELEASED and not dry_run:
            archive(context.home, seen.record)  # its operation was killed between its last two writes
