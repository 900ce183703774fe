"""Start the watcher where there is none: outside of this process's tree, session and terminal, and of its cgroup."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlinfra_prefect import killpoints
from mlinfra_prefect.agent import allowlist
from mlinfra_prefect.errors import KeeperUnavailable
from mlinfra_prefect.keeper.desk import has_work, lay, service_here, wake, watcher_alive
from mlinfra_prefect.keeper.place import Place, own_place, place_of
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.config import PLACE_VARIABLE
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import RENEW_SECONDS
from mlinfra_prefect.model.home import CACHE_VARIABLE, HOME_VARIABLE, Home
from mlinfra_prefect.model.ledger_address import LEDGER_VARIABLE
from mlinfra_prefect.model.marks import common_marks

IDLE_SECONDS = 1.0
"""How long the watcher stays with an empty desk."""
MISSING_SECONDS = 60.0
"""How long the watcher stays when its interpreter or this package is gone: longer than an upgrade takes."""
START_SECONDS = 15.0
DOOR_SECONDS = 30.0
DOOR_POLL_SECONDS = 0.005
SYSTEMD = Path("/run/systemd/system")
"""There where systemd runs the host."""
BUS_VARIABLES = ("XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")


def ensure_watcher(context: Context, *record_ids: str) -> None:
    """Start the watcher of this home unless there is one, and have it look at some records. Returns when it watches.

    Raises:
        KeeperUnavailable: it could not be started; what it wrote is in ``keeper/watch.log``.
    """
    home = context.home
    try:
        with _door(home):
            if not watcher_alive(home):
                _start(context)
                if not watcher_alive(home):
                    raise _unavailable(home, "it ended at once")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unavailable(home, str(error)) from error
    wake(home, *record_ids)


def have_kept(context: Context, record: KeptRecord, *, asked_here: bool = False) -> None:
    """Lay the card of a record and see that a watcher looks at it; starts one where there is none.

    What a service keeps is never given to another keeper: where none holds the desk of this home, nothing is laid
    (`asked_here` as in `lay`), and the service finds the record in the ledger.

    Raises:
        KeeperUnavailable: the card cannot be laid, or no watcher started.
    """
    if record.keeper_place == "service" and not service_here(context.home):
        return
    lay(context, record, asked_here=asked_here)
    if record.keeper_place == "service":
        wake(context.home, record.id)
    else:
        ensure_watcher(context, record.id)


def replace_lost_keeper(context: Context) -> None:
    """Start a watcher where cards lie on the desk and nobody watches: every CLI verb calls this.

    Not where a service keeps leases of this project: whoever runs it starts it again.
    """
    if context.config.knows_service:
        return
    if has_work(context.home) and not watcher_alive(context.home):
        ensure_watcher(context)


@contextmanager
def _door(home: Home) -> Iterator[None]:
    """Nobody leaves the desk while somebody comes in."""
    descriptor = os.open(home.keeper / "door.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + DOOR_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"nobody came through its door for {DOOR_SECONDS:.0f} s") from None
                time.sleep(DOOR_POLL_SECONDS)
            else:
                break
        yield
    finally:
        os.close(descriptor)


def watcher_argv(home: Home, place: Place) -> list[str]:
    """The command line of a watcher. Pure."""
    return [
        sys.executable, "-I", "-S", str(Path(__file__).with_name("watch.py")),
        "--home", str(home.root), "--python", sys.executable, "--place", place,
        "--renew-seconds", str(RENEW_SECONDS), "--idle-seconds", str(IDLE_SECONDS),
        "--missing-seconds", str(MISSING_SECONDS),
    ]  # fmt: skip


def _start(context: Context) -> None:
    home, place = context.home, place_of(context)
    # Who takes over what a dead service left is no service.
    argv = watcher_argv(home, own_place() if place == "service" else place)
    env = watcher_env(context)
    log = os.open(home.keeper / "watch.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        code = 1
        scope = scope_argv()
        if scope:
            bus = {name: os.environ[name] for name in BUS_VARIABLES if name in os.environ}
            code = _run([*scope, *argv], {**env, **bus}, log)
        if code != 0:  # no systemd, or one that does not let us
            code = _run(argv, env, log)
    finally:
        os.close(log)
    if code != 0:
        raise _unavailable(home, f"exit code {code}")


def _run(argv: list[str], env: dict[str, str], log: int) -> int:
    started = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/", env=env
    )
    try:
        return started.wait(timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()
        raise


def scope_argv(systemd: Path = SYSTEMD) -> list[str]:
    """What to put before a command so that systemd gives it a cgroup of its own: a worker's unit is stopped whole.

    Empty where systemd does not run the host.
    """
    program = shutil.which("systemd-run") if systemd.is_dir() else None
    if program is None:
        return []
    return [program, *(["--user"] if os.geteuid() else []), "--scope", "--quiet", "--collect", "--"]


def watcher_env(context: Context) -> dict[str, str]:
    """What the watcher and its operations may see: the allow-list, where the home is, and where the package lies."""
    passed = {name: os.environ[name] for name in (PLACE_VARIABLE, CACHE_VARIABLE) if name in os.environ}
    return {
        **allowlist.inherited(pip=True),
        **passed,
        **_to_reach_the_ledger(context),
        **common_marks(context.ledger.ledger_id),
        **killpoints.passed_on(context.home.root),
        HOME_VARIABLE: str(context.home.root),
        "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent),
        "PYTHONUNBUFFERED": "1",
    }


def _to_reach_the_ledger(context: Context) -> dict[str, str]:
    """What the keeper's own operations need for a shared ledger; Terraform, agents and training get none of it."""
    if context.address is None:
        return {}
    cloud = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**cloud, LEDGER_VARIABLE: str(context.address)}


def _unavailable(home: Home, why: str) -> KeeperUnavailable:
    return KeeperUnavailable(f"The keeper could not be started: {why}.", f"Look at {home.keeper / 'watch.log'}.")
