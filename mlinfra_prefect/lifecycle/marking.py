"""The small writes by which a record goes through its states: each one a compare-and-swap, most of them fenced.

An operation writes under the generation it began with: once a newer keeper took the record over, its next write raises
`LeaseLost` and it stops, having touched nothing more (rule R4). A client's own note needs no generation.
"""

from __future__ import annotations

from typing import Any

from mlinfra_prefect.errors import LeaseLost, PermanentError
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.belonging import why_foreign
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.versions import leave
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.lease import LIVE, Attempt, Client, State
from mlinfra_prefect.model.names import as_line


def current(context: Context, record: KeptRecord) -> KeptRecord:
    """Return the record as it stands now.

    Raises:
        LeaseLost: a newer keeper took it over.
    """
    found = context.ledger.read(record.id)
    if found is None or found.record.generation != record.generation:
        raise LeaseLost(f"{record.id} was taken over.", "Nothing more was touched.")
    return found.record


def mark(context: Context, record: KeptRecord, why: str, /, **changes: Any) -> KeptRecord:
    """Change fields of a record under its generation, `why` for the history; returns the record as it stands now.

    Raises:
        LeaseLost: a newer keeper took it over.
    """
    return revise(
        context.ledger, record.id, lambda now: now.revised(**changes),
        actor=context.actor, reason=as_line(why), generation=record.generation,
    )  # fmt: skip


def mark_attempt(
    context: Context, record: KeptRecord, number: int, reason: str, *, only_live: bool = False, **changes: Any
) -> KeptRecord:
    """Change one attempt of a record under the record's generation; returns the record as it stands now.

    Args:
        context: where.
        record: whose attempt.
        number: which attempt.
        reason: for the history.
        only_live: leave everything as it is once the record has begun to go.
        **changes: of the attempt.

    Raises:
        LeaseLost: a newer keeper took the record over.
    """

    def change(now: KeptRecord) -> KeptRecord | None:
        if only_live and not now.live:
            return None
        return now.revised(attempts=tuple(a.revised(**changes) if a.number == number else a for a in now.attempts))

    return revise(
        context.ledger, record.id, change, actor=context.actor, reason=as_line(reason), generation=record.generation
    )


def attempt_of(record: KeptRecord, number: int) -> Attempt:
    """Return one attempt of a record."""
    return next(attempt for attempt in record.attempts if attempt.number == number)


def begin_release(
    context: Context,
    record_id: str,
    *,
    reason: str,
    drain: bool = True,
    error: str = "",
    generation: int | None = None,
    lost: Client | None = None,
) -> KeptRecord:
    """Mark a record as releasing: one small write, from any process. Idempotent; an absent record is an error.

    Args:
        context: where.
        record_id: which lease or endpoint.
        reason: for the history and the receipt.
        drain: whether the node gets *checkpoint now* first.
        error: the error type that the client gets, when this is a failure.
        generation: of the operation that decides this; None for a client's or a person's wish.
        lost: the client because of whose loss this is done: nothing is done when it is another one's by now, or the
            client has beaten since.

    Returns:
        The record as it stands: releasing, or further on already.

    Raises:
        NotFound: there is none of that id.
        PermanentError: it belongs to another ledger or home (see `belonging`).
        VersionServes: it is the rollout of what an endpoint serves.
        LeaseLost: a newer keeper took the record over.
    """
    line = as_line(reason)
    found = context.ledger.read(record_id)
    foreign = why_foreign(context, found.record) if found is not None else None
    if foreign is not None:
        raise PermanentError(f"{record_id} cannot be released here: {foreign}.", "Release it from the home it is of.")
    if found is not None and generation is not None and found.record.generation != generation:
        raise LeaseLost(f"{record_id} was taken over.", "Nothing more was touched.")
    if found is not None and lost is not None and not _is_client(found.record, lost):
        return found.record  # what is served must not learn of it either
    if found is not None and isinstance(found.record, RolloutRecord) and found.record.live:
        # What is served is decided on the endpoint's record: only what has left it may go.
        leave(context, found.record, line)
        killpoint("after-leave", context.home.root)

    def change(now: KeptRecord) -> KeptRecord | None:
        if now.state not in LIVE:
            return None
        client = now.client
        if lost is not None:
            if not _is_client(now, lost):
                return None
            client = lost
        return now.revised(
            state=State.RELEASING, reason=line, error=error, releasing_at=context.ledger.now(), drain=drain,
            client=client, retry_at=None,
        )  # fmt: skip

    return revise(context.ledger, record_id, change, actor=context.actor, reason=line, generation=generation)


def _is_client(record: KeptRecord, lost: Client) -> bool:
    """Whether a lost client still is the record's: a retry of its flow run may have adopted it, or it has beaten."""
    return (record.client.process, record.client.heartbeat_at) == (lost.process, lost.heartbeat_at)
