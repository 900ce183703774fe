"""The project's configuration: environments, read from ``mlinfra-prefect.toml`` or ``pyproject.toml``.

The nearest file at or above the working directory wins, or the one that ``MLINFRA_CONFIG`` names. Without any,
``dev`` on ``local`` exists.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.wire import SpecError, read_json
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.model.environment import Environment
from mlinfra_prefect.model.record import parsed

CONFIG_VARIABLE = "MLINFRA_CONFIG"
FILE_NAME = "mlinfra-prefect.toml"
MAX_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Config:
    """What the project says."""

    environments: Mapping[str, Environment] = field(default_factory=lambda: {"dev": Environment(name="dev")})
    terraform: Path | None = None
    source: Path | None = None

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


def load_config(start: Path | None = None) -> Config:
    """Read the configuration that holds at `start` (None: the working directory).

    Raises:
        InvalidInput: a file is malformed; the message names file and field.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InvalidInput(CONFIG_VARIABLE, f"{path} is not a file")
        return _parsed(path, _read(path))
    here = (start or Path.cwd()).absolute()
    for place in (here, *here.parents):
        own = place / FILE_NAME
        if own.is_file():
            return _parsed(own, _read(own))
        project = place / "pyproject.toml"
        if project.is_file():
            table = _read(project).get("tool", {}).get("mlinfra-prefect", {})
            if "environments" in table or "terraform" in table:
                return _parsed(project, table)
    return Config()


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(str(path), f"is larger than {MAX_BYTES} bytes")
        if path.suffix == ".json":  # what `applying` writes
            return read_json(path)
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, SpecError) as error:
        raise InvalidInput(str(path), f"cannot be read ({error})") from None


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
    return Config(environments, (path.parent / engine) if engine else None, path)
