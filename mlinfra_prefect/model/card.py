"""The card: what the watcher knows of a record.

The watcher is standard library only and never opens the ledger; an operation leaves it this small file, and the
watcher acts on it alone (`keeper.watch`). The ledger stays the truth: a lost or stale card costs one operation.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from mlinfra_prefect.model.names import Id
from mlinfra_prefect.model.record import Record

CARD_SCHEMA: Final = "mlinfra-prefect/card/1"


class Card(Record):
    """One lease, rollout or endpoint on the watcher's desk. Times are seconds since the epoch on this host's clock."""

    schema_name: Literal["mlinfra-prefect/card/1"] = Field(
        default=CARD_SCHEMA, alias="schema", title="Schema", description="Name and version of this format."
    )
    kind: Literal["lease", "endpoint", "rollout"] = Field(title="Kind", description="What the card stands for.")
    id: Id = Field(title="Id", description="Of the lease or endpoint.", examples=["l0f3c5d7e9b1a2c4d6e8f-1"])
    generation: int = Field(
        title="Generation", description="Of the keeper that this watcher is; another one: not ours.", ge=1, examples=[1]
    )
    state: str = Field(title="State", description="The record's, when the card was written.", examples=["ready"])
    client_pid: int | None = Field(
        default=None,
        title="Client's process id",
        description="None: nobody by design, or already known to be gone.",
        ge=1,
        examples=[4711],
    )
    client_start_time: str | None = Field(
        default=None,
        title="Client's start time",
        description="Tells the client from a later process of the same pid; opaque.",
        examples=["1873002"],
    )
    client_fifo: str | None = Field(
        default=None,
        title="Client's pipe",
        description="The named pipe that the client holds open.",
        examples=["/home/ada/.mlinfra-prefect/keeper/clients/l0f3c5d7e9b1a2c4d6e8f-1"],
    )
    due: float | None = Field(
        default=None,
        title="Due (seconds since the epoch)",
        description="The next moment at which an operation must run; None: none.",
        ge=0,
        examples=[1767225600.0],
    )
    renew: bool = Field(
        default=False, title="Renew", description="Whether the watcher has it renewed while its client lives."
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        title="Environment variables",
        description="What an operation of it carries in its environment.",
        examples=[{"MLINFRA_LEASE_ID": "l0f3c5d7e9b1a2c4d6e8f-1"}],
    )
    lock_files: tuple[str, ...] = Field(
        default=(),
        title="Lock files",
        description="Free before an operation may start.",
        examples=[["/home/ada/.mlinfra-prefect/work/l0f3c5d7e9b1a2c4d6e8f-1/1/lock"]],
    )
    operation_deadline: float | None = Field(
        default=None,
        title="Operation's deadline (seconds since the epoch)",
        description="An operation process that is still there soon after it is ended; None: none was recorded.",
        ge=0,
        examples=[1767226500.0],
    )

    model_config = Record.model_config | {"populate_by_name": True, "serialize_by_alias": True}
