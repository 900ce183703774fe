"""Holds in a store without transactions: an object for each name, which counts only with its record.

A hold is taken before its record is written, because a record without its hold would share the name with another. So a
client may die between the two, and no name may be blocked for ever by that: a hold counts while its record is there
and not released, or, without a record, for a grace after it was taken. Nothing is deleted: a hold that is given back is
written over, because deleting exactly what was seen is more than every store can do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from mlinfra_prefect.errors import LeaseHeld, LedgerUnreadable, StaleWrite
from mlinfra_prefect.ledger.objects import Found, ObjectStore
from mlinfra_prefect.model.names import token

GRACE_SECONDS = 120.0
"""Longer than a client takes from a hold to its record: four calls, each with its tries and time-outs."""
TRIES = 64

Standing = Callable[[str], bool | None]
"""Says of a record's id whether it is live: None where there is no record. What cannot be read is live."""


@dataclass(frozen=True, slots=True)
class Taken:
    """A hold as this caller has just written it."""

    key: str
    tag: str


class Holds:
    """The holds of one ledger."""

    def __init__(self, store: ObjectStore, now: Callable[[], datetime], standing: Standing) -> None:
        self._store, self._now, self._standing = store, now, standing

    def take(self, name: str, record_id: str) -> Taken:
        """Have a record hold a name. Idempotent for its holder; written anew each time, see `give_back`.

        Raises:
            LeaseHeld: another record has it.
        """
        key = key_of(name)
        for _ in range(TRIES):
            found = self._store.get(key)
            holder = self._holder_in(name, found)
            if holder not in {None, record_id}:
                raise LeaseHeld(f"{name} is held by {holder}.", f"`mlinfra-prefect show {holder}` tells whose it is.")
            tag = self._write(key, name, record_id, found)
            if tag is not None:
                return Taken(key, tag)
        raise StaleWrite(f"The hold {name} changed {TRIES} times while it was being taken.", "Try again.")

    def give_back(self, taken: Taken) -> None:
        """Give back a hold unless somebody, its record included, has taken it since. Idempotent."""
        self._write(taken.key, "", None, Found(b"", taken.tag))

    def holder(self, name: str) -> str | None:
        """Return the id of the record that has a hold, or None."""
        return self._holder_in(name, self._store.get(key_of(name)))

    def _write(self, key: str, name: str, record_id: str | None, over: Found | None) -> str | None:
        write = token()
        fields = {"name": name, "id": record_id, "time": self._now().isoformat(), "write": write}
        body = json.dumps(fields, indent=1).encode()
        return self._store.write(
            key, body, over=None if over is None else over.tag, ours=lambda found: write.encode() in found
        )

    def _holder_in(self, name: str, found: Found | None) -> str | None:
        """Who has a hold by its object: None where there is none, it was given back, or it does not count any more."""
        if found is None:
            return None
        try:
            fields = json.loads(found.body)
            record_id, taken_at = fields["id"], datetime.fromisoformat(fields["time"])
            if record_id is None:
                return None
            live = self._standing(str(record_id))
            if live is None:
                live = self._now() - taken_at < timedelta(seconds=GRACE_SECONDS)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise LedgerUnreadable(
                f"The hold {name} cannot be read ({key_of(name)} is damaged).",
                f"Restore that object's version before; without one, delete it once nothing uses {name}.",
            ) from error
        return str(record_id) if live else None


def key_of(name: str) -> str:
    """Return the key of a hold's object: names are any text, so they are hashed. Pure."""
    return f"holds/{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:40]}.json"
