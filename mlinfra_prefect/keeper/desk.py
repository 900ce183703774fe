"""The desk: how everybody else speaks to the watcher. Cards are laid on it and taken off, and the watcher is woken."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mlinfra_prefect import killpoints
from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import KeeperUnavailable
from mlinfra_prefect.keeper.place import place_of
from mlinfra_prefect.keeper.watch import is_held
from mlinfra_prefect.lifecycle.clients import silent_from, why_gone
from mlinfra_prefect.lifecycle.context import ENGINE_VARIABLE, LOCK_NAME, Context
from mlinfra_prefect.lifecycle.releasing import UPLOAD_SECONDS
from mlinfra_prefect.lifecycle.whose_host import on_another_host
from mlinfra_prefect.local.process import is_here, is_provably_dead
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.endpoint import EndpointRecord, KeptRecord, RolloutRecord
from mlinfra_prefect.model.home import CACHE_VARIABLE, Home
from mlinfra_prefect.model.lease import AttemptState, LeaseRecord, State
from mlinfra_prefect.model.ledger_address import LEDGER_VARIABLE
from mlinfra_prefect.model.marks import marks

DRAIN_LEAD_SECONDS = 300.0
"""*Checkpoint now* comes this long before the hard deadline (longer for a longer grace), but never before five sixths
of the lease's life."""
LOOK_SECONDS = 15.0
"""How often an operation looks for a client that the watcher cannot see: one in another PID namespace."""
PASSED_ON = ("MLINFRA_CONFIG", LEDGER_VARIABLE, ENGINE_VARIABLE, CACHE_VARIABLE, "PATH")
"""What an operation takes from whoever asked for its record, and not from whoever happened to start the watcher."""

__all__ = [
    "card_of", "drain_at", "fifo_of", "has_work", "is_provably_dead", "laid", "lay", "place_of", "service_here",
    "take_off", "wake", "watcher_alive", "watcher_identity", "why_over",
]  # fmt: skip


def drain_at(record: LeaseRecord) -> float:
    """The moment (epoch seconds) at which a healthy lease begins to drain so that it is gone at its deadline."""
    life = (record.deadline - record.created_at).total_seconds()
    lead = min(max(DRAIN_LEAD_SECONDS, record.request.grace_seconds + UPLOAD_SECONDS), life / 6)
    return (record.deadline - timedelta(seconds=lead)).timestamp()


def empty_until(record: EndpointRecord) -> float:
    """Until when (epoch seconds) an endpoint may wait for its first version. Pure."""
    return record.created_at.timestamp() + 60.0 * record.serving.rollout_minutes


def due_at(record: KeptRecord) -> float | None:
    """The next moment (epoch seconds) at which a record needs an operation; None: none by the clock. Pure."""
    if record.state in {State.RELEASING, State.STUCK}:
        return (record.retry_at or record.created_at).timestamp()
    if record.state is not State.READY:
        begins = (record.retry_at or record.created_at).timestamp()
        kept = record.keep_until if isinstance(record, LeaseRecord) else None
        return begins if kept is None else min(begins, kept.timestamp())
    if isinstance(record, EndpointRecord):
        if record.current is None:
            return empty_until(record)
        return record.expires_at.timestamp() if record.expires_at else None
    if isinstance(record, RolloutRecord):
        if record.promoted_at is None:
            return min(record.due or record.created_at, record.until).timestamp()
        return record.due.timestamp() if record.due else None
    due = drain_at(record)
    return due if record.keep_until is None else min(due, record.keep_until.timestamp())


def why_over(record: LeaseRecord | EndpointRecord, now: float) -> str | None:
    """Why the time of a ready record is over at `now` (epoch seconds); None: it is not. Pure."""
    if isinstance(record, EndpointRecord):
        if record.current is None and now >= empty_until(record):
            return "it got no version in time"
        return "it expired" if record.expires_at is not None and now >= record.expires_at.timestamp() else None
    if now >= drain_at(record):
        return "its hard deadline is near"
    return (
        "its keep minutes are over" if record.keep_until is not None and now >= record.keep_until.timestamp() else None
    )


def stands(record: EndpointRecord | RolloutRecord) -> bool:
    """Whether what is served stands by itself, as far as its own record knows: no client is watched for it. Pure."""
    return record.live and (record.current if isinstance(record, EndpointRecord) else record.promoted_at) is not None


