"""What was found of a record after it was released: lines beside it, because a released record never changes.

A zombie may create something after everything was found clean (RELIABILITY 10 and 20). The next pass ends it, and that
must stand where people look for the proof, `mlinfra-prefect show`, though the receipt was right when it was written.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import ValidationError

from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.names import is_id
from mlinfra_prefect.model.receipt import Search

NAME = "addenda.jsonl"


def add(home: Home, record_id: str, search: Search) -> Path:
    """Append what a look after the release found and ended, durably. Returns the file.

    What no record names is written beside the keeper's logs instead.

    Raises:
        OSError: it cannot be written.
    """
    place = home.record_dir(record_id) if is_id(record_id) else None
    path = place / NAME if place is not None and place.is_dir() else home.keeper / "orphans.jsonl"
    line = json.dumps({"id": record_id, **search.model_dump(mode="json")}) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    return path


def of(home: Home, record_id: str) -> tuple[Search, ...]:
    """Return what was found of a record since its release, oldest first. A line that cannot be read is left out."""
    found = []
    try:
        lines = (home.record_dir(record_id) / NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    for line in lines:
        try:
            values = json.loads(line)
            found.append(Search.model_validate({name: values[name] for name in Search.model_fields}))
        except (ValueError, KeyError, TypeError, ValidationError):
            continue  # the disk was full in the middle of it
    return tuple(found)
