"""An environment that no file of the project defines: it holds for this process, and for what it asks for.

The keeper's operations are processes of their own, on other days, and read caps and input roots again. So what holds
here is written down in the home as a whole configuration, under a name made of its content: a lease keeps the
environment under which it was asked for, whatever is applied later. It travels as every other configuration does, by
``MLINFRA_CONFIG`` on the record's card.

A file of the project cannot be overruled from here: its caps would be gone without a word.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

from mlinfra_prefect.agent.wire import write_json
from mlinfra_prefect.errors import InvalidInput, LedgerUnavailable
from mlinfra_prefect.lifecycle.config import CONFIG_VARIABLE, Config
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.names import digest

_lock = threading.Lock()
_applied: dict[tuple[Path, str], Environment] = {}
"""What this process applied to a home: only that may be replaced by an environment of the same name."""


def apply_environment(context: Context, environment: Environment) -> None:
    """Let an environment hold from now on, in this process and in the operations of what it asks for. Idempotent.

    Raises:
        InvalidInput: the project's configuration says something else of that name.
        LedgerUnavailable: the home cannot be written.
    """
    with _lock:
        config, name = context.config, environment.name
        mine = (context.home.root, name)
        there = config.environments.get(name)
        if there == environment:
            return
        if there not in {None, Environment(name=name), _applied.get(mine)}:
            raise InvalidInput(
                "environment",
                f"{name!r} is defined by {config.source} already, and differently",
                "Use another name, or take it out of that file: its caps are not overruled from elsewhere.",
            )
        path = _written(context, {**config.environments, name: environment}, config)
        _applied[mine] = environment
        os.environ[CONFIG_VARIABLE] = str(path)
        vars(context).pop("config", None)  # it is read again, from there


def _written(context: Context, environments: dict[str, Environment], config: Config) -> Path:
    values = {
        "environments": {
            name: json.loads(each.model_dump_json(exclude={"name"})) for name, each in sorted(environments.items())
        },
        **({"terraform": str(config.terraform.absolute())} if config.terraform else {}),
        **({"ledger": str(config.ledger)} if config.ledger else {}),
    }
    place = context.home.root / "environments"
    path = place / f"{digest('configuration', json.dumps(values, sort_keys=True))}.json"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        write_json(path, values, durable=True)
    except OSError as error:
        raise LedgerUnavailable(
            f"The environment cannot be written to {place} ({error.strerror}).", "Look at that directory and its disk."
        ) from error
    return path
