"""Which file system a path lies on: a SQLite ledger on a network file system would have locks that lie.

Read from the kernel's own table on Linux and from ``mount`` elsewhere; nothing is imported that would make the
command line slow.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlinfra_prefect.errors import LedgerUnavailable

NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "davfs", "fuse.davfs2", "fuse.glusterfs", "fuse.rclone",
    "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3", "smbfs", "vboxsf", "webdav",
})  # fmt: skip
PASSING_FILE_SYSTEMS = frozenset({"overlay", "overlayfs", "fuse.fuse-overlayfs", "aufs", "tmpfs", "ramfs"})
"""They end with their container, or with a restart of the host."""
LINUX_TABLE = Path("/proc/self/mounts")
LIST_SECONDS = 5.0
COLUMNS = 3
"""Device, place and type; options and two zeros follow."""
_ESCAPED = re.compile(r"\\([0-7]{3})")
_LISTED = re.compile(r" on (?P<place>/.*) \((?P<type>[^,)]+)[^)]*\)$")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and where it is mounted."""

    place: Path
    type: str


def parse_linux_table(text: str) -> list[Mount]:
    """Parse ``/proc/self/mounts``, in order; blanks in names are written in octal there."""
    rows = [line.split(" ") for line in text.splitlines()]
    return [
        Mount(Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), row[1])), row[2])
        for row in rows
        if len(row) >= COLUMNS
    ]


def parse_listing(text: str) -> list[Mount]:
    """Parse what ``mount`` prints on macOS and the BSDs, in order."""
    found = (_LISTED.search(line) for line in text.splitlines())
    return [Mount(Path(match["place"]), match["type"]) for match in found if match]


def mounted() -> list[Mount]:
    """Return what is mounted on this host, later mounts last; empty where the host does not say."""
    try:
        return parse_linux_table(LINUX_TABLE.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        pass  # no such table: not Linux
    import subprocess  # slow to import, and Linux never comes here

    try:
        done = subprocess.run(
            ["/sbin/mount"], capture_output=True, text=True, errors="surrogateescape", timeout=LIST_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_listing(done.stdout)


def file_system(path: Path, mounts: Sequence[Mount]) -> str | None:
    """Return the type of the file system that `path` lies on, or None when no mount holds it."""
    places = {path, *path.parents}
    # The longest place is the innermost mount; of two on one place the later one hides the earlier.
    holding = [mount for mount in mounts if mount.place in places]
    return max(enumerate(holding), key=lambda item: (len(item[1].place.parts), item[0]))[1].type if holding else None


def refuse_network_file_system(path: Path, mounts: Sequence[Mount] | None = None) -> None:
    """Refuse a ledger whose locks would lie. A host that does not say what is mounted is trusted.

    Args:
        path: the ledger's file; it need not exist.
        mounts: what is mounted; None: ask the host.

    Raises:
        LedgerUnavailable: the path lies on a network file system.
    """
    found = file_system(path.resolve(), mounted() if mounts is None else mounts)
    if found is not None and found.lower() in NETWORK_FILE_SYSTEMS:
        raise LedgerUnavailable(
            f"The ledger {path} lies on {found}, a network file system, where SQLite's locks do not hold.",
            "Point MLINFRA_HOME at a local disk.",
        )


def refuse_passing_file_system(path: Path, mounts: Sequence[Mount] | None = None) -> None:
    """Refuse a ledger that ends with its container while what it names runs on in a cloud.

    Args:
        path: the ledger's file; it need not exist.
        mounts: what is mounted; None: ask the host.

    Raises:
        LedgerUnavailable: the path lies on a container's own file system, or in memory.
    """
    found = file_system(path.resolve(), mounted() if mounts is None else mounts)
    if found is not None and found.lower() in PASSING_FILE_SYSTEMS:
        raise LedgerUnavailable(
            f"The ledger {path} lies on {found}, which ends with its container: what is rented would outlive its "
            "record. Nothing was provisioned.",
            "Set MLINFRA_LEDGER to the one that `mlinfra-prefect init aws` named, or put MLINFRA_HOME on a volume.",
        )
