"""Which file configures the project, and what stands in it as it stands there. Standard library only.

Apart from `config`, because a listing has to know which ledger it is about and should not load the models for it.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from mlinfra_prefect.agent.wire import SpecError, read_json
from mlinfra_prefect.errors import InvalidInput

CONFIG_VARIABLE = "MLINFRA_CONFIG"
FILE_NAME = "mlinfra-prefect.toml"
MAX_BYTES = 1 << 20
KEYS = ("environments", "terraform", "ledger")
"""What makes the table of a ``pyproject.toml`` ours."""


def find_project(start: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """Return the file that holds at `start` (None: the working directory) and its table; None: there is none.

    Raises:
        InvalidInput: the file cannot be read.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not path.is_file():
            raise InvalidInput(CONFIG_VARIABLE, f"{path} is not a file")
        return path, _read(path)
    here = (start or Path.cwd()).absolute()
    for place in (here, *here.parents):
        own = place / FILE_NAME
        if own.is_file():
            return own, _read(own)
        project = place / "pyproject.toml"
        if project.is_file():
            table = _read(project).get("tool", {}).get("mlinfra-prefect", {})
            if any(key in table for key in KEYS):
                return project, table
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidInput(str(path), f"is larger than {MAX_BYTES} bytes")
        if path.suffix == ".json":  # what `applying` writes
            return read_json(path)
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, SpecError) as error:
        raise InvalidInput(str(path), f"cannot be read ({error})") from None
