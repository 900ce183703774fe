"""Which ledger a home belongs to: its own SQLite file, or a shared one that many hosts use.

``MLINFRA_LEDGER`` goes before what the project's file says. A home that has begun with a shared ledger stays with it
(``shared-ledger.json``): its keeper and a ``reap`` from cron find it without either, and cards of two ledgers never lie
on one desk. Standard library only, until a ledger is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import InvalidInput, LedgerUnavailable
from mlinfra_prefect.lifecycle.project_file import find_project
from mlinfra_prefect.model.ledger_address import LEDGER_VARIABLE, LedgerAddress, parse_address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlinfra_prefect.ledger import Ledger
    from mlinfra_prefect.model.home import Home

SHARED = "shared-ledger.json"


def from_environment(environment: Mapping[str, str]) -> LedgerAddress | None:
    """Return the address that ``MLINFRA_LEDGER`` holds; None where it is not set or empty. Pure.

    Raises:
        InvalidInput: it is malformed; names the variable.
    """
    text = environment.get(LEDGER_VARIABLE)
    return parse_address(text, field=LEDGER_VARIABLE) if text else None


def from_table(path: Path, table: Mapping[str, Any]) -> LedgerAddress | None:
    """Return the address in the table of a project's file, or None. Pure.

    Raises:
        InvalidInput: it is malformed; names file and field.
    """
    text = table.get("ledger")
    if text is None:
        return None
    field = f"{path.name}: ledger"
    if not isinstance(text, str):
        raise InvalidInput(field, "must be a text", 'Write ledger = "s3://BUCKET/PREFIX".')
    return parse_address(text, field=field)


def ledger_address(home: Home, environment: Mapping[str, str]) -> LedgerAddress | None:
    """Return where the shared ledger of a home lies; None: it has a SQLite file of its own.

    Raises:
        InvalidInput: an address is malformed, or another one than this home has begun with.
    """
    asked = from_environment(environment)
    if asked is None:
        project = find_project()
        asked = from_table(*project) if project else None
    kept = (read_json_if_there(home.root / SHARED) or {}).get("address")
    begun = parse_address(str(kept), field=str(home.root / SHARED)) if kept else None
    if asked is not None and begun is not None and asked != begun:
        raise InvalidInput(
            LEDGER_VARIABLE,
            f"{asked} is not the ledger of {home.root}, which is {begun}",
            "Use another MLINFRA_HOME for another ledger.",
        )
    return asked or begun


def open_shared(home: Home, address: LedgerAddress) -> Ledger:
    """Open the shared ledger of a home, and have the home stay with it.

    Raises:
        LedgerUnavailable: it cannot be used, or another ledger lies at its address now.
        InvalidInput: the home's own SQLite ledger still has open records.
    """
    from mlinfra_prefect.aws import S3Ledger

    kept = read_json_if_there(home.root / SHARED)
    if kept is None:
        _refuse_open_records(home)
    ledger = S3Ledger(address)
    known, found = (kept or {}).get("ledger_id"), ledger.identity
    if known and found != known:
        ledger.close()
        raise LedgerUnavailable(
            f"{address} is not the ledger {known} that {home.root} has begun with: it was deleted or replaced.",
            f"Restore it, or remove {home.root / SHARED} when nothing of this home is open any more.",
        )
    now = {"address": str(address), "ledger_id": found}
    if kept != now:
        write_json(home.root / SHARED, now)
    return ledger


def _refuse_open_records(home: Home) -> None:
    from mlinfra_prefect.ledger.listing import rows

    left = rows(home.ledger)
    if left:
        raise InvalidInput(
            LEDGER_VARIABLE,
            f"{home.root} has {len(left)} open record(s) in its own ledger, such as {left[0].id}",
            "Release them first, or use another MLINFRA_HOME for the shared ledger.",
        )
