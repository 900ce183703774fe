"""The project's configuration: environments, read from ``mlinfra-prefect.toml`` or ``pyproject.toml``.

The nearest file at or above the working directory wins, or the one that ``MLINFRA_CONFIG`` names. Without any,
``dev`` on ``local`` exists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.lifecycle.ledger_place import from_table
from mlinfra_prefect.lifecycle.project_file import (
    CONFIG_VARIABLE as CONFIG_VARIABLE,  # noqa: PLC0414 (whoever reads the configuration knows its variable)
    FILE_NAME,
    find_project,
)
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.ledger_address import LedgerAddress
from mlinfra_prefect.model.record import parsed

PLACE_VARIABLE = "MLINFRA_KEEPER_PLACE"
"""Goes before what an environment says of its keeper's place."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the project says."""

    environments: Mapping[str, Environment] = field(default_factory=lambda: {"dev": Environment(name="dev")})
    terraform: Path | None = None
    source: Path | None = None
    ledger: LedgerAddress | None = None

    def environment(self, name: str) -> Environment:
        """Return an environment.

        Raises:
            InvalidInput: there is none of that name.
        """
        found = self.environments.get(name)
        if found is None:
            where = str(self.source) if self.source else f"a {FILE_NAME}"
            raise InvalidInput(
                "environment",
                f"{name!r} is not an environment; there is {', '.join(sorted(self.environments))}",
                f"Write [environments.{name}] into {where}, or use one of those.",
            )
        return found

    def asks_service(self, name: str) -> bool:
        """Whether leases of an environment are kept by a service, and nobody starts a keeper of their own for them."""
        named = os.environ.get(PLACE_VARIABLE)
        configured = self.environments.get(name)
        return named == "service" if named else configured is not None and configured.keeper_place == "service"

    @property
    def knows_service(self) -> bool:
        """Whether any environment's leases are kept by a service."""
        return any(map(self.asks_service, self.environments))


def load_config(start: Path | None = None) -> Config:
    """Read the configuration that holds at `start` (None: the working directory).

    Raises:
        InvalidInput: a file is malformed; the message names file and field.
    """
    found = find_project(start)
    return _parsed(*found) if found else Config()


def _parsed(path: Path, table: Mapping[str, Any]) -> Config:
    environments = {"dev": Environment(name="dev")}
    listed = table.get("environments", {})
    if not isinstance(listed, dict):
        raise InvalidInput("environments", f"in {path} must be a table")
    for name, values in listed.items():
        if not isinstance(values, dict):
            raise InvalidInput(f"environments.{name}", f"in {path} must be a table")
        environments[name] = parsed(Environment, {"name": name, **values}, prefix=f"{path.name}: environments.{name}")
    engine = table.get("terraform")
    if engine is not None and not isinstance(engine, str):
        raise InvalidInput("terraform", f"in {path} must be the path of a Terraform or OpenTofu program")
    return Config(environments, (path.parent / engine) if engine else None, path, from_table(path, table))
