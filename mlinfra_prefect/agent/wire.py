"""Where files cross processes: how JSON is written and read, and the names everybody must agree on.

Agent, launcher, training process and client never share memory; they share directories. Every write here is atomic
(a reader sees the old file or the new one, never half) and private (0600). What the files *mean* is in `specs`.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Final

AGENT_SCHEMA: Final = "mlinfra-prefect/agent/1"
AGENT_STATE_SCHEMA: Final = "mlinfra-prefect/agent-state/1"
JOB_SCHEMA: Final = "mlinfra-prefect/job/1"
STATUS_SCHEMA: Final = "mlinfra-prefect/status/1"
CHECKPOINT_SCHEMA: Final = "mlinfra-prefect/checkpoint/1"
MANIFEST_SCHEMA: Final = "mlinfra-prefect/manifest/1"

AGENT_STATE: Final = "agent.json"
AGENT_LOCK: Final = "agent.lock"
AGENT_LOG: Final = "agent.log"
SERVER_LOG: Final = "server.log"
JOBS: Final = "jobs"
JOB: Final = "job.json"
STATUS: Final = "status.json"
STOP: Final = "stop.json"
LOG: Final = "log.txt"
EVENTS: Final = "events.jsonl"
OUTPUTS: Final = "outputs"
CHECKPOINT: Final = "checkpoint"
CHECKPOINT_ACK: Final = "checkpoint-ack.json"
CODE: Final = "code"
ARGS: Final = "args"
RESULT: Final = "result.json"
RESULT_FILES: Final = "result"
DRAFT: Final = "draft.json"
ERROR: Final = "error.json"
SECRETS: Final = "secrets.fifo"
MANIFEST: Final = "manifest.json"

QUEUED: Final = "queued"
PREPARING: Final = "preparing"
RUNNING: Final = "running"
UPLOADING: Final = "uploading"
SUCCEEDED: Final = "succeeded"
FAILED: Final = "failed"
STOPPED: Final = "stopped"
FINAL_STATES: Final = frozenset({SUCCEEDED, FAILED, STOPPED})


class SpecError(ValueError):
    """A file on the wire is not what its schema says; the message names the file and the field."""


def write_json(path: Path, payload: dict[str, Any], *, durable: bool = False) -> None:
    """Replace ``path`` by ``payload`` atomically, mode 0600.

    Args:
        path: the file; its directory must exist.
        payload: strict JSON (NaN and infinities are refused with ValueError: not every reader knows them).
        durable: fsync file and directory, for what must survive a power cut.

    Raises:
        OSError: nothing was replaced and no temporary file is left.
    """
    data = json.dumps(payload, allow_nan=False).encode("ascii")
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable (a rename is not, until its directory is synced)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        FileNotFoundError: absent (callers decide what that means).
        SpecError: not JSON, or not an object.
    """
    try:
        payload = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(payload, dict):
        raise SpecError(f"{path}: a JSON object is expected, this is a {type(payload).__name__}")
    return payload


def read_json_if_there(path: Path) -> dict[str, Any] | None:
    """Read one JSON object, or None when it is absent or unreadable: for files that another process may be removing."""
    try:
        return read_json(path)
    except (OSError, SpecError):
        return None
