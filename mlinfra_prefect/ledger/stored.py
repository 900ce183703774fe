"""How a store keeps one record: its kind, the version of its schema, and its JSON.

Every store writes these three and reads them back here, so that what was written by a newer version, or damaged, is
refused in the same words everywhere and never half understood.
"""

from __future__ import annotations

from pydantic import ValidationError

from mlinfra_prefect.errors import LedgerUnreadable
from mlinfra_prefect.ledger.listing import SCHEMA_VERSION as SCHEMA_VERSION  # noqa: PLC0414 (every store writes it)
from mlinfra_prefect.model.endpoint import EndpointRecord, KeptRecord, RolloutRecord
from mlinfra_prefect.model.lease import LeaseRecord

_KINDS: dict[str, type[KeptRecord]] = {"lease": LeaseRecord, "endpoint": EndpointRecord, "rollout": RolloutRecord}


def refuse_future_schema(what: str, schema: object) -> None:
    """Refuse what a newer version wrote.

    Raises:
        LedgerUnreadable: the schema is newer, or is no number.
    """
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise LedgerUnreadable(
            f"{what} was written with schema {schema}; this version reads up to {SCHEMA_VERSION}.",
            "Upgrade mlinfra_prefect on this host; nothing was touched.",
        )


def decode(record_id: str, kind: object, schema: object, text: object) -> KeptRecord:
    """Return the record that a store kept.

    Raises:
        LedgerUnreadable: it is damaged, or a newer version wrote it.
    """
    refuse_future_schema(record_id, schema)
    model = _KINDS.get(str(kind))
    if model is None:
        raise LedgerUnreadable(
            f"{record_id} is a {kind}, which this version does not know.", "Upgrade mlinfra_prefect on this host."
        )
    try:
        record = model.model_validate_json(text if isinstance(text, str | bytes) else str(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise LedgerUnreadable(
            f"The record {record_id} cannot be read ({place}{': ' if place else ''}{first['msg']}).",
            "Restore the ledger from a copy, or give back by hand what its history names.",
        ) from error
    if record.id != record_id:
        raise LedgerUnreadable(f"Under {record_id} lies the record {record.id}.", "Restore the ledger from a copy.")
    return record
