"""The first process of an emulated machine: every process of the machine descends from it, and ends when it says so.

A program of its own, run by path with nothing but the standard library. It takes in what its descendants leave behind
(``PR_SET_CHILD_SUBREAPER``), so a daemon that forked twice into a session of its own is still found, and it holds a
pipe to the emulator: when that says anything, or closes because the emulator died however it died, the machine is
powered off. Linux only.

    python first_process.py GRACE_SECONDS BOOTED_FILE COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.02


def descendants(root: int) -> list[int]:
    """Return the processes below one, in no order."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            # The name in parentheses may hold anything, parentheses and blanks included.
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found, waiting = list[int](), [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _reap() -> bool:
    """Collect what has ended; whether any child is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _signalled(number: int) -> None:
    for pid in descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except OSError:
            continue


def power_off(grace: float) -> None:
    """End every descendant: asked first, and after `grace` seconds not asked."""
    until = time.monotonic() + grace
    _signalled(signal.SIGTERM)
    while _reap() and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    while _reap():
        _signalled(signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def main(grace: float, booted: Path, command: list[str]) -> None:
    """Run a command, make the file `booted` then, and live until the machine is powered off."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    woken, wake = os.pipe()
    for end in (woken, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        # A child of its own starts with the signals as they are by default: what is ignored would stay ignored.
        subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_usual_signals)  # noqa: PLW1509
    except OSError as error:
        print(f"user data cannot be run: {error}", file=sys.stderr, flush=True)  # noqa: T201 (the machine's console)
    booted.touch()
    while True:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap()
        if 0 in ready:
            break
    power_off(grace)


def _usual_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
