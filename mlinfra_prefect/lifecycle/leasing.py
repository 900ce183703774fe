"""Asking for a lease: the write-ahead record, its rounds, and the adoption by a retried flow run.

Nothing can be created before the record is durable (rule R1). The id is deterministic, so a second runner of the same
flow run finds the first one's lease instead of renting twice (rule R13).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from mlinfra_prefect.errors import AlreadyExists, LeaseHeld, QuotaExceeded
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.planning import admitted, choose_offer
from mlinfra_prefect.model.environment import longest_life_seconds
from mlinfra_prefect.model.lease import Client, LeaseRecord, State
from mlinfra_prefect.model.names import lease_base, lease_id
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.request import TrainingRequest

RENEW_SECONDS = 30.0
"""How often the keeper renews."""
TTL_SECONDS = 4 * RENEW_SECONDS
"""Lease TTL: the renewal window, four times the interval (rule R5)."""


@dataclass(frozen=True, slots=True)
class Key:
    """What makes a lease id: the same key finds the same lease."""

    run: str
    name: str
    task_key: str

    @property
    def base(self) -> str:
        """The id without its round."""
        return lease_base(self.run, self.name, self.task_key)


@dataclass(frozen=True, slots=True)
class Asked:
    """What asking led to."""

    record: LeaseRecord
    adopted: bool


def ask(
    context: Context,
    request: TrainingRequest,
    *,
    key: Key,
    owner: Owner,
    client: Client,
    is_dead: Callable[[ProcessIdentity], bool],
) -> Asked:
    """Write a lease record, or adopt the live one of the same key.

    Args:
        context: where.
        request: what is needed.
        key: what makes the id.
        owner: who asks, for listings.
        client: who the lease is for.
        is_dead: whether another client's process is provably dead.

    Returns:
        The durable record; nothing has been created for it yet.

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded: the request cannot be met; nothing was written.
        LeaseHeld: a live client holds the lease of this key.
        QuotaExceeded: the environment has its full number of live leases.
    """
    request = admitted(context, request)
    _, offer = choose_offer(context, request)
    ledger = context.ledger
    for _ in range(8):
        rounds = ledger.rounds(key.base)
        last = rounds[-1].record if rounds else None
        if isinstance(last, LeaseRecord) and last.live:
            return Asked(_adopt(context, last, owner=owner, client=client, is_dead=is_dead), adopted=True)
        _check_cap(context, request)
        now = ledger.now()
        record = LeaseRecord(
            id=lease_id(key.base, len(rounds) + 1),
            base=key.base,
            round=len(rounds) + 1,
            ledger_id=ledger.ledger_id,
            name=request.name,
            environment=request.environment,
            platform=request.platform or "local",
            owner=owner,
            client=client,
            created_at=now,
            renewed_until=now + timedelta(seconds=TTL_SECONDS),
            request=request,
            request_hash=request.hash,
            deadline=now + timedelta(seconds=longest_life_seconds(request, offer.usd_per_hour)),
        )
        try:
            ledger.create(record, actor=context.actor, reason="asked for")
        except AlreadyExists:
            continue  # another runner of the same flow run was faster: look at what it wrote
        return Asked(record, adopted=False)
    raise LeaseHeld(f"The lease {key.base} changes faster than it can be read.", "Try again.")


def _adopt(
    context: Context,
    last: LeaseRecord,
    *,
    owner: Owner,
    client: Client,
    is_dead: Callable[[ProcessIdentity], bool],
) -> LeaseRecord:
    def change(record: object) -> LeaseRecord | None:
        assert isinstance(record, LeaseRecord)  # noqa: S101 (a base is never shared by two kinds)
        before = record.client
        same = before.process is not None and client.process is not None and before.process == client.process
        gone = before.ended_at is not None or before.lost_at is not None
        if before.kind == "process" and before.process and not same and not gone and not is_dead(before.process):
            raise LeaseHeld(
                f"Lease {record.id} is held by {record.owner}, whose process {before.process.pid} on "
                f"{before.process.host} is alive or cannot be proven dead.",
                "Wait for it, or release it: mlinfra-prefect release " + record.id,
            )
        return record.revised(client=client, owner=owner, reason="adopted by a retry of the same flow run")

    adopted = revise(context.ledger, last.id, change, actor=context.actor, reason="adopted by a retry of the same run")
    if not isinstance(adopted, LeaseRecord) or not adopted.live:
        raise LeaseHeld(f"Lease {last.id} began to go while it was being adopted.", "Try again: the next round starts.")
    return adopted


def _check_cap(context: Context, request: TrainingRequest) -> None:
    cap = context.config.environment(request.environment).caps.max_leases
    if cap is None:
        return
    states = [state for state in State if state is not State.RELEASED]
    held = sum(
        isinstance(seen.record, LeaseRecord) and seen.record.environment == request.environment
        for seen in context.ledger.records(states=states)
    )
    if held >= cap:
        raise QuotaExceeded(
            f"environment: {request.environment!r} has {held} leases that are not released; its cap is {cap}.",
            "`mlinfra-prefect ps` shows them; release one, or raise max_leases.",
        )
