"""The census: one look at all processes of this host, and which of them carry the marks of any ledger.

A sweep of one record looks for one id. The reaper asks the other way round, once for everything: who is there, and
does anybody answer for it? So its cost does not grow with the records that a ledger remembers.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import psutil

from mlinfra_prefect.model.marks import DEADLINE_VARIABLE, LEASE_VARIABLE, LEDGER_VARIABLE


@dataclass(frozen=True, slots=True)
class Carrier:
    """A live process of this user that carries marks.

    Attributes:
        process: as psutil names it: pid and start time, so that no reused pid is ever signalled.
        ledger_id: of its ledger.
        record_id: of its lease, endpoint or rollout; empty: it works for all of a ledger's.
        deadline: epoch seconds, as it was marked at its birth; None: it has none, or an unreadable one.
        parent: the pid of its parent.
    """

    process: psutil.Process
    ledger_id: str
    record_id: str
    deadline: float | None
    parent: int


def census() -> list[Carrier]:
    """Return every process of this user that carries marks, this one and its parents apart.

    What belongs to another user is not ours to judge, also where this process may read it.
    """
    mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in mine:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            environ = process.environ()
            ledger_id = environ.get(LEDGER_VARIABLE)
            if not ledger_id or process.uids().real != os.getuid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            found.append(
                Carrier(
                    process=process,
                    ledger_id=ledger_id,
                    record_id=environ.get(LEASE_VARIABLE, ""),
                    deadline=_moment(environ.get(DEADLINE_VARIABLE, "")),
                    parent=process.ppid(),
                )
            )
    return found


def _moment(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
