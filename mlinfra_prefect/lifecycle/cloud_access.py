"""How a home logs in to its cloud: what the client's environment says, lent to the keeper that goes on without it.

A keeper may have been started by another client of the same home, on another day, and a reaper by cron: their
environment has no credentials, or old ones. So the client's ``AWS_*`` variables are kept in the home, in one private
file (0600) that the latest client replaces; operations take them from there. Where credentials come from a file, a role
or an instance, nothing secret is among them. Agents and training never see any of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import KeeperUnavailable
from mlinfra_prefect.model.home import Home

PREFIX = "AWS_"
FILE = "login"
"""Beside notes of environments, of which none can be called so: theirs end with .json."""
NOT_LENT = frozenset({"AWS_EXECUTION_ENV", "AWS_LAMBDA_RUNTIME_API"})
"""What is said of the process that has it, and of no other."""


def lend(home: Home, environment: Mapping[str, str]) -> None:
    """Keep how this client logs in, for the operations of what it asks for. Idempotent; durable.

    A client without a variable logs in by a file, a role or an instance: then the operations do so, too.

    Raises:
        KeeperUnavailable: the home cannot be written.
    """
    lent = variables(environment)
    if lent == kept(home):
        return
    try:
        home.aws.mkdir(mode=0o700, exist_ok=True)
        write_json(home.aws / FILE, {"variables": lent}, durable=True)
    except OSError as error:
        raise KeeperUnavailable(
            f"How to log in to AWS cannot be kept in {home.aws} ({error.strerror}).", "Look at that directory."
        ) from error


def borrow(home: Home, environment: MutableMapping[str, str]) -> None:
    """Log in as the latest client of this home did. A session of another kind leaves nothing of the former one."""
    lent = kept(home)
    if lent:
        for name in [name for name in environment if name.startswith(PREFIX) and name not in NOT_LENT]:
            del environment[name]
        environment.update(lent)


def kept(home: Home) -> dict[str, str]:
    """What was lent; empty: nothing yet."""
    found = (read_json_if_there(home.aws / FILE) or {}).get("variables")
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What Terraform needs to log in: the part of an environment that is Amazon's."""
    found = os.environ if environment is None else environment
    return {name: value for name, value in found.items() if name.startswith(PREFIX) and name not in NOT_LENT}
