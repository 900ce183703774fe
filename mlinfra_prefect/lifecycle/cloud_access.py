"""How a home logs in to its cloud: what clients' environments say, lent to the keeper that goes on without them.

A keeper may have been started by another client of the same home, on another day, and a reaper by cron: their
environment has no credentials, or old ones, or those of another account. So a client's ``AWS_*`` variables are kept in
the home, in private files (0600): the latest client's, and the latest of each account, because a home may have leases
in several. Operations take them from there. Where credentials come from a file, a role or an instance, nothing secret
is among them. Agents and training never see any of it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.wire import read_json_if_there, write_json
from mlinfra_prefect.errors import KeeperUnavailable, MlinfraError
from mlinfra_prefect.model.home import Home

PREFIX = "AWS_"
FILES = "login."
"""How the names of the files begin, beside what `init aws` keeps of environments: none of those has a dot there."""
LATEST = f"{FILES}latest"
FORMER = "login"
"""Where the first versions kept the latest client's, of whichever account. Read until a client lends anew."""
NOT_LENT = frozenset({"AWS_EXECUTION_ENV", "AWS_LAMBDA_RUNTIME_API"})
"""What is said of the process that has it, and of no other."""


def lend(home: Home, environment: Mapping[str, str], whose: Callable[[], str]) -> None:
    """Keep how this client logs in, for the operations of what it asks for. Idempotent; durable.

    A client without a variable logs in by a file, a role or an instance: then the operations do so, too.

    Args:
        home: where.
        environment: the client's.
        whose: tells the account that it logs in to; asked only where this login is another one than the latest. Where
            it cannot be told, the login is the latest one all the same.

    Raises:
        KeeperUnavailable: the home cannot be written.
    """
    lent = variables(environment)
    latest = _read(home.aws / LATEST)
    if latest is not None and latest.get("variables") == lent and latest.get("account"):
        return
    account = ""
    with contextlib.suppress(MlinfraError):
        account = whose()
    try:
        home.aws.mkdir(mode=0o700, exist_ok=True)
        if account:
            write_json(home.aws / f"{FILES}{account}", {"variables": lent, "account": account}, durable=True)
        write_json(home.aws / LATEST, {"variables": lent, "account": account}, durable=True)
        former = home.aws / FORMER
        if former.is_file():  # and not what is kept of an environment of that name
            former.unlink(missing_ok=True)
    except OSError as error:
        raise KeeperUnavailable(
            f"How to log in to AWS cannot be kept in {home.aws} ({error.strerror}).", "Look at that directory."
        ) from error


def kept(home: Home, account: str = "") -> dict[str, str]:
    """What was lent for an account; the latest where none was, or none is named. Empty: nothing yet, or no variable."""
    names = [f"{FILES}{account}"] if account.isascii() and account.isdecimal() else []
    for name in (*names, LATEST, FORMER):
        found = _read(home.aws / name)
        if found is not None:
            return dict(found["variables"])
    return {}


def account_here() -> str:
    """The account that this process is logged in to; asks once for each login.

    Raises:
        MlinfraError: it is logged in to none, or AWS cannot be asked.
    """
    from mlinfra_prefect.aws import environment

    return environment.account_here()


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What Terraform needs to log in: the part of an environment that is Amazon's."""
    found = os.environ if environment is None else environment
    return {name: value for name, value in found.items() if name.startswith(PREFIX) and name not in NOT_LENT}


class Login:
    """How one process logs in: by its own environment, or as a client of its home did.

    A session of another kind leaves nothing of the former one. Where nothing was lent, or a client that needs no
    variable lent that, it is the process's own again.

    Args:
        home: what was lent to.
        environment: of the process, which this changes; as it is now it is the process's own.
    """

    def __init__(self, home: Home, environment: MutableMapping[str, str]) -> None:
        self._home, self._environment, self.own = home, environment, variables(environment)

    def as_latest(self) -> None:
        """Log in as the latest client of this home did."""
        self._become(kept(self._home))

    def as_client_of(self, account: str) -> None:
        """Log in as the latest client of an account did; as the latest of all where none is known."""
        self._become(kept(self._home, account))

    def as_itself(self) -> None:
        """Log in as the process did when it began."""
        self._become({})

    def _become(self, lent: Mapping[str, str]) -> None:
        for name in variables(self._environment):
            del self._environment[name]
        self._environment.update(lent or self.own)


def _read(path: Path) -> dict[str, Any] | None:
    """One file; None: it is not there, or no whole login."""
    found = read_json_if_there(path)
    told = (found or {}).get("variables")
    if found is None or not isinstance(told, dict):
        return None
    return {**found, "variables": {str(name): str(value) for name, value in told.items()}}
