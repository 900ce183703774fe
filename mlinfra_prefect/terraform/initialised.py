"""What ``init`` leaves is kept per module and engine, so that it is paid for once per host and not once per lease.

``init`` of a module with a cloud's provider costs seconds and, from a registry, hundreds of megabytes; what it leaves
depends on the module's text and the engine alone. A stack gets a copy of the small files and a link to the provider
programs. Nothing is kept for a module with a backend: its ``init`` also decides where the state lies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.terraform.bundle import PROVIDERS
from mlinfra_prefect.terraform.engine import Engine
from mlinfra_prefect.terraform.files import write_private
from mlinfra_prefect.terraform.module import LOCK_FILE

MODULES = ".terraform/modules/modules.json"
_SMALL = (LOCK_FILE, MODULES)


def place(cache: Path, engine: Engine, digest: str) -> Path:
    """Where what ``init`` leaves is kept for a module, by the digest of its files, and an engine. Pure."""
    key = f"{engine.path}\0{engine.name}\0{engine.version}\0{digest}"
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def restore(kept: Path, workdir: Path) -> bool:
    """Put what was kept into a working directory; False where nothing usable is kept. Starts no process."""
    if not (kept / LOCK_FILE).is_file() or not _whole(kept / PROVIDERS):
        return False
    for name in _SMALL:
        if (kept / name).is_file():
            write_private(workdir / name, (kept / name).read_bytes(), durable=False)
    link = workdir / PROVIDERS
    private_folder(link.parent)
    if link.is_symlink():
        link.unlink()
    link.symlink_to(kept / PROVIDERS, target_is_directory=True)
    return True


def keep(kept: Path, workdir: Path) -> None:
    """Keep what an ``init`` left in a working directory. Atomic; another process may have been faster."""
    found = workdir / PROVIDERS
    if not (workdir / LOCK_FILE).is_file() or not found.is_dir() or found.is_symlink():
        return
    private_folder(kept.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".init-", dir=kept.parent))
    try:
        for name in _SMALL:
            if (workdir / name).is_file():
                write_private(scratch / name, (workdir / name).read_bytes(), durable=False)
        # Links to a mirror on this host stay links; a program that was downloaded is not stored twice.
        shutil.copytree(found, scratch / PROVIDERS, symlinks=True, copy_function=_link)
        if kept.is_dir():
            shutil.rmtree(kept, ignore_errors=True)  # it was not usable, or `restore` had taken it
        scratch.rename(kept)
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)  # the next stack pays for its own


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _whole(providers: Path) -> bool:
    """Whether every package that is kept leads somewhere: a mirror can be taken away."""
    packages = list(providers.glob("*/*/*/*/*"))
    return bool(packages) and all(any(package.glob("terraform-provider-*")) for package in packages)
