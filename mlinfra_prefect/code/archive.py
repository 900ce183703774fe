"""The code package as one file: a zip with nothing in it that depends on when, where or by whom it was made.

The name is the content's hash, so an archive that exists is the right one, two writers at once write the same thing,
and a machine that already has it is sent nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:
    from mlinfra_prefect.code.package import CodeFile, CodePackage

# The first moment that a zip can name.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_REGULAR_FILE = 0o100644 << 16
_RUNNABLE_FILE = 0o100755 << 16
_UNIX = 3


def archive_name(package: CodePackage) -> str:
    """Return the file name of a package's archive. Pure."""
    return f"code-{package.sha256[:20]}.zip"


def write_archive(package: CodePackage, destination_dir: Path) -> Path:
    """Write the package into `destination_dir` (created 0700) and return the archive's path (0600).

    Deterministic, atomic and idempotent: an archive that exists is returned as it is, and a crash leaves none behind
    under its name. Blocking.

    Raises:
        InvalidInput: a file changed, or went away, after it was collected.
    """
    destination = destination_dir / archive_name(package)
    if destination.is_file():
        return destination
    private_folder(destination_dir)
    descriptor, name = tempfile.mkstemp(prefix=".code-", suffix=".zip", dir=destination_dir)  # 0600 from birth
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                for file in package.files:
                    entry = zipfile.ZipInfo(file.path, _EPOCH)
                    entry.compress_type = zipfile.ZIP_DEFLATED
                    entry.create_system = _UNIX
                    entry.external_attr = _RUNNABLE_FILE if file.executable else _REGULAR_FILE
                    archive.writestr(entry, _content(package, file))
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(destination)
    finally:
        unfinished.unlink(missing_ok=True)
    return destination


def _content(package: CodePackage, file: CodeFile) -> bytes:
    if (generated := package.extra.get(file.path)) is not None:
        return generated
    remedy = "Run it again; if a program keeps writing that file, exclude it from the code package."
    try:
        data = (package.root / file.path).read_bytes()
    except OSError as error:
        raise InvalidInput("code", f"the file {file.path!r} went away while it was being packed.", remedy) from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise InvalidInput("code", f"the file {file.path!r} changed while it was being packed.", remedy)
    return data
