"""What stands in the ledger, for the listings: the quick look at the home's own file, or the shared ledger itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlinfra_prefect.ledger.listing import Row, rows
from mlinfra_prefect.lifecycle.ledger_place import ledger_address

if TYPE_CHECKING:
    from mlinfra_prefect.model.home import Home

UNKNOWN = "unreadable"
"""The state that a listing shows where not even that can be read."""


def where(home: Home) -> str:
    """Return what the listing is about, for a person."""
    return str(ledger_address(home, os.environ) or home.root)


def looked(home: Home, *, everything: bool = False) -> list[Row]:
    """Return what is not released yet (or everything), oldest first; see `ledger.listing.rows`."""
    if ledger_address(home, os.environ) is None:
        return rows(home.ledger, everything=everything)
    import json

    from mlinfra_prefect.lifecycle.context import Context
    from mlinfra_prefect.model.lease import OPEN

    ledger = Context(home).ledger
    states = None if everything else OPEN
    found = [
        Row(seen.record.id, seen.record.kind, seen.record.state, json.loads(seen.record.model_dump_json()))
        for seen in ledger.records(states=states)
    ]
    return found + [Row(record_id, "lease", UNKNOWN, problem=why) for record_id, why in ledger.unreadable()]
