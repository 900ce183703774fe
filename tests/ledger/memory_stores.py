"""Ledgers over objects in memory: opened by name, spoiled and lost as a bucket's objects can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from mlinfra_prefect.ledger import Found, ObjectLedger
from mlinfra_prefect.testing.ledger import Damage
from mlinfra_prefect.testing.objects import MemoryObjects


class Stores:
    """The stores of one test."""

    def __init__(self) -> None:
        self.made: dict[str, MemoryObjects] = {}

    def open(self, store: str = "first") -> ObjectLedger:
        return ObjectLedger(self.made.setdefault(store, MemoryObjects(store)).opened())

    def spoil(self, record_id: str, kind: Damage) -> None:
        key = f"records/{record_id}.json"
        kept = self.made["first"].kept
        kept[key] = Found(spoiled(kept[key].body, kind), "spoiled")

    def lose(self) -> None:
        self.made["first"].kept = None


def spoiled(body: bytes, kind: Damage) -> bytes:
    """Spoil the record in an object; its state and version stay."""
    fields: dict[str, Any] = json.loads(body)
    change: dict[Damage, Callable[[], object]] = {
        Damage.CORRUPTED: lambda: fields.update(text=fields["text"][: len(fields["text"]) // 2]),
        Damage.BROKEN_TEXT: lambda: fields.update(text=f"{fields['text'][:40]}\udcff{fields['text'][40:]}"),
        Damage.FUTURE: lambda: fields.update(schema=999, text='{"kind": "lease", "colour": "blue"}'),
    }
    change[kind]()
    return json.dumps(fields, ensure_ascii=False).encode(errors="surrogateescape")
