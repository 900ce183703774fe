"""The checks of ``doctor``: each answers one question, and names the next step where the answer is not good."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from mlinfra_prefect.cli.attention import replace_lost_keeper
from mlinfra_prefect.cli.prefect_api import prefect_api
from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.keeper.desk import has_work, watcher_identity
from mlinfra_prefect.keeper.place import place_of
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.ledger.mounts import refuse_network_file_system
from mlinfra_prefect.lifecycle.config import load_config
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.ledger_place import ledger_address
from mlinfra_prefect.local.platform import gpus
from mlinfra_prefect.model.home import HOME_VARIABLE, Home
from mlinfra_prefect.model.lease import OPEN, State

OLDEST_PYTHON = (3, 11)
ENOUGH_BYTES = 4 << 30
"""A serving environment takes about 700 MB, a Terraform engine 100 MB; the rest is for artifacts."""
TOO_FEW_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One answer. `status` is OK, WARN or FAIL; `next_step` says what to do where it is not OK."""

    name: str
    status: str
    message: str
    next_step: str = ""


def examined() -> list[Check]:
    """Run every check; one that breaks is a FAIL of its own and never stops the others."""
    home = Home.from_environment()
    checks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python), ("system", _system), ("packages", _packages), ("home", lambda: _home(home)),
        ("disk", lambda: _disk(home)), ("config", _config), ("terraform", lambda: _engine(home)),
        ("serving", lambda: _serving(home)), ("gpus", _gpus), ("ledger", lambda: _ledger(home)),
        ("keeper", lambda: _keeper(home)), ("prefect api", _prefect_api),
    ]  # fmt: skip
    found: list[Check] = []
    for name, check in checks:
        try:
            found.extend(check())
        except MlinfraError as error:
            found.append(Check(name, "FAIL", error.message, error.remedy or "Mend that, then run doctor again."))
        except OSError as error:
            found.append(
                Check(name, "FAIL", f"{error.filename or ''}: {error.strerror}", "Check its owner and its modes.")
            )
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < OLDEST_PYTHON:
        yield Check("python", "FAIL", f"{version} is too old", "Install Python 3.11 or newer.")
    else:
        yield Check("python", "OK", f"{version} at {sys.executable}")


def _system() -> Iterator[Check]:
    if sys.platform == "linux":
        yield Check("system", "OK", f"Linux {os.uname().release}")
    elif sys.platform == "darwin":
        yield Check("system", "WARN", "macOS is written for, but untested", "Prefer Linux for work that matters.")
    else:
        yield Check("system", "FAIL", f"{sys.platform} is not supported", "Use Linux; on Windows that is WSL 2.")


def _packages() -> Iterator[Check]:
    """The versions that this package's own metadata bounds: outside of them Prefect's server is known to break."""
    wanted = [Requirement(text) for text in metadata.requires("mlinfra_prefect") or ()]
    for name in ("prefect", "fastapi"):
        bound = next((each.specifier for each in wanted if each.name == name and each.marker is None), None)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "FAIL", "is not installed", f"pip install '{name}{bound or ''}'")
            continue
        if bound is not None and not bound.contains(version, prereleases=True):
            yield Check(name, "FAIL", f"{version} is outside {bound}", f"pip install '{name}{bound}'")
        else:
            yield Check(name, "OK", f"{version}, within {bound}")


def _home(home: Home) -> Iterator[Check]:
    root = home.root
    if not root.exists():
        parent = next(place for place in root.parents if place.exists())
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            yield Check("home", "OK", f"{root} is made when it is first needed")
        else:
            next_step = f"Set {HOME_VARIABLE} to a directory of yours."
            yield Check("home", "FAIL", f"{root} cannot be made in {parent}", next_step)
        return
    if not (root.is_dir() and os.access(root, os.W_OK | os.X_OK)):
        yield Check("home", "FAIL", f"{root} cannot be written", f"Set {HOME_VARIABLE} to a directory of yours.")
    elif root.stat().st_mode & 0o077:
        yield Check("home", "WARN", f"{root} can be opened by other users", f"chmod 700 {root}")
    else:
        yield Check("home", "OK", f"{root} is writable and private")


