"""The marks: four environment variables that every process of ours carries, by which a sweep knows it.

A record can be lost and a state can be empty; what a process carries in its environment is with it until it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from mlinfra_prefect.model.endpoint import KeptRecord

LEDGER_VARIABLE = "MLINFRA_LEDGER_ID"
LEASE_VARIABLE = "MLINFRA_LEASE_ID"
ATTEMPT_VARIABLE = "MLINFRA_ATTEMPT"
DEADLINE_VARIABLE = "MLINFRA_DEADLINE"


def marks(record: KeptRecord, attempt: int, here: Callable[[datetime], float] = datetime.timestamp) -> dict[str, str]:
    """Return the marks of what works for one attempt; the deadline is epoch seconds as text, or empty.

    `here` says when a moment of the ledger's clock is on the clock of the host on which the work runs.
    """
    deadline = record.deadline
    return {
        LEDGER_VARIABLE: record.ledger_id,
        LEASE_VARIABLE: record.id,
        ATTEMPT_VARIABLE: str(attempt),
        DEADLINE_VARIABLE: "" if deadline is None else repr(here(deadline)),
    }


def common_marks(ledger_id: str) -> dict[str, str]:
    """Return the marks of what works for all records of a ledger at once: it is nobody's in particular."""
    return {LEDGER_VARIABLE: ledger_id, LEASE_VARIABLE: "", ATTEMPT_VARIABLE: "", DEADLINE_VARIABLE: ""}
