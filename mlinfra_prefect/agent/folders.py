"""Directories that are their owner's alone, all the way down."""

from __future__ import annotations

from pathlib import Path


def private_folder(path: Path) -> Path:
    """Make a directory and what is missing above it, mode 0700 whatever the umask, and return it. Idempotent.

    ``Path.mkdir(mode=…, parents=True)`` leaves the modes of all but the last to the umask. What exists keeps its own.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    try:
        path.mkdir(mode=0o700)
    except FileNotFoundError:
        private_folder(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        if not path.is_dir():
            raise
    return path