def _disk(home: Home) -> Iterator[Check]:
    place = next(place for place in (home.root, *home.root.parents) if place.exists())
    free = shutil.disk_usage(place).free
    told = f"{free / (1 << 30):.1f} GiB free at {place}"
    if free < TOO_FEW_BYTES:
        yield Check("disk", "FAIL", told, f"Free some, or set {HOME_VARIABLE} to a larger disk.")
    elif free < ENOUGH_BYTES:
        yield Check("disk", "WARN", told, "The environments of servers and your artifacts need more: free some.")
    else:
        yield Check("disk", "OK", told)


def _config() -> Iterator[Check]:
    config = load_config()
    where = str(config.source) if config.source else "no file, so the built-in dev on local"
    yield Check("config", "OK", f"{where}; environments: {', '.join(sorted(config.environments))}")


def _engine(home: Home) -> Iterator[Check]:
    # Asking an engine for its version remembers it in the cache, so a home that is not there yet is made here.
    engine = Context(home).engine
    yield Check("terraform", "OK", f"{engine.name} {engine.version} at {engine.path}")


def _serving(home: Home) -> Iterator[Check]:
    """Whether the environment of an inference server can be built; building it here would take minutes."""
    built = list((home.cache / "environments").glob("*/complete.json"))
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if missing:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        yield Check("serving", "WARN", f"this Python has no {' and no '.join(missing)}: no server can be installed",
                    f"On Debian or Ubuntu: apt install python{version}-venv")  # fmt: skip
    elif built:
        yield Check("serving", "OK", f"{len(built)} environment(s) are built in {home.cache / 'environments'}")
    else:
        yield Check("serving", "OK", "an environment can be built; the first endpoint takes a minute longer for it")


def _gpus() -> Iterator[Check]:
    found = gpus()
    yield Check("gpus", "OK", ", ".join(found) if found else "none: the local platform has 'cpu' only")


def _ledger(home: Home) -> Iterator[Check]:
    context = None if ledger_address(home, os.environ) is None else Context(home)
    if context is None:
        refuse_network_file_system(home.ledger)
    if context is None and not home.ledger.exists():
        yield Check("ledger", "OK", f"{home.ledger} is made with the first lease")
        return
    ledger = SqliteLedger(home.ledger) if context is None else context.ledger
    try:
        broken = ledger.unreadable()
        stuck = [seen.record.id for seen in ledger.records(states=[State.STUCK])]
        # A shared one is asked for what is open only: each released record would cost a call.
        states = None if context is None else OPEN
        count = len(ledger.records(states=states))
        identity = ledger.ledger_id
    finally:
        ledger.close()
    for record_id, why in broken:
        yield Check("ledger", "FAIL", f"{record_id}: {why}", "Nothing of it is touched until it can be read.")
    if stuck:
        yield Check("ledger", "WARN", f"{len(stuck)} stuck: {', '.join(stuck)}", f"mlinfra-prefect show {stuck[0]}")
    yield Check("ledger", "OK", f"{count} record(s) can be read; its id is {identity}")


def _prefect_api() -> Iterator[Check]:
    for status, message, next_step in prefect_api():
        yield Check("prefect api", status, message, next_step)


def _keeper(home: Home) -> Iterator[Check]:
    if not home.root.is_dir():
        yield Check("keeper", "OK", "starts with the first lease")
        return
    place = place_of(Context(home))
    if replace_lost_keeper(home):
        yield Check("keeper", "WARN", "was lost; a new one has been started", "Look again: mlinfra-prefect ps")
        return
    alive = watcher_identity(home)
    if alive is not None:
        yield Check("keeper", "OK", f"pid {alive[0]} watches; its place is {place}")
    elif has_work(home):
        told = Path(home.keeper / "watch.log")
        yield Check("keeper", "FAIL", "is gone while there is work, and does not start", f"Look at {told}.")
    else:
        yield Check("keeper", "OK", f"not needed now; its place would be {place}")
    if place == "foreground":
        yield Check("keeper", "WARN", "this is a container or PID namespace: the keeper ends with it",
                    "Fine for flows that end in it; else run `mlinfra-prefect reap` on a schedule.")  # fmt: skip
