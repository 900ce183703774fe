"""Whether a record is this home's to touch: a copied ledger names machines that another home still owns (rule R8)."""

from __future__ import annotations

from pathlib import Path

from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context


def why_foreign(context: Context, record: KeptRecord) -> str | None:
    """Say why nothing of a record may be touched from this home; None: it belongs here. Changes nothing.

    It is of another ledger, or its directories lie in another home that has a ledger of its own and is still there:
    then this home is a copy. A home that was moved is not one, because the old place is gone.
    """
    if record.ledger_id != context.ledger.ledger_id:
        return f"it is of ledger {record.ledger_id} and not of this one: nothing of it is touched"
    work = context.home.work.resolve()
    for attempt in record.attempts:
        place = Path(attempt.directory).resolve()
        if len(place.parents) > 3 and not place.is_relative_to(work) and (place.parents[3] / "ledger.sqlite").exists():
            return f"its directories lie in the home {place.parents[3]}, which is there: nothing is touched from here"
    return None
