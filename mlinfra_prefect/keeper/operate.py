"""The operation: the short-lived process that does the keeper's work on one record, then leaves a card and ends.

It may be killed at any moment. Everything it does is written ahead in the ledger under a fencing generation, and the
next operation goes on from there. It never runs beside another operation of the same record on this host (a lock), and
an older one that still runs elsewhere loses its next compare-and-swap (rule R4).
"""

from __future__ import annotations

import argparse
import fcntl
import os
import socket
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import LeaseLost, MlinfraError, NodeLost, PermanentError, TrainingStopped
from mlinfra_prefect.keeper.desk import laid, lay, take_off, wake, why_over
from mlinfra_prefect.keeper.overdue import OPERATION_LOCK, end_overdue_operation, end_overdue_terraform
from mlinfra_prefect.keeper.watch import BUSY
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.belonging import why_foreign
from mlinfra_prefect.lifecycle.clients import last_heard, look_at_client, why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.late import due, end_late, given_up
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.marking import begin_release, current
from mlinfra_prefect.lifecycle.progress import why_hung
from mlinfra_prefect.lifecycle.provisioning import fail, provision, renewed
from mlinfra_prefect.lifecycle.releasing import record_failed_pass, release_pass, stop_pass
from mlinfra_prefect.lifecycle.rolling import advance
from mlinfra_prefect.lifecycle.versions import enter
from mlinfra_prefect.lifecycle.whose_host import busy_until
from mlinfra_prefect.local.process import boot_id, is_alive, is_here, is_provably_dead
from mlinfra_prefect.model.endpoint import RolloutRecord, account_of
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Keeper, LeaseRecord, State
from mlinfra_prefect.model.process import ProcessIdentity

FAILED = 1
STOPS_AT_ONCE = 64
"""Threads of `stop`; each waits for one drain."""
ANNOUNCED_SECONDS = 60.0
"""How long a card may announce a record that is not written yet, where no client tells that it is still coming."""


def step(context: Context, record_id: str, keeper: Keeper) -> int:
    """Bring one record as far as it can go now, and leave its card. Returns an exit code."""
    seen = context.ledger.read(record_id)
    if seen is None:
        return _announced(context, record_id)
    context.tell = lambda record: _tell(context, record, record_id)
    record = seen.record
    context.login.as_client_of(account_of(record))
    foreign = why_foreign(context, record)
    if foreign is not None:
        sys.stderr.write(f"{record_id}: {foreign}\n")
        take_off(context.home, record_id)
        return 0
    try:
        # Its lock is held until this process ends.
        if _take_operation_lock(context, record) is None or not end_overdue_terraform(context, record):
            return BUSY
        record = _take(context, record, keeper)
        killpoint("after-take", context.home.root)
        _go_on(context, record)
    except LeaseLost as lost:  # somebody else keeps it now: what stands in the ledger is theirs
        sys.stderr.write(f"{record_id}: {lost}\n")
        return FAILED
    except Exception as error:  # noqa: BLE001 (whatever it is, the client must hear of it and release must go on)
        if isinstance(error, MlinfraError):
            sys.stderr.write(f"{record_id}: {type(error).__name__}: {error}\n")
        else:
            traceback.print_exc()
        _account_for(context, record, error)
        return FAILED
    finally:
        killpoint("before-card", context.home.root)
        after = context.ledger.read(record_id)
        if after is not None and _kept_elsewhere(context, after.record, keeper):
            take_off(context.home, record_id)  # another keeper of a shared ledger has it: nothing to watch here
        elif after is not None:
            lay(context, after.record)
    return 0


def stop(context: Context, record_ids: list[str], keeper: Keeper) -> int:
    """See to the drains and the meters of records whose release waits for its turn, all at once. Returns an exit code.

    One process for all of them: fifty interpreters are gigabytes, fifty threads that wait are not. It ends nothing
    that its own operation would not end, and what fails here that operation meets again. Those of one account at a
    time: a process has one login.
    """
    context.tell = lambda record: lay(context, record)

    def one(record_id: str) -> int:
        try:
            _stop_one(context, record_id, keeper)
        except (MlinfraError, OSError) as error:
            sys.stderr.write(f"{record_id}: not stopped yet: {type(error).__name__}: {error}\n")
            return FAILED
        finally:
            wake(context.home, record_id)
        return 0

    code = 0
    for account, chosen in _by_account(context, record_ids).items():
        context.login.as_client_of(account)
        with ThreadPoolExecutor(min(len(chosen), STOPS_AT_ONCE)) as pool:
            code = max(code, *pool.map(one, chosen))
    return code


