"""Asking for a lease: the write-ahead record, its rounds, and the adoption by a retried flow run.

Nothing can be created before the record is durable (rule R1). The id is deterministic, so a second runner of the same
flow run finds the first one's lease instead of renting twice (rule R13).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from mlinfra_prefect.errors import AlreadyExists, LeaseHeld, QuotaExceeded
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.ledger.mounts import refuse_passing_file_system
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.lifecycle.budget import refuse_beyond_cap, worst_case_usd
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.planning import admitted, choose_offer
from mlinfra_prefect.local.process import is_here, is_provably_dead
from mlinfra_prefect.model.environment import longest_life_seconds
from mlinfra_prefect.model.lease import Client, LeaseRecord
from mlinfra_prefect.model.names import lease_base, lease_id
from mlinfra_prefect.model.process import Owner, ProcessIdentity
from mlinfra_prefect.model.request import TrainingRequest

TRIES = 8
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


def asked_place(context: Context, environment: str) -> Literal["service"] | None:
    """What a record says of its keeper's place: 'service' where only a service may begin it, else None."""
    return "service" if context.config.asks_service(environment) else None


def is_silent(heartbeat_at: datetime, now: datetime) -> bool:
    """Whether a client has not beaten for longer than the lease TTL, both moments on the ledger's clock. Pure."""
    return now - heartbeat_at > timedelta(seconds=TTL_SECONDS)


def beating(context: Context, client: Client, environment: str) -> Client:
    """Return a client with its first heartbeat, where it must beat.

    Its process proves nothing by living, or its keeper may be on another host.
    """
    must = client.kind == "flow_run" or (client.kind == "process" and context.config.asks_service(environment))
    return client.revised(heartbeat_at=context.ledger.now()) if must else client


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
    is_dead: Callable[[ProcessIdentity], bool] = is_provably_dead,
    announce: Callable[[LeaseRecord], None] = lambda _: None,
    withdraw: Callable[[LeaseRecord], None] = lambda _: None,
    give_back: Callable[[str, str], object] | None = None,
) -> Asked:
    """Write a lease record, or adopt the live one of the same key.

    A live one that was asked for with another request is not what is needed now: it is given back, and the next round
    starts at once.

    Args:
        context: where.
        request: what is needed.
        key: what makes the id.
        owner: who asks, for listings.
        client: who the lease is for.
        is_dead: whether another client's process is provably dead.
        announce: called with the record before it is written: the keeper may expect it.
        withdraw: called with an announced record that was not written.
        give_back: called with the id of such a lease and the reason; by default it is only marked as releasing.

    Returns:
        The durable record; nothing has been created for it yet.

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded: the request cannot be met; nothing was written.
        LeaseHeld: a live client holds the lease of this key, or another lease the request's exclusive name.
        QuotaExceeded: the environment has its full number of live leases.
    """
    request = admitted(context, request)
    client = beating(context, client, request.environment)
    _, offer = choose_offer(context, request)
    # Before anything is lent or written: a client without a login would take the keeper the one that it has.
    account = context.platform(request.platform or "local").account(request.environment)
    if request.platform != "local":
        if not context.shared and not context.platform(request.platform or "local").emulated:
            refuse_passing_file_system(context.home.ledger)
        cloud_access.lend(context.home, os.environ, lambda: account)
    ledger = context.ledger
    for _ in range(TRIES):
        rounds = ledger.rounds(key.base)
        last = rounds[-1].record if rounds else None
        if isinstance(last, LeaseRecord) and last.live:
            if last.request.hash != request.hash:  # reckoned here: what an older version wrote knows fewer fields
                _refuse_held(context, last, client, is_dead)
                why = "a retry of its run asks for something else"
                (give_back or partial(_mark_releasing, context))(last.id, why)
                continue
            adopted = _adopt(context, last, owner=owner, client=client, is_dead=is_dead)
            if adopted is not None:
                return Asked(adopted, adopted=True)
            continue  # it began to go meanwhile: the next round starts at once
        now = ledger.now()
        seconds = longest_life_seconds(request, offer.usd_per_hour)
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
            keeper_place=asked_place(context, request.environment),
            created_at=now,
            renewed_until=now + timedelta(seconds=TTL_SECONDS),
            request=request,
            request_hash=request.hash,
            python=sys.executable,
            deadline=now + timedelta(seconds=seconds),
            account=account,
            reserved_usd=worst_case_usd(request, offer.usd_per_hour, seconds),
        )
        refuse_beyond_cap(context, record)
        announce(record)
        killpoint("after-announce", context.home.root)
        try:
            _create(context, record)
        except AlreadyExists:
            continue  # another runner of the same flow run was faster: look at what it wrote
        except BaseException:
            withdraw(record)
            raise
        killpoint("after-record", context.home.root)
        return Asked(record, adopted=False)
    raise LeaseHeld(f"The lease {key.base} changes faster than it can be read.", "Try again.")


