"""The keeper as a service: one long-running process that a host's own supervisor starts, and that keeps a whole ledger.

It becomes the watcher itself (`keeper.watch`), so what stays is small, has the pid that the supervisor knows, and gets
its signals. Told to end it starts nothing more and leaves; operations have sessions of their own and finish. Only in a
container, where everything ends with the first process, it waits for them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import NoReturn

from mlinfra_prefect.errors import LedgerUnavailable
from mlinfra_prefect.keeper.desk import watcher_alive
from mlinfra_prefect.keeper.place import own_place
from mlinfra_prefect.keeper.starting import watcher_argv, watcher_env
from mlinfra_prefect.lifecycle.config import CONFIG_VARIABLE, PLACE_VARIABLE
from mlinfra_prefect.lifecycle.context import ENGINE_VARIABLE, Context
from mlinfra_prefect.model.home import HOME_VARIABLE, Home

OLD_SECONDS = 60.0
"""A service that has not shown its life for so long hangs: six times the interval at which it does."""


def become_service(context: Context, *, with_reaper: bool) -> NoReturn:
    """Become the keeper service of a home: does not return.

    Its exit codes are in docs/cli.md; that another service keeps this home is one of them.

    Raises:
        LedgerUnavailable: the home cannot be written.
    """
    home = context.home
    try:
        os.close(os.open(home.keeper / "watch.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise LedgerUnavailable(
            f"{HOME_VARIABLE}: {home.root} cannot be written ({error.strerror}).",
            f"Point {HOME_VARIABLE} at a directory that this service can write, with room on its disk.",
        ) from error
    argv = watcher_argv(home, "service")
    if with_reaper:
        argv.append("--with-reaper")
    if own_place() == "foreground":
        argv.append("--wait-for-operations")
    env = watcher_env(context)
    env |= {name: os.environ[name] for name in (ENGINE_VARIABLE, CONFIG_VARIABLE) if name in os.environ}
    env[PLACE_VARIABLE] = "service"  # an operation that outlives this service starts no watcher in its place
    if context.config.source is not None:
        env.setdefault(CONFIG_VARIABLE, str(context.config.source))
    context.ledger.close()
    sys.stdout.flush()
    os.execve(sys.executable, argv, env)  # noqa: S606 (no shell is what is wanted)


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a service keeps a home, and why it is said to."""

    well: bool
    said: str


def check_health(home: Home) -> Health:
    """Say whether a keeper service watches a home and shows its life. Reads two files, changes nothing."""
    told = home.keeper / "watch.json"
    try:
        known = json.loads(told.read_bytes())
        age = time.time() - told.stat().st_mtime
    except (OSError, ValueError):
        known, age = {}, 0.0
    if not watcher_alive(home):
        return Health(False, f"No keeper service keeps {home.root}.")
    if known.get("place") != "service":
        return Health(False, f"{home.root} is kept by a keeper that a flow has started, and by no service.")
    if age > OLD_SECONDS:
        return Health(False, f"The keeper service, pid {known.get('pid')}, has not moved for {age:.0f} seconds.")
    return Health(True, f"The keeper service, pid {known.get('pid')}, keeps {home.root}.")
