"""The durable store of leases and endpoints: its protocol, and SQLite as the embedded store."""

from mlinfra_prefect.ledger.protocol import KeptRecord, Ledger, Transition, Versioned, is_live, revise, worth_a_line
from mlinfra_prefect.ledger.sqlite import SqliteLedger

__all__ = ["KeptRecord", "Ledger", "SqliteLedger", "Transition", "Versioned", "is_live", "revise", "worth_a_line"]
