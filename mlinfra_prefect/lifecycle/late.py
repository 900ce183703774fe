"""What appears after its attempt was told to end: looked for again while the lease goes on, and ended.

A cloud may carry out a call after whoever made it was killed, and shows a machine some minutes after it exists. A
release sweeps for that; a lease that went on to its next attempt would pay for two machines until then. So what carries
the tags of its given-up attempts is looked for again: a few times, further and further apart, for all of them at once.
The live attempt is never among them. Where nothing appears late (on this host) nothing is looked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model import metering
from mlinfra_prefect.model.lease import Attempt, AttemptState, Kept
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.stack import Late, PartlyEnded


def given_up(record: Kept) -> tuple[Attempt, ...]:
    """The attempts of a lease that goes on whose meters are stopped, and of which more may appear. Pure."""
    if not record.live:
        return ()  # its release sweeps
    return tuple(a for a in record.attempts if a.state is AttemptState.RELEASING and a.stopped_at is not None)


def due(record: Kept, now: datetime, looks: Sequence[float]) -> tuple[Attempt, ...]:
    """Of these, those of which a look is due at `now`. Pure.

    Args:
        record: of the lease.
        now: on the ledger's clock.
        looks: seconds after an attempt's meter was stopped, ascending; one look makes up for all that were missed.
    """
    return tuple(attempt for attempt in given_up(record) if _is_due(attempt, now, looks))


def _is_due(attempt: Attempt, now: datetime, looks: Sequence[float]) -> bool:
    stopped = attempt.stopped_at
    if stopped is None:
        return False
    looked = attempt.looked_at or stopped
    return any(looked < stopped + timedelta(seconds=each) <= now for each in looks)


def end_late(context: Context, record: KeptRecord, attempts: Sequence[Attempt]) -> KeptRecord:
    """Look for what of these attempts has appeared, and end it; what it cost is theirs. Returns the record. Idempotent.

    Raises:
        NotYetDestroyed: something could not be looked for, or not be told to end: the look was none, and is due again.
        LeaseLost: a newer keeper took the record over.
    """
    if not attempts:
        return record
    problem: PartlyEnded | None = None
    try:
        found = context.platform(record.platform).end_late(record, attempts)
    except PartlyEnded as partly:
        found, problem = partly.found, partly
        if not found:
            raise
    moment, numbers = context.ledger.now(), {each.number for each in attempts}

    def change(now: KeptRecord) -> KeptRecord:
        return now.revised(
            attempts=tuple(
                _looked(a, found, moment, whole=problem is None) if a.number in numbers else a for a in now.attempts
            )
        )

    told = ", ".join(f"{each.id} of attempt {each.attempt}" for each in found)
    reason = f"appeared late, and ended: {told}" if told else "nothing of the attempts before has appeared"
    record = revise(
        context.ledger, record.id, change, actor=context.actor, reason=as_line(reason), generation=record.generation
    )
    if problem is not None:
        raise problem
    return record


def _looked(attempt: Attempt, found: Sequence[Late], moment: datetime, *, whole: bool) -> Attempt:
    # Another process may have looked in the same moment: a machine is counted once.
    new = [each for each in found if each.attempt == attempt.number and each.id not in attempt.nodes]
    began = attempt.stopped_at or moment  # what ran before that has been reckoned already
    cost = sum(
        metering.cost_usd(max(each.launched_at or began, began), moment, attempt.offer.usd_per_hour) for each in new
    )
    return attempt.revised(
        looked_at=moment if whole else attempt.looked_at,
        nodes=(*attempt.nodes, *(each.id for each in new)),
        late_usd=attempt.late_usd + cost,
    )
