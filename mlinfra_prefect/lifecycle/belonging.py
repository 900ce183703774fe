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
    if context.shared and record.platform != "local":
        return None  # whoever has the ledger may look after it, wherever its first keeper lived
    work = context.home.work.resolve()
    for attempt in record.attempts:
        place = Path(attempt.directory).resolve()
        if len(place.parents) > 3 and not place.is_relative_to(work) and _is_another(place.parents[3], context):
            return f"its directories lie in the home {place.parents[3]}, which is there: nothing is touched from here"
    return None


def _is_another(home: Path, context: Context) -> bool:
    """Whether a home has a ledger of its own. One that is linked is the same ledger: its generations fence."""
    theirs, ours = home / "ledger.sqlite", context.home.ledger
    try:
        return theirs.exists() and not (ours.exists() and theirs.samefile(ours))
    except OSError:
        return True  # another user's, whose ledger is shared with ours