def _by_account(context: Context, record_ids: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record_id in record_ids:
        account = ""
        with suppress(MlinfraError):  # who reads it for its own operation says why it cannot be read
            seen = context.ledger.read(record_id)
            account = account_of(seen.record) if seen is not None else ""
        found.setdefault(account, []).append(record_id)
    return found


def _stop_one(context: Context, record_id: str, keeper: Keeper) -> None:
    seen = context.ledger.read(record_id)
    if seen is None or why_foreign(context, seen.record) is not None:
        return
    lock = _take_operation_lock(context, seen.record)
    if lock is None:
        return
    try:
        if end_overdue_terraform(context, seen.record):
            _go_on(context, _take(context, seen.record, keeper), only_stop=True)
            lay(context, context.record(record_id))
    finally:
        os.close(lock)


def _kept_elsewhere(context: Context, record: KeptRecord, keeper: Keeper) -> bool:
    """Whether another keeper has a record that is alive, or may be."""
    other = record.keeper
    if other is None or keeper.keeps(record) or is_provably_dead(other.process):
        return False
    return is_here(other.process) or busy_until(record) >= context.ledger.now()


def _tell(context: Context, record: KeptRecord, own: str) -> None:
    """Lay the card of a record, and have the watcher look at it where it is another one's than our own."""
    lay(context, record)
    if record.id != own:
        wake(context.home, record.id)


def renew(context: Context, record_ids: list[str], keeper: Keeper) -> int:
    """Renew leases whose clients live; begin the release of those whose node is gone; then end what came late."""
    code = 0
    late: list[str] = []
    # A look at a silent node takes seconds, and one at a cloud that is down longer: nobody waits for the next one's.
    works = ((_renew, record_ids), (partial(_look_at_node, late=late), record_ids), (_end_late, late))
    for work, ids in works:
        for record_id in ids:
            try:
                work(context, record_id, keeper)
            except LeaseLost:
                continue  # somebody else keeps it now
            except Exception as error:  # noqa: BLE001 (what one node wrote must not stop the looks at the others)
                sys.stderr.write(f"{record_id}: not renewed: {type(error).__name__}: {error}\n")
                code = FAILED
    return code


def _renew(context: Context, record_id: str, keeper: Keeper) -> None:
    seen = context.ledger.read(record_id)
    if seen is None or not keeper.keeps(seen.record):
        return  # gone, not taken over yet, or not ours any more
    if not seen.record.live:
        lay(context, seen.record)  # its card may still say otherwise
        return
    now = context.ledger.now()
    if why_gone(seen.record, now) is not None:  # renewal means that the client lives (rule R4)
        lay(context, seen.record)
        wake(context.home, record_id)
        return
    record = revise(
        context.ledger, record_id, lambda found: renewed(found, now, TTL_SECONDS),
        actor=context.actor, reason="renewed", generation=seen.record.generation,
    )  # fmt: skip
    if record.client.heartbeat_at is not None or context.shared:
        lay(context, record)  # the moment from which its silence would count has moved, or this host's clock was set


def _look_at_node(context: Context, record_id: str, keeper: Keeper, *, late: list[str]) -> None:
    """Look at the node of a ready lease; `late` gets the lease whose attempts before it are to be looked at again."""
    seen = context.ledger.read(record_id)
    attempt = seen.record.attempt if seen is not None else None
    if seen is None or attempt is None or not keeper.keeps(seen.record):
        return
    record, platform = seen.record, context.platform(seen.record.platform)
    if given_up(record) and due(record, context.ledger.now(), platform.late_looks):
        late.append(record_id)
    if record.state is not State.READY:
        return
    context.login.as_client_of(account_of(record))
    if not platform.is_up(record, attempt):
        why = f"the node is gone. {platform.node(attempt).why_gone()}".strip()
        error = NodeLost.__name__
        lay(context, begin_release(context, record.id, reason=why, error=error, generation=record.generation))
        return
    hung = why_hung(platform.node(attempt), record.jobs, time.time()) if isinstance(record, LeaseRecord) else None
    if hung is not None:  # renewal means that it works, too (rule R4); the release begins with its drain
        error = TrainingStopped.__name__
        lay(context, begin_release(context, record.id, reason=hung, error=error, generation=record.generation))


def _end_late(context: Context, record_id: str, keeper: Keeper) -> None:
    seen = context.ledger.read(record_id)
    if seen is not None and keeper.keeps(seen.record):
        looks = context.platform(seen.record.platform).late_looks
        context.login.as_client_of(account_of(seen.record))
        end_late(context, seen.record, due(seen.record, context.ledger.now(), looks))


def _announced(context: Context, record_id: str) -> int:
    """A card without a record: it is about to be written, or whoever wanted to write it is gone."""
    card = laid(context.home, record_id) or {}
    pid, started = card.get("client_pid"), card.get("client_start_time")
    if pid:
        host, boot = socket.gethostname(), boot_id()
        coming = is_alive(ProcessIdentity(host=host, boot=boot, pid=int(pid), start_time=str(started)))
    else:
        coming = time.time() - float(card.get("due") or 0.0) < ANNOUNCED_SECONDS
    # Looked at once more after the client: it may have written the record and ended since.
    if coming or context.ledger.read(record_id) is not None:
        return BUSY
    take_off(context.home, record_id)
    return 0


def _take_operation_lock(context: Context, record: KeptRecord) -> int | None:
    """Return the descriptor whose closing gives the record back; None: another process works on it."""
    place = context.home.record_dir(record.id)
    private_folder(place)
    path = place / OPERATION_LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        end_overdue_operation(context, record)
        return None
    os.utime(descriptor)  # since when: whoever waits for a hung one must know
    return descriptor


def _take(context: Context, record: KeptRecord, keeper: Keeper) -> KeptRecord:
    """Become the record's keeper; where it had another one, under a new generation that fences the old one out."""

    def change(now: KeptRecord) -> KeptRecord | None:
        before, moment = now.keeper, context.ledger.now()
        if now.state is State.RELEASED or keeper.keeps(now):
            return None
        if before is None:
            return now.revised(keeper=keeper, client=last_heard(now, moment))
        expired = not is_here(before.process) and busy_until(now) < moment
        if not is_provably_dead(before.process) and not expired:
            raise LeaseLost(f"{now.id} is kept by a live keeper, pid {before.process.pid} on {before.process.host}.")
        return now.revised(keeper=keeper, generation=now.generation + 1, client=last_heard(now, moment))

    why = "kept" if record.keeper is None else "taken over from a dead keeper"
    return revise(context.ledger, record.id, change, actor=context.actor, reason=why)


def _go_on(context: Context, record: KeptRecord, *, only_stop: bool = False) -> None:
    while record.state is not State.RELEASED:
        before = record
        record = look_at_client(context, record)
        if only_stop and record.state is not State.READY:
            if record.state is State.RELEASING:
                for problem in stop_pass(context, record):
                    sys.stderr.write(f"{record.id}: {problem}\n")
            return
        record = _advance(context, record)
        if record == before:
            return


def _advance(context: Context, record: KeptRecord) -> KeptRecord:
    """Do the next thing that a record needs now."""
    now = context.ledger.now()
    if record.state in {State.REQUESTED, State.PROVISIONING}:
        if record.deadline is not None and now >= record.deadline:
            reason = "its hard deadline passed before it was ready"
            return begin_release(context, record.id, reason=reason, drain=False, generation=record.generation)
        if isinstance(record, LeaseRecord) and record.keep_until is not None and now >= record.keep_until:
            reason = "its keep minutes are over, and it was not ready"
            return begin_release(context, record.id, reason=reason, drain=False, generation=record.generation)
        if isinstance(record, RolloutRecord):
            enter(context, record)  # its client may have been killed between the two writes
        return provision(context, record)
    if record.state in {State.RELEASING, State.STUCK}:
        return record if record.retry_at is not None and now < record.retry_at else release_pass(context, record)
    if isinstance(record, RolloutRecord):
        return advance(context, record)
    over = why_over(record, now.timestamp())
    if over is None:
        return record
    return begin_release(
        context, record.id, reason=over, drain=isinstance(record, LeaseRecord), generation=record.generation
    )


def _account_for(context: Context, record: KeptRecord, error: Exception) -> None:
    """Write down what an operation failed of, where the record can still be written."""
    try:
        now = current(context, record)
        if now.state in {State.REQUESTED, State.PROVISIONING}:
            known = isinstance(error, MlinfraError)
            fail(context, now, error if known else PermanentError(f"{type(error).__name__}: {error}"))  # type: ignore[arg-type]
        elif now.state is State.RELEASING:
            record_failed_pass(context, now, f"{type(error).__name__}: {error}")
    except MlinfraError as other:
        sys.stderr.write(f"{record.id}: {type(other).__name__}: {other}\n")


def main() -> NoReturn:
    """Run one operation and leave at once: nothing may run after the card is laid."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--watcher", required=True, help="PID:START")
    parser.add_argument("--place", choices=("process", "foreground", "service"), required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("step").add_argument("id")
    verbs.add_parser("renew").add_argument("ids", nargs="+")
    verbs.add_parser("stop").add_argument("ids", nargs="+")
    verbs.add_parser("pass")
    verbs.add_parser("lookout")
    arguments = parser.parse_args()
    pid, _, started = arguments.watcher.partition(":")
    process = ProcessIdentity(host=socket.gethostname(), boot=boot_id(), pid=int(pid), start_time=started)
    keeper = Keeper(place=arguments.place, process=process)
    try:
        home = Home(arguments.home)
        context = Context(home)
        context.login.as_latest()  # a shared ledger lies in a cloud, too
        if arguments.verb == "step":
            code = step(context, arguments.id, keeper)
        elif arguments.verb == "renew":
            code = renew(context, arguments.ids, keeper)
        elif arguments.verb == "stop":
            code = stop(context, arguments.ids, keeper)
        elif arguments.verb == "lookout":
            from mlinfra_prefect.keeper.lookout import keep_looking

            keep_looking(context, keeper)
            code = 0
        else:
            from mlinfra_prefect.keeper.reap import reap

            reap(context, settle_seconds=0.0)
            code = 0
    except MlinfraError as error:
        sys.stderr.write(f"{arguments.verb}: {type(error).__name__}: {error}\n")
        code = FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
