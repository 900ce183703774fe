"""The desk: how everybody else speaks to the watcher. Cards are laid on it, it is woken, and it is started when absent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from mlinfra_prefect.agent import allowlist
from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.errors import KeeperUnavailable
from mlinfra_prefect.keeper.place import Place, detect_place
from mlinfra_prefect.keeper.watch import is_held
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import LOCK_NAME, Context
from mlinfra_prefect.lifecycle.leasing import RENEW_SECONDS
from mlinfra_prefect.local.process import boot_id, is_here
from mlinfra_prefect.model.card import Card
from mlinfra_prefect.model.home import CACHE_VARIABLE, HOME_VARIABLE, Home
from mlinfra_prefect.model.lease import EndpointRecord, LeaseRecord, State
from mlinfra_prefect.model.process import ProcessIdentity

IDLE_SECONDS = 1.0
"""How long the watcher stays with an empty desk."""
START_SECONDS = 15.0
DRAIN_LEAD_SECONDS = 300.0
"""*Checkpoint now* comes this long before the hard deadline, but never before five sixths of the lease's life."""
PASSED_ON = ("MLINFRA_CONFIG", "MLINFRA_TERRAFORM", "MLINFRA_KEEPER_PLACE", CACHE_VARIABLE)


def drain_at(record: LeaseRecord) -> float:
    """The moment (epoch seconds) at which a healthy lease begins to drain so that it is gone at its deadline."""
    life = (record.deadline - record.created_at).total_seconds()
    return (record.deadline - timedelta(seconds=min(DRAIN_LEAD_SECONDS, life / 6))).timestamp()


def card_of(record: KeptRecord, home: Home) -> Card | None:
    """Return what the watcher must know of a record; None when there is nothing to watch."""
    if record.state is State.RELEASED:
        return None
    due: float | None = record.created_at.timestamp()
    if record.state in {State.RELEASING, State.STUCK}:
        due = record.retry_at.timestamp() if record.retry_at else due
    elif record.state is State.READY and isinstance(record, LeaseRecord):
        due = drain_at(record)
        if record.keep_until is not None:
            due = min(due, record.keep_until.timestamp())
    elif record.state is State.READY and isinstance(record, EndpointRecord):
        if record.expires_at is None:
            return None
        due = record.expires_at.timestamp()
    client = record.client
    watched = (
        client.kind == "process"
        and client.process is not None
        and client.ended_at is None
        and client.lost_at is None
        and record.live
        and not (isinstance(record, EndpointRecord) and record.state is State.READY)
        and is_here(client.process)
        and client.process.boot == boot_id()
    )
    attempt = record.attempt
    return Card(
        kind=record.kind,
        id=record.id,
        generation=record.generation,
        state=record.state,
        client_pid=client.process.pid if watched and client.process else None,
        client_start_time=client.process.start_time if watched and client.process else None,
        client_fifo=str(fifo_of(home, record.id)) if watched else None,
        due=due,
        renew=record.live and isinstance(record, LeaseRecord),
        env={
            "MLINFRA_LEDGER_ID": record.ledger_id,
            "MLINFRA_LEASE_ID": record.id,
            "MLINFRA_ATTEMPT": str(attempt.number if attempt else 1),
            "MLINFRA_DEADLINE": str(record.deadline.timestamp()) if record.deadline else "",
        },
        lock_files=tuple(str(Path(a.directory) / LOCK_NAME) for a in record.attempts if a.state != "released"),
    )


def fifo_of(home: Home, record_id: str) -> Path:
    """The named pipe that the client of a record holds open."""
    return home.clients / f"{record_id}.fifo"


def lay(context: Context, record: KeptRecord) -> None:
    """Put a record's card on the desk, or take it off when there is nothing to watch. Idempotent."""
    home = context.home
    card = card_of(record, home)
    path = home.cards / f"{record.id}.json"
    if card is None:
        path.unlink(missing_ok=True)
        fifo_of(home, record.id).unlink(missing_ok=True)
        return
    if card.client_fifo and not Path(card.client_fifo).exists():
        with contextlib.suppress(FileExistsError):
            os.mkfifo(card.client_fifo, 0o600)
    write_json(path, json.loads(card.model_dump_json()))


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


def has_work(home: Home) -> bool:
    """Whether any card lies on the desk."""
    try:
        return any(item.name.endswith(".json") for item in os.scandir(home.cards))
    except FileNotFoundError:
        return False


def wake(home: Home, *record_ids: str) -> bool:
    """Tell the watcher to look at some records now; False when no watcher listens."""
    try:
        pipe = os.open(home.keeper / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(pipe, "".join(f"{record_id}\n" for record_id in record_ids).encode())
    except OSError:
        return False
    finally:
        os.close(pipe)
    return watcher_alive(home)


@contextmanager
def _door(home: Home) -> Iterator[None]:
    """Nobody leaves the desk while somebody comes in."""
    descriptor = os.open(home.keeper / "door.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def place_of(context: Context, environment: str = "dev") -> Place:
    """Where the keeper lives for an environment of this project."""
    configured = context.config.environments.get(environment)
    return detect_place(configured=configured.keeper_place if configured else None)


def ensure_watcher(context: Context, *record_ids: str) -> None:
    """Start the watcher of this home unless there is one, and have it look at some records. Returns when it watches.

    Raises:
        KeeperUnavailable: it could not be started; what it wrote is in ``keeper/watch.log``.
    """
    home = context.home
    with _door(home):
        if watcher_alive(home):
            wake(home, *record_ids)
            return
        log = os.open(home.keeper / "watch.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            started = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", str(Path(__file__).with_name("watch.py")),
                    "--home", str(home.root), "--python", sys.executable, "--place", place_of(context),
                    "--renew-seconds", str(RENEW_SECONDS), "--idle-seconds", str(IDLE_SECONDS),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env=watcher_env(context),
            )  # fmt: skip
            code = started.wait(timeout=START_SECONDS)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KeeperUnavailable(
                f"The keeper could not be started: {error}.", f"Look at {home.keeper / 'watch.log'}."
            ) from error
        finally:
            os.close(log)
        if code != 0:
            raise KeeperUnavailable(
                f"The keeper could not be started (exit code {code}).", f"Look at {home.keeper / 'watch.log'}."
            )
    wake(home, *record_ids)


def watcher_env(context: Context) -> dict[str, str]:
    """What the watcher and its operations may see: the allow-list, where the home is, and where the package lies."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    if context.config.source is not None:
        passed.setdefault("MLINFRA_CONFIG", str(context.config.source))
    package = str(Path(__file__).resolve().parent.parent.parent)
    return {
        **allowlist.inherited(pip=True),
        **passed,
        HOME_VARIABLE: str(context.home.root),
        "MLINFRA_LEDGER_ID": context.ledger.ledger_id,
        "PYTHONPATH": package,
        "PYTHONUNBUFFERED": "1",
    }


def is_provably_dead(process: ProcessIdentity) -> bool:
    """Whether a process is of this host and gone."""
    from mlinfra_prefect.local.process import is_alive

    return is_here(process) and not is_alive(process)
