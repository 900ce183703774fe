"""The durable store of leases and endpoints: its protocol, SQLite as the embedded store, and a ledger over objects.

The names below are loaded when they are first used: `listing`, the quick look, must not load the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlinfra_prefect.ledger.object_ledger import ObjectLedger
    from mlinfra_prefect.ledger.objects import Found, ObjectStore
    from mlinfra_prefect.ledger.protocol import KeptRecord, Ledger, Transition, Versioned, revise, worth_a_line
    from mlinfra_prefect.ledger.sqlite import SqliteLedger

__all__ = [
    "Found", "KeptRecord", "Ledger", "ObjectLedger", "ObjectStore", "SqliteLedger", "Transition", "Versioned", "revise",
    "worth_a_line",
]  # fmt: skip
_HOMES = {"SqliteLedger": "sqlite", "ObjectLedger": "object_ledger", "ObjectStore": "objects", "Found": "objects"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'protocol')}"), name)
    globals()[name] = value
    return value