def card_of(record: KeptRecord, home: Home, here: Callable[[datetime], float] = datetime.timestamp) -> Card | None:
    """Return what the watcher must know of a record; None when there is nothing to watch.

    `here` says when a moment of the ledger's clock is on this host's, the only one that the watcher sees.
    """
    due = due_at(record)
    if record.state is State.RELEASED or due is None:
        return None
    ahead = here(record.created_at) - record.created_at.timestamp()
    due += ahead
    process = record.client.process
    served = isinstance(record, EndpointRecord | RolloutRecord) and stands(record)
    has_client = process is not None and record.client.ended_at is None and record.client.lost_at is None
    watched = process if has_client and record.live and not served else None
    silent = silent_from(record) if watched is not None else None
    if silent is not None:
        due = min(due, silent.timestamp() + ahead)
    if watched is not None and not is_here(watched):
        if silent is None and why_gone(record) is None:
            due = min(due, time.time() + LOOK_SECONDS)
        watched = None
    if record.live and not served and record.client.ended_at is not None and record.client.lost_at is None:
        due = min(due, record.client.ended_at.timestamp() + ahead)
    attempt = record.attempt
    number = 1 if attempt is None else attempt.number + (record.live and attempt.state is AttemptState.RELEASED)
    left = [each for each in record.attempts if each.state is not AttemptState.RELEASED]
    deadlines = [each.operation_deadline.timestamp() + ahead for each in left if each.operation_deadline]
    return Card(
        kind=record.kind,
        id=record.id,
        generation=record.generation,
        state=record.state,
        client_pid=watched.pid if watched else None,
        client_start_time=watched.start_time if watched else None,
        client_fifo=str(fifo_of(home, record.id)) if watched else None,
        due=due,
        renew=record.live and not served and not isinstance(record, EndpointRecord),
        env=marks(record, number, here),
        lock_files=tuple(str(Path(each.directory) / LOCK_NAME) for each in left),
        operation_deadline=max(deadlines, default=None),
    )


def fifo_of(home: Home, record_id: str) -> Path:
    """The named pipe that the client of a record holds open."""
    return home.clients / f"{record_id}.fifo"


def path_of(home: Home, record_id: str) -> Path:
    """Where the card of a record lies."""
    return home.cards / f"{record_id}.json"


def lay(context: Context, record: KeptRecord, *, asked_here: bool = False) -> None:
    """Put a record's card on the desk, or take it off when there is nothing to watch. Idempotent.

    What another host must answer for (`whose_host`) is left to that host's desk.

    Args:
        context: where.
        record: as it stands in the ledger.
        asked_here: its operations take configuration and engine from this process, not from who laid it before.

    Raises:
        KeeperUnavailable: the desk cannot be written.
    """
    home = context.home
    card = None if on_another_host(context, record) else card_of(record, home, context.here)
    if card is None:
        take_off(home, record.id)
        return
    before: dict[str, Any] = {} if asked_here else (laid(home, record.id) or {}).get("env") or {}
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if context.config.source is not None:
        passed.setdefault("MLINFRA_CONFIG", str(context.config.source))
    passed |= killpoints.passed_on(home.root)
    kept = {name: value for name, value in before.items() if name in (*PASSED_ON, killpoints.VARIABLE)}
    env = {**passed, **kept, **card.env}
    try:
        if card.client_fifo:
            with contextlib.suppress(FileExistsError):
                os.mkfifo(card.client_fifo, 0o600)
        write_json(path_of(home, record.id), {**json.loads(card.model_dump_json()), "env": env})
    except OSError as error:
        raise KeeperUnavailable(
            f"The card of {record.id} cannot be written ({error.strerror}).", f"Look at {home.keeper}, and at its disk."
        ) from error


def laid(home: Home, record_id: str) -> dict[str, Any] | None:
    """Return the card of a record as it lies on the desk, or None."""
    return read_json_if_there(path_of(home, record_id))


def take_off(home: Home, record_id: str) -> None:
    """Take a card off the desk. Idempotent."""
    path_of(home, record_id).unlink(missing_ok=True)
    fifo_of(home, record_id).unlink(missing_ok=True)


def watcher_alive(home: Home) -> bool:
    """Whether a watcher holds the desk."""
    return is_held(str(home.keeper / "watch.lock"))


def watcher_identity(home: Home) -> tuple[int, str] | None:
    """Pid and start time of the watcher, or None when there is none."""
    if not watcher_alive(home):
        return None
    with contextlib.suppress(OSError, ValueError, KeyError):
        told = json.loads((home.keeper / "watch.json").read_bytes())
        return int(told["pid"]), str(told["start_time"])
    return None


def service_here(home: Home) -> bool:
    """Whether a keeper service holds the desk of this home."""
    if not watcher_alive(home):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        return bool(json.loads((home.keeper / "watch.json").read_bytes())["place"] == "service")
    return False


def has_work(home: Home) -> bool:
    """Whether any card lies on the desk."""
    try:
        return any(item.name.endswith(".json") and item.name[0] != "." for item in os.scandir(home.cards))
    except FileNotFoundError:
        return False


def wake(home: Home, *record_ids: str) -> bool:
    """Have the watcher look at its desk, and at some records in the ledger; False when no watcher listens."""
    try:
        pipe = os.open(home.keeper / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(pipe, "".join(f"{record_id}\n" for record_id in record_ids or ("",)).encode())
    except OSError:
        return False
    finally:
        os.close(pipe)
    return watcher_alive(home)
