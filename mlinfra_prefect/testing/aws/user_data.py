"""Which user data the emulator runs: ours, known byte for byte, because running a stranger's as this user is no test.

A machine of EC2 runs whatever it is given, as root, on hardware of its own. Here it would run as the person who tests,
beside their files, so only what this package renders is run: three first lines of a strict form, then the packaged
``boot.sh`` and nothing else. Pure, but for reading that file.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_FIRST = re.compile(
    rb"#!/bin/bash\n"
    rb"shutdown -P \+(?P<minutes>[0-9]{1,6})\n"
    rb"MLINFRA_BOOT=(?P<boot>[A-Za-z0-9+/]+={0,2})\n"
)


@cache
def boot_script() -> bytes:
    """Return the packaged ``boot.sh``; empty where the package has none."""
    packaged = files("mlinfra_prefect").joinpath("hcl", "modules", "gpu-node", "boot.sh")
    return packaged.read_bytes() if packaged.is_file() else b""


def is_ours(user_data: bytes, script: bytes | None = None) -> bool:
    """Whether this is what the module ``gpu-node`` renders, whole and unchanged. Pure.

    Args:
        user_data: as the instance gets it, decoded.
        script: the boot script; None: the packaged one.
    """
    script = boot_script() if script is None else script
    head = _FIRST.match(user_data)
    return head is not None and bool(script) and user_data[head.end() :] == script


def interpreter(user_data: bytes) -> tuple[str, ...]:
    """Return the command that runs it, from its first line; empty where it is no script. Pure."""
    first = user_data.partition(b"\n")[0]
    return tuple(first[2:].decode(errors="replace").split()) if first.startswith(b"#!") else ()
