"""The token of an endpoint: made when it is first deployed, kept in one private file, and gone when it is released.

One token opens the router and every server behind it, and stays for as long as the URL does: repairs and rollouts keep
it. It stands in its file and in the memory of who checks or shows it; never in a record, a state, an event, a log, an
argument or a variable.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.model.endpoint import TOKEN, EndpointRecord, RolloutRecord

TOKEN_BYTES = 32


def token_file(record: EndpointRecord | RolloutRecord, record_dir: Path) -> Path | None:
    """Return where an endpoint's token is; None: it was deployed with ``auth="none"``, and anybody may ask.

    Args:
        record: the endpoint's, or that of one of its rollouts.
        record_dir: that record's directory in the home.
    """
    if record.serving.auth != "token":
        return None
    endpoint = record.endpoint if isinstance(record, RolloutRecord) else record.id
    return record_dir.with_name(endpoint) / TOKEN


def ensure(path: Path) -> None:
    """Make the token where there is none yet. Idempotent, also for two who do it at once: the first one's stays."""
    if path.exists():
        return
    private_folder(path.parent)
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")  # threads of one process, too, do it at once
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(f"{secrets.token_urlsafe(TOKEN_BYTES)}\n")
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def read(path: Path | None) -> str | None:
    """Return the token in a file; None where none is wanted, or none is there."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None
