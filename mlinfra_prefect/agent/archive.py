"""The agent as one file: this package in a zip that Python runs, named by what is in it.

Bytes are the same on every build (fixed dates, no compression, code objects without back references), and the name is
the hash of the sources and of the interpreter's bytecode version, so a file that exists is the right one. Bytecode is
in it because the archive is started four times for one training; another minor version of Python falls back to the
sources beside it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import tempfile
import zipfile
from pathlib import Path

from .folders import private_folder

PACKAGE = "mlinfra_agent"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_UNCHECKED_HASH = 0b01  # flags of a hash-based .pyc that is not compared with its source (PEP 552)
_MARSHAL_WITHOUT_REFERENCES = 2
_START = (
    "import sys\n"
    "from pathlib import Path\n"
    f"from {PACKAGE}.main import main\n"
    "if __name__ == '__main__':\n"
    "    sys.exit(main(sys.argv[1:], Path(sys.argv[0]).absolute()))\n"
)


def build_archive(cache_dir: Path) -> Path:
    """Return the path of ``agent-<hash>.pyz`` in ``cache_dir``; builds it when it is not there. Atomic, idempotent."""
    sources = {f"{PACKAGE}/{path.name}": path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))}
    sources["__main__.py"] = _START.encode()
    total = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, source in sources.items():
        total.update(f"{name}\0{len(source)}\0".encode() + source)
    target = cache_dir / f"agent-{total.hexdigest()[:16]}.pyz"
    if target.is_file():
        return target
    private_folder(cache_dir)
    descriptor, scratch = tempfile.mkstemp(prefix=".agent-", dir=cache_dir)  # 0600 from birth
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(_pack(sources))
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(target)
    finally:
        Path(scratch).unlink(missing_ok=True)
    return target


def _pack(sources: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, source in sources.items():
            for entry_name, data in ((name, source), (f"{name}c", _bytecode(name, source))):
                entry = zipfile.ZipInfo(entry_name, _EPOCH)
                entry.create_system = 3  # Unix, whoever builds it
                entry.external_attr = 0o100600 << 16
                archive.writestr(entry, data)
    return buffer.getvalue()


def _bytecode(name: str, source: bytes) -> bytes:
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    header = importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH.to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(code, _MARSHAL_WITHOUT_REFERENCES)
