"""The object of one record: the record, its history and its version together, so that one compare-and-swap writes all.

Two ids of writes solve what no store solves: an answer that got lost. Each write puts a fresh id into the object, and
the ids of the writes before it stay for a while; whoever did not hear an answer reads the object and looks for its id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from mlinfra_prefect.errors import LedgerUnreadable
from mlinfra_prefect.ledger.protocol import KeptRecord, Transition, Versioned
from mlinfra_prefect.ledger.stored import SCHEMA_VERSION, decode
from mlinfra_prefect.model.lease import State

REMEMBERED_WRITES = 32
"""More writes of others than can happen while one write waits for its answer."""
_COPY = "Restore the object's version before from the bucket (docs/operations.md); nothing was touched."


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """What lies under a record's key. `text` is the record's JSON, as this or a newer program wrote it."""

    id: str
    kind: str
    state: str
    schema: object
    version: int
    text: str
    lines: tuple[Mapping[str, Any], ...]
    holds: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def released(self) -> bool:
        """Whether it is over; told by the store's own word, so also of a record that cannot be read."""
        return self.state == State.RELEASED

    @property
    def began(self) -> datetime:
        """When it was created, on the store's clock; the end of time where its history does not tell."""
        try:
            return datetime.fromisoformat(str(self.lines[0]["time"]))
        except (ValueError, KeyError, IndexError):
            return datetime.max.replace(tzinfo=UTC)

    def versioned(self) -> Versioned:
        """Return the record.

        Raises:
            LedgerUnreadable: it is damaged, or a newer version wrote it.
        """
        return Versioned(decode(self.id, self.kind, self.schema, self.text), self.version)

    def history(self) -> list[Transition]:
        """Return every transition, oldest first.

        Raises:
            LedgerUnreadable: one of them is damaged.
        """
        try:
            return [Transition.model_validate(line) for line in self.lines]
        except ValidationError as error:
            raise LedgerUnreadable(f"The history of {self.id} is damaged.", _COPY) from error

    def followed_by(self, record: KeptRecord, line: Transition | None, write: str) -> StoredRecord:
        """Return what is written over this: one version later, with one more line at most. Pure."""
        more = () if line is None else (json.loads(line.model_dump_json()),)
        return replace(
            self,
            state=str(record.state),
            schema=SCHEMA_VERSION,
            version=self.version + 1,
            text=record.model_dump_json(),
            lines=(*self.lines, *more),
            writes=(*self.writes, write)[-REMEMBERED_WRITES:],
        )

    def body(self) -> bytes:
        """Return the object's bytes. Pure."""
        fields = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps(fields, ensure_ascii=False, indent=1).encode(errors="surrogateescape")


_FIELDS = ("schema", "id", "kind", "state", "version", "writes", "holds", "text", "lines")
_TEXTS = ("id", "kind", "state", "text")


def first(record: KeptRecord, line: Transition, holds: Sequence[str], write: str) -> StoredRecord:
    """Return the object of a new record. Pure."""
    nothing = StoredRecord(record.id, record.kind, "", SCHEMA_VERSION, 0, "", (), tuple(holds))
    return nothing.followed_by(record, line, write)


def parse(record_id: str, body: bytes) -> StoredRecord:
    """Return the object of a record; the record in it is not looked at yet.

    Raises:
        LedgerUnreadable: the object itself is damaged, so that not even its state can be told.
    """
    try:
        fields = json.loads(body.decode(errors="surrogateescape"))
        wrong = [name for name in _TEXTS if not isinstance(fields[name], str)]
        if wrong or not isinstance(fields["version"], int) or isinstance(fields["version"], bool):
            raise ValueError(f"{', '.join(wrong) or 'version'} is of the wrong kind")  # noqa: TRY301 (one way out)
        lists = {name: tuple(fields.get(name) or ()) for name in ("lines", "holds", "writes")}
        if not all(isinstance(line, dict) for line in lists["lines"]):
            raise ValueError("lines is of the wrong kind")  # noqa: TRY301 (one way out)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else error
        raise LedgerUnreadable(
            f"The record {record_id} cannot be read (its object is damaged: {said}).", _COPY
        ) from error
    if fields["id"] != record_id:
        raise LedgerUnreadable(f"Under {record_id} lies the record {fields['id']}.", _COPY)
    return StoredRecord(
        id=record_id,
        kind=fields["kind"],
        state=fields["state"],
        schema=fields.get("schema"),
        version=fields["version"],
        text=fields["text"],
        lines=lists["lines"],
        holds=lists["holds"],
        writes=lists["writes"],
    )
