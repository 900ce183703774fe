"""The ledger's protocol: a durable store of records in which every write is a compare-and-swap.

Write-ahead is the whole promise (rule R1): a record is durable before the first call that can create anything, so
whatever dies, someone can find it and finish it. No home-made consensus: a store gives create-if-absent,
compare-and-swap on a version, and its own clock, and the rest is the state machine of the model.

Two ways lead to a store. One with transactions (SQLite here; PostgreSQL) implements `Ledger` itself. One that has only
single objects (S3; a Kubernetes API server) implements the five calls of `objects.ObjectStore`, and `ObjectLedger` does
the rest. `mlinfra_prefect.testing.ledger` says whether it holds (ADR 0012).

A second thing lives here, *holds*: exclusive names (an endpoint's name, its port, a resume key) that one record has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import Field

from mlinfra_prefect.errors import LeaseLost, NotFound, StaleWrite
from mlinfra_prefect.model.endpoint import KeptRecord as KeptRecord, RolloutRecord  # noqa: PLC0414 (what a ledger keeps)
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.record import Moment, Record


class Transition(Record):
    """One line of a record's history."""

    time: Moment = Field(title="Time", description="On the ledger's clock, in UTC.")
    generation: int = Field(title="Generation", description="The record's, after it.", ge=1, examples=[1])
    actor: str = Field(title="Actor", description="Who did it.", examples=["keeper 4711 on laptop"])
    before: str | None = Field(title="Before", description="The state before it; None: it was created.")
    state: str = Field(title="State", description="The state after it.", examples=["ready"])
    reason: str = Field(title="Reason", description="Why, as one line.", examples=["applied and found up"])


@dataclass(frozen=True, slots=True)
class Versioned:
    """A record as it was read, with the version that a write must present."""

    record: KeptRecord
    version: int


class Ledger(Protocol):
    """The durable store of leases and endpoints. Every method may raise `LedgerUnavailable`.

    Records written by a newer version of the schema, or corrupted, raise `LedgerUnreadable` when read.
    """

    @property
    def ledger_id(self) -> str:
        """The ledger's own uuid, minted once."""

    def now(self) -> datetime:
        """Return the time on the store's clock, in UTC (rule R5)."""

    def create(self, record: KeptRecord, *, actor: str, reason: str, holds: Sequence[str] = ()) -> Versioned:
        """Write a new record and its holds durably, or nothing.

        Raises:
            AlreadyExists: the id is taken.
            LeaseHeld: one of the holds is another record's; the message names the holder.
        """

    def read(self, record_id: str) -> Versioned | None:
        """Return a record, or None when it is absent."""

    def replace(self, seen: Versioned, record: KeptRecord, *, actor: str, reason: str) -> Versioned:
        """Write a record over exactly the version that was seen; `released` gives its holds back.

        Raises:
            StaleWrite: it changed meanwhile.
            IllegalTransition: the state machine does not allow it.
        """

    def records(
        self, *, states: Sequence[State] | None = None, changed_since: datetime | None = None
    ) -> list[Versioned]:
        """Return the records in some states (None: all), oldest first; the unreadable ones are in `unreadable`.

        With `changed_since`, a moment on the ledger's clock, a store may leave out what was last written before it.
        """

    def unreadable(self) -> list[tuple[str, str]]:
        """Return (id, why) of the records that cannot be read and are not known to be released; they are never touched.

        What is released needs nobody any more, and a store may hold ten thousands of it: `ps --all` tells of those.
        """

    def history(self, record_id: str) -> list[Transition]:
        """Return every transition of a record, oldest first; empty when it is absent.

        A write that only renews or beats (see `worth_a_line`) has no line. Reasons of any text are kept, as one
        line each.
        """

    def hold(self, name: str, record_id: str) -> None:
        """Take a hold for a live record; idempotent for its holder.

        Raises:
            LeaseHeld: another record has it.
            NotFound: the record is absent or released.
        """

    def holder(self, name: str) -> str | None:
        """Return the id of the record that has a hold, or None."""

    def rounds(self, base: str) -> list[Versioned]:
        """Return every round of a lease or endpoint, in order.

        Raises:
            LedgerUnreadable: one of them cannot be read, so nobody can say which round is next.
        """

    def close(self) -> None:
        """Let go of the store; idempotent."""


def revise(
    ledger: Ledger,
    record_id: str,
    change: Callable[[KeptRecord], KeptRecord | None],
    *,
    actor: str,
    reason: str,
    generation: int | None = None,
    tries: int = 64,
) -> KeptRecord:
    """Read, change and compare-and-swap until it takes; the one way in which records are changed.

    Args:
        ledger: the store.
        record_id: which record.
        change: returns the new record, or None to leave it as it is. Called again after a lost race.
        actor: who does it, for the history.
        reason: why, for the history.
        generation: the fencing generation of the caller; None for those that need none (a client's own notes).
        tries: lost races after which it gives up.

    Returns:
        The record as it stands now.

    Raises:
        NotFound: no such record.
        LeaseLost: a newer keeper took the record over: stop, touch nothing (rule R4).
        StaleWrite: every try lost its race.
    """
    for _ in range(tries):
        seen = ledger.read(record_id)
        if seen is None:
            raise NotFound(f"{record_id} is not in this ledger.", "`mlinfra-prefect ps --all` lists what is.")
        if generation is not None and seen.record.generation != generation:
            raise LeaseLost(
                f"{record_id} was taken over: its generation is {seen.record.generation}, ours was {generation}.",
                "Nothing was touched.",
            )
        changed = change(seen.record)
        if changed is None or changed == seen.record:
            return seen.record
        try:
            return ledger.replace(seen, changed, actor=actor, reason=reason).record
        except StaleWrite:
            continue
    raise StaleWrite(f"{record_id} changed {tries} times while it was being written.", "Try again.")


def worth_a_line(before: KeptRecord, after: KeptRecord) -> bool:
    """Whether a write belongs in the history.

    Renewals and heartbeats every half minute would bury the transitions that people look for, so a write that only
    renews, only beats, or only says when to look again, does not.
    """
    client = before.client.model_copy(update={"heartbeat_at": after.client.heartbeat_at})
    same: dict[str, object] = {"renewed_until": after.renewed_until, "client": client}
    if isinstance(after, RolloutRecord):
        same["due"] = after.due
    return before.model_copy(update=same) != after
