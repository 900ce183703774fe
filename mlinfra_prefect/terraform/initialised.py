"""What ``init`` leaves is kept per module and engine, so that it is paid for once per host and not once per lease.

``init`` of a module with a cloud's provider costs seconds and, from a registry, hundreds of megabytes; what it leaves
depends on the module's text and the engine alone. A stack gets a copy of the small files and a link to the provider
programs. Nothing is kept for a module with a backend: its ``init`` also decides where the state lies.

``init`` verifies the programs. Terraform would hash them again at the start of each command, 700 MB for AWS; where they
are to the byte the files that were verified (inode, size, and the times of change that only the kernel sets), the lock
file that a stack gets names no hashes. Where a file is another one, and where the module brings a lock file of its own,
it is the whole lock file.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from pathlib import Path

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.terraform.bundle import PROVIDERS
from mlinfra_prefect.terraform.engine import Engine
from mlinfra_prefect.terraform.files import write_private
from mlinfra_prefect.terraform.module import LOCK_FILE

MODULES = ".terraform/modules/modules.json"
VERIFIED = "verified.json"
_SMALL = (LOCK_FILE, MODULES)
_HASHES = re.compile(rb"^[ \t]*hashes[ \t]*=[ \t]*\[[^\]]*\][ \t]*\n", re.MULTILINE)


def place(cache: Path, engine: Engine, digest: str) -> Path:
    """Where what ``init`` leaves is kept for a module, by the digest of its files, and an engine. Pure."""
    key = f"{engine.path}\0{engine.name}\0{engine.version}\0{digest}"
    return cache / hashlib.sha256(key.encode()).hexdigest()[:32]


def restore(kept: Path, workdir: Path, *, locked: bool) -> bool:
    """Put what was kept into a working directory; False where nothing usable is kept. Starts no process.

    Args:
        kept: from `place`.
        workdir: of the stack.
        locked: the module brings a lock file, which is law.
    """
    if not _usable(kept):
        return False
    for name in _SMALL:
        if (kept / name).is_file():
            content = (kept / name).read_bytes()
            if name == LOCK_FILE and not locked and _read(kept / VERIFIED) == _programs(kept / PROVIDERS):
                content = _HASHES.sub(b"", content)
            write_private(workdir / name, content, durable=False)
    link = workdir / PROVIDERS
    private_folder(link.parent)
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)  # of an own `init` that ended badly, or while somebody else kept the same
    link.symlink_to(kept / PROVIDERS, target_is_directory=True)
    return True


def keep(kept: Path, workdir: Path) -> None:
    """Keep what an ``init`` left in a working directory, which gets links to it. Atomic; another may have been faster.

    The programs are moved and not copied: a copy, or a second name of a file, would be another file to `restore`.
    """
    found = workdir / PROVIDERS
    if not (workdir / LOCK_FILE).is_file() or not found.is_dir() or found.is_symlink() or _usable(kept):
        return
    private_folder(kept.parent)
    scratch = Path(tempfile.mkdtemp(prefix=".init-", dir=kept.parent))
    try:
        for name in _SMALL:
            if (workdir / name).is_file():
                write_private(scratch / name, (workdir / name).read_bytes(), durable=False)
        private_folder((scratch / PROVIDERS).parent)
        shutil.move(found, scratch / PROVIDERS)  # a rename, where the cache is on the same disk
        write_private(scratch / VERIFIED, json.dumps(_programs(scratch / PROVIDERS)).encode(), durable=False)
        if kept.is_dir():
            shutil.rmtree(kept, ignore_errors=True)  # nobody can use it
        scratch.rename(kept)
        found.symlink_to(kept / PROVIDERS, target_is_directory=True)
    except OSError:
        # Somebody else kept the same a moment ago, or the disk is full: this stack keeps its own.
        if not found.exists() and (scratch / PROVIDERS).is_dir():
            shutil.move(scratch / PROVIDERS, found)
        shutil.rmtree(scratch, ignore_errors=True)


def _programs(providers: Path) -> dict[str, list[int]]:
    """Every file of every package, with what tells that it is the same one."""
    found = {}
    for package in sorted(providers.glob("*/*/*/*/*")):
        for path in sorted(each for each in package.rglob("*") if each.is_file()):
            status = path.stat()
            name = str(path.relative_to(providers))
            found[name] = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return found


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _usable(kept: Path) -> bool:
    return (kept / LOCK_FILE).is_file() and _whole(kept / PROVIDERS)


def _whole(providers: Path) -> bool:
    """Whether every package that is kept leads somewhere: a mirror can be taken away."""
    packages = list(providers.glob("*/*/*/*/*"))
    return bool(packages) and all(any(package.glob("terraform-provider-*")) for package in packages)
