"""The emulated AWS in a process of its own: for whoever is busy itself, or ends before what it rents does."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlinfra_prefect.errors import UnsupportedHere

START_SECONDS = 60.0
END_SECONDS = 30.0


@contextmanager
def emulated_apart(told: Callable[[str], None] = lambda _: None) -> Iterator[dict[str, str]]:
    """Run ``mlinfra-prefect emulate aws`` while the block runs; gives the variables by which it is reached.

    Every process of its instances is ended with it.

    Args:
        told: hears each line that it prints once it is up, from another thread.

    Raises:
        UnsupportedHere: it did not come up; the message is what it said.
    """
    without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlinfra_prefect", "emulate", "aws"], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=without, start_new_session=True,
    )  # fmt: skip
    # It answers within seconds; where it hangs, its end unblocks the reading below.
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    try:
        variables = _until_up(process)
        late.cancel()
        threading.Thread(target=_listen, args=(process, told), name="emulator", daemon=True).start()
        yield variables
    finally:
        late.cancel()
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _until_up(process: subprocess.Popen[str]) -> dict[str, str]:
    said: list[str] = []
    assert process.stdout is not None  # it was asked for
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith("export "):
            words = shlex.split(line.removeprefix("export "))
            return dict(word.split("=", 1) for word in words)
    raise UnsupportedHere(f"The emulated AWS did not come up: {' '.join(said[-3:]) or 'it said nothing'}.")


def _listen(process: subprocess.Popen[str], told: Callable[[str], None]) -> None:
    assert process.stdout is not None  # it was asked for
    with contextlib.suppress(ValueError):  # closed under us: it ended
        for line in process.stdout:
            told(line.rstrip())
