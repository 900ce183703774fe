"""The operation: the short-lived process that does the keeper's work on one record, then leaves a card and ends.

It may be killed at any moment. Everything it does is written ahead in the ledger under a fencing generation, and the
next operation goes on from there. It never runs beside another operation of the same record on this host (a lock), and
an older one that still runs elsewhere loses its next compare-and-swap (rule R4).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from mlinfra_prefect.errors import LeaseLost, MlinfraError, TemporaryError
from mlinfra_prefect.keeper.desk import drain_at, is_provably_dead, lay
from mlinfra_prefect.keeper.watch import BUSY
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.provisioning import provision, renewed
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.local.process import boot_id
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, EndpointRecord, Keeper, LeaseRecord, State
from mlinfra_prefect.model.process import ProcessIdentity

FAILED = 1


def step(context: Context, record_id: str, keeper: Keeper) -> int:
    """Bring one record as far as it can go now, and leave its card. Returns an exit code."""
    seen = context.ledger.read(record_id)
    if seen is None:
        (context.home.cards / f"{record_id}.json").unlink(missing_ok=True)
        return 0
    if not _take_operation_lock(context, record_id):
        return BUSY
    record = seen.record
    try:
        record = _take(context, record, keeper)
        record = _look_at_client(context, record)
        while True:
            before = record
            record = _advance(context, record)
            if before.state is not State.READY and record.state is State.READY:
                # The client may have died while it was waiting for this: then nobody knows that it is ready.
                record = _look_at_client(context, record, just_ready=True)
            if record == before or record.state is State.RELEASED:
                break
    except LeaseLost:
        pass  # somebody else keeps it now: what stands in the ledger is theirs, and the card below says so
    finally:
        after = context.ledger.read(record_id)
        if after is not None:
            lay(context, after.record)
    return 0


def renew(context: Context, record_ids: list[str]) -> int:
    """Renew leases whose clients live, and start the release of those whose node is gone."""
    for record_id in record_ids:
        seen = context.ledger.read(record_id)
        if seen is None or not seen.record.live:
            continue
        record = seen.record
        attempt = record.attempt
        if record.state is State.READY and attempt and not context.platform(record.platform).is_up(record, attempt):
            said = context.platform(record.platform).node(attempt).why_gone()
            record = _begin(context, record, f"the node is gone. {said}".strip(), drain=True)
            lay(context, record)
            continue
        now = context.ledger.now()
        try:
            revise(
                context.ledger, record_id, lambda current, now=now: renewed(current, now, TTL_SECONDS),  # type: ignore[misc]
                actor=context.actor, reason="renewed", generation=record.generation,
            )  # fmt: skip
        except LeaseLost:
            continue
    return 0


def _take_operation_lock(context: Context, record_id: str) -> bool:
    place = context.home.record_dir(record_id)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(place / "operation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    return True  # held until this process ends


def _take(context: Context, record: KeptRecord, keeper: Keeper) -> KeptRecord:
    """Become the record's keeper; where it had another one, under a new generation that fences the old one out."""

    def change(current: KeptRecord) -> KeptRecord | None:
        if current.keeper == keeper or current.state is State.RELEASED:
            return None
        if current.keeper is None:
            return current.revised(keeper=keeper)
        if not is_provably_dead(current.keeper.process):
            raise LeaseLost(f"{current.id} is kept by a live keeper, pid {current.keeper.process.pid}.")
        return current.revised(keeper=keeper, generation=current.generation + 1)

    why = "kept" if record.keeper is None else "taken over from a dead keeper"
    return revise(context.ledger, record.id, change, actor=context.actor, reason=why)


def _look_at_client(context: Context, record: KeptRecord, *, just_ready: bool = False) -> KeptRecord:
    """Do what the request says when its client is gone (`on_client_lost`)."""
    client = record.client
    if not record.live or client.kind == "none" or client.process is None or client.lost_at is not None:
        return record
    if isinstance(record, EndpointRecord) and record.state is State.READY and not just_ready:
        return record  # from here on it lives by its own grant, whoever asked for it
    if client.ended_at is None and not is_provably_dead(client.process):
        return record
    why = "its client ended without releasing it" if client.ended_at else "its client was lost"
    now = context.ledger.now()
    lost = client.revised(lost_at=now)
    if isinstance(record, LeaseRecord):
        policy = record.request.on_client_lost
        if policy == "keep":
            until = min(now + timedelta(minutes=record.request.keep_minutes or 0), record.deadline)
            return _change(context, record, f"{why}; kept until {until:%H:%M:%S}", client=lost, keep_until=until)
        drain = policy == "checkpoint_then_release" and record.state is State.READY
        return _begin(context, record, f"{why} ({policy})", drain=drain, client=lost)
    return _begin(context, record, f"{why} before it was ready: rolled back", drain=False, client=lost)


def _advance(context: Context, record: KeptRecord) -> KeptRecord:
    """Do the next thing that a record needs now."""
    if record.state in {State.REQUESTED, State.PROVISIONING}:
        if record.deadline is not None and context.ledger.now() >= record.deadline:
            return _begin(context, record, "its hard deadline passed before it was ready", drain=False)
        return provision(context, record)
    if record.state in {State.RELEASING, State.STUCK}:
        if record.retry_at is not None and context.ledger.now() < record.retry_at:
            return record
        return release_pass(context, record)
    if record.state is State.READY:
        now = context.ledger.now().timestamp()
        if isinstance(record, EndpointRecord):
            if record.expires_at is not None and now >= record.expires_at.timestamp():
                return _begin(context, record, "it expired", drain=False)
            return record
        if record.keep_until is not None and now >= record.keep_until.timestamp():
            return _begin(context, record, "its keep minutes are over", drain=True)
        if now >= drain_at(record):
            return _begin(context, record, "its hard deadline is near", drain=True)
    return record


def _begin(context: Context, record: KeptRecord, reason: str, *, drain: bool, client: Client | None = None) -> KeptRecord:
    def change(current: KeptRecord) -> KeptRecord | None:
        if not current.live:
            return None
        return current.revised(
            state=State.RELEASING, reason=reason, releasing_at=context.ledger.now(), drain=drain,
            client=client or current.client,
        )  # fmt: skip

    return revise(context.ledger, record.id, change, actor=context.actor, reason=reason, generation=record.generation)


def _change(context: Context, record: KeptRecord, reason: str, **changes: object) -> KeptRecord:
    return revise(
        context.ledger, record.id, lambda current: current.revised(**changes),
        actor=context.actor, reason=reason, generation=record.generation,
    )  # fmt: skip


def main() -> NoReturn:
    """Run one operation and leave at once: nothing may run after the card is laid."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--watcher", required=True, help="PID:START")
    parser.add_argument("--place", choices=("process", "foreground"), required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    one = verbs.add_parser("step")
    one.add_argument("id")
    one.add_argument("--look-at-client", action="store_true")
    verbs.add_parser("renew").add_argument("ids", nargs="+")
    arguments = parser.parse_args()
    import socket

    context = Context(Home(arguments.home))
    pid, _, started = arguments.watcher.partition(":")
    process = ProcessIdentity(host=socket.gethostname(), boot=boot_id(), pid=int(pid), start_time=started)
    keeper = Keeper(place=arguments.place, process=process)
    try:
        code = step(context, arguments.id, keeper) if arguments.verb == "step" else renew(context, arguments.ids)
    except MlinfraError as error:
        sys.stderr.write(f"{arguments.verb}: {type(error).__name__}: {error}\n")
        code = BUSY if isinstance(error, TemporaryError) else FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
