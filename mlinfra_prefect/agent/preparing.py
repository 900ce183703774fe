"""Everything between a job file and a training that can start: code, inputs, and the training's environment.

What can be refused is refused here, with the name of the field, before the training costs anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import urllib.parse
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import allowlist
from .folders import private_folder
from .transfer import TransferError, check_relative
from .wire import CHECKPOINT, CHECKPOINT_ACK, CODE, DRAFT, EVENTS, OUTPUTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .specs import AgentSpec, CodeRef, JobSpec


class Refused(RuntimeError):
    """The job cannot be started. ``type`` becomes the error's type in the job's status.

    Args:
        type_name: one word for the kind of error.
        message: a sentence that names the field.
    """

    def __init__(self, type_name: str, message: str) -> None:
        super().__init__(type_name, message)
        self.type = type_name
        self.message = message

    def __str__(self) -> str:
        return self.message


def unpack_code(job_dir: Path, code: CodeRef | None) -> Path:
    """Verify and unpack the code archive into ``code/``; returns that directory (empty without an archive).

    Raises:
        Refused: the archive is absent, is not what its sha256 says, or holds a path that leads out of it.
    """
    root = job_dir / CODE
    root.mkdir(mode=0o700, exist_ok=True)
    if code is None:
        return root
    try:
        check_relative(code.archive)
        data = (job_dir / code.archive).read_bytes()
    except (OSError, TransferError) as error:
        raise Refused("CodeCorrupted", f"code.archive: {code.archive!r} cannot be read ({error})") from error
    found = hashlib.sha256(data).hexdigest()
    if found != code.sha256.lower():
        raise Refused("CodeCorrupted", f"code.archive: its sha256 is {found}, and {code.sha256} was expected")
    try:
        with zipfile.ZipFile(job_dir / code.archive) as archive:
            for entry in archive.infolist():
                _unpack(archive, entry, root)
    except (zipfile.BadZipFile, TransferError, OSError, NotImplementedError, RuntimeError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("CodeCorrupted", f"code.archive: cannot be unpacked ({error})") from error
    return root


def _unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, root: Path) -> None:
    # orig_filename: zipfile itself would silently strip the dangerous parts, and write something else than was sent.
    target = root / check_relative(entry.orig_filename)
    mode = entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        raise TransferError(f"{entry.filename} is a link")
    if entry.is_dir():
        private_folder(target)
        return
    private_folder(target.parent)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700 if mode & stat.S_IXUSR else 0o600)
    with os.fdopen(descriptor, "wb") as file, archive.open(entry) as source:
        while chunk := source.read(1 << 20):
            file.write(chunk)


def find_inputs(inputs: Mapping[str, str]) -> dict[str, Path]:
    """Where each input lies on this node: ``file://`` addresses and absolute paths, used in place.

    Raises:
        Refused: another scheme, a relative path, or nothing there.
    """
    found: dict[str, Path] = {}
    for name, uri in inputs.items():
        parts = urllib.parse.urlsplit(uri)
        if uri.startswith("/"):
            path = Path(uri)
        elif parts.scheme == "file" and parts.netloc in {"", "localhost"}:
            path = Path(urllib.parse.unquote(parts.path))
        else:
            raise Refused(
                "InvalidInput", f"inputs[{name!r}]: {uri!r} cannot be fetched here: use an absolute path or file://"
            )
        if not path.is_absolute() or not path.exists():
            raise Refused("InvalidInput", f"inputs[{name!r}]: there is nothing at {path}")
        found[name] = path
    return found


def training_env(
    job: JobSpec,
    job_dir: Path,
    spec: AgentSpec,
    *,
    archive: Path,
    python: Path,
    inputs: Mapping[str, Path],
    resumed_from: str | None,
) -> dict[str, str]:
    """The environment of the training, without its secrets. Pure.

    From weakest to strongest: what is inherited, what the job sets, what we say.
    """
    environment = {**allowlist.inherited(), "PYTHONUNBUFFERED": "1", **job.env}
    ours = {
        **allowlist.marks(spec),
        "MLINFRA_ON_NODE": "1",
        "MLINFRA_JOB_ID": job.job_id,
        "MLINFRA_PARAMS": json.dumps(job.params),
        "MLINFRA_INPUTS": json.dumps({name: str(path) for name, path in inputs.items()}),
        "MLINFRA_OUTPUT_DIR": str(job_dir / OUTPUTS),
        "MLINFRA_CHECKPOINT_DIR": str(job_dir / CHECKPOINT),
        "MLINFRA_EVENTS": str(job_dir / EVENTS),
        "MLINFRA_DRAFT": str(job_dir / DRAFT),
        "MLINFRA_AGENT": str(archive),
        "MLINFRA_PYTHON": str(python),
        "MLINFRA_RESUMED_FROM": resumed_from or "",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }
    ours.update({f"MLINFRA_INPUT_{name.upper()}": str(path) for name, path in inputs.items()})
    if job.checkpoint is not None:
        ours["MLINFRA_CHECKPOINT_ACK"] = str(job_dir / CHECKPOINT_ACK)
    # As in an activated environment: `python` in a command is the interpreter that has the requirements.
    path = environment.get("PATH", os.defpath)
    return {**environment, **ours, "PATH": f"{python.parent}{os.pathsep}{path}"}
