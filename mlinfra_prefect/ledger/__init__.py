"""The durable store of leases and endpoints: its protocol, and SQLite as the embedded store.

The names below are loaded when they are first used: `listing`, the quick look, must not load the models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlinfra_prefect.ledger.protocol import KeptRecord, Ledger, Transition, Versioned, revise, worth_a_line
    from mlinfra_prefect.ledger.sqlite import SqliteLedger

__all__ = ["KeptRecord", "Ledger", "SqliteLedger", "Transition", "Versioned", "revise", "worth_a_line"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    home = "sqlite" if name == "SqliteLedger" else "protocol"
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