def _create(context: Context, record: LeaseRecord) -> None:
    """Write the record, and with it its exclusive name and one of the places of its environment, all or nothing."""
    alone = record.request.exclusive and f"exclusive:{record.environment}:{record.request.exclusive}"
    if alone:
        _refuse_second(context, record, alone)
    cap = context.config.environment(record.environment).caps.max_leases
    places = [f"lease-of:{record.environment}:{number}" for number in range(1, cap + 1)] if cap is not None else [""]
    for place in places:
        if place and context.ledger.holder(place) is not None:
            continue
        try:
            holds = tuple(name for name in (alone, place) if name)
            context.ledger.create(record, actor=context.actor, reason="asked for", holds=holds)
        except LeaseHeld:
            if alone:
                _refuse_second(context, record, alone)
            continue  # somebody else was faster
        return
    raise QuotaExceeded(
        f"environment: {record.environment!r} has {cap} leases that are not released, and its cap is {cap}.",
        "`mlinfra-prefect ps` shows them; release one, or raise max_leases.",
    )


def _refuse_second(context: Context, record: LeaseRecord, alone: str) -> None:
    """Leave an exclusive name to the lease that has it, until that is released."""
    holder = context.ledger.holder(alone)
    if holder not in {None, record.id}:
        raise LeaseHeld(
            f"exclusive: {record.request.exclusive!r} is held in {record.environment!r} by lease {holder}, and one "
            "lease of that name lives at a time.",
            f"Wait until it is released: mlinfra-prefect show {holder}",
        )


def _refuse_held(
    context: Context, record: LeaseRecord, client: Client, is_dead: Callable[[ProcessIdentity], bool]
) -> None:
    """Leave a lease to its client while that lives."""
    before = record.client
    now = context.ledger.now()
    beats = before.heartbeat_at is not None and not is_silent(before.heartbeat_at, now)
    silent = before.kind == "flow_run" and before.heartbeat_at is not None and not beats
    # Nobody renews while no keeper may take it over yet; a client that beats lives all the same.
    forgotten = record.renewed_until < now and not beats
    gone = before.ended_at is not None or before.lost_at is not None or silent or forgotten
    if before.process and before.process != client.process and not gone and not is_dead(before.process):
        raise LeaseHeld(
            f"Lease {record.id} is held by {record.owner}, whose process {before.process.pid} on "
            f"{before.process.host} is alive or cannot be proven dead.",
            "Wait for it, or release it: mlinfra-prefect release " + record.id,
        )


def _mark_releasing(context: Context, lease_id: str, why: str) -> None:
    begin_release(context, lease_id, reason=why)


def _adopt(
    context: Context,
    last: LeaseRecord,
    *,
    owner: Owner,
    client: Client,
    is_dead: Callable[[ProcessIdentity], bool],
) -> LeaseRecord | None:
    """Make a live lease this client's; None when it is not live any more."""

    def change(record: object) -> LeaseRecord | None:
        assert isinstance(record, LeaseRecord)  # a base is never shared by two kinds
        if not record.live:
            return None
        _refuse_held(context, record, client, is_dead)
        # Whatever was decided because the former client was lost is void: the lease has a client again. Its keeper may
        # be a lost host's, and renew for nobody: then the client says itself that it lives.
        now = context.ledger.now()
        strange = record.keeper is not None and not is_here(record.keeper.process)
        mine = client.revised(heartbeat_at=now) if strange and client.kind != "none" else client
        return record.revised(
            client=mine, owner=owner, keep_until=None, reason="" if record.retry_at is None else record.reason,
            renewed_until=min(now + timedelta(seconds=TTL_SECONDS), record.deadline),
        )  # fmt: skip

    adopted = revise(context.ledger, last.id, change, actor=context.actor, reason="adopted by a retry of the same run")
    return adopted if isinstance(adopted, LeaseRecord) and adopted.live else None
