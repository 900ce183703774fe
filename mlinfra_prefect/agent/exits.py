"""How a process ended, in words: nobody should have to know that -9 means that the memory ran out."""

from __future__ import annotations

import signal
from pathlib import Path

_HINTS = {
    signal.SIGKILL: "nobody here sent it, so it was most likely the kernel's out-of-memory killer",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "often a full /dev/shm or a file that was cut while it was mapped",
    signal.SIGABRT: "native code gave up",
    signal.SIGINT: "KeyboardInterrupt",
}


def exit_reason(code: int, *, out_of_memory: bool = False) -> str:
    """The end of a process as the second half of a sentence ("exited with 3", "was killed by SIGKILL: ..."). Pure.

    Args:
        code: as `subprocess.Popen.returncode`: negative for a signal.
        out_of_memory: whether the kernel's out-of-memory killer was seen at work meanwhile.
    """
    if code >= 0:
        hints = {126: " (the command cannot be executed)", 127: " (the command was not found)"}
        return f"exited with {code}{hints.get(code, '')}"
    try:
        name = signal.Signals(-code)
    except ValueError:
        return f"was killed by signal {-code}"
    if name is signal.SIGKILL and out_of_memory:
        return "was killed by SIGKILL: it ran out of memory (the kernel's out-of-memory killer)"
    hint = _HINTS.get(name)
    return f"was killed by {name.name}" + (f": {hint}" if hint else "")


def oom_kills() -> int:
    """How often the out-of-memory killer struck in this process's cgroup; 0 where that cannot be known."""
    try:
        line = next(text for text in Path("/proc/self/cgroup").read_text().splitlines() if text.startswith("0::"))
        found = Path("/sys/fs/cgroup", line[3:].lstrip("/"), "memory.events").read_text()
        return sum(int(text.split()[1]) for text in found.splitlines() if text.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
