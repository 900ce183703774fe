"""Measuring side by side: what is compared takes turns, so that a machine that gets busy gets busy for both."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROCESS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: `rounds`, but no more begin after so many `seconds`; two begin in any case."""

    rounds: int
    seconds: float

    def each(self) -> Iterator[int]:
        """Number the rounds for as long as there is time."""
        until = time.monotonic() + self.seconds
        for number in range(self.rounds):
            if number >= 2 and time.monotonic() > until:
                return
            yield number


def timed(argv: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str]) -> float:
    """Run a program to its end and return its wall time in seconds.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    began = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, timeout=PROCESS_SECONDS, check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{argv} failed ({done.returncode}): {done.stderr.decode(errors='replace')[-2000:]}")
    return seconds


def take_turns(
    programs: Mapping[str, Sequence[str | Path]], effort: Effort, *, cwd: Path, env: Mapping[str, str]
) -> dict[str, list[float]]:
    """Time some programs in turns, after one turn that counts for nothing; every second round goes backwards."""
    for argv in programs.values():
        timed(argv, cwd=cwd, env=env)
    found: dict[str, list[float]] = {name: [] for name in programs}
    for number in effort.each():
        for name in programs if number % 2 == 0 else reversed(programs):
            found[name].append(timed(programs[name], cwd=cwd, env=env))
    return found


def clean_environment(**changes: str) -> dict[str, str]:
    """This process's environment without what would lead into somebody's home, ledger or server, and with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLINFRA_", "PREFECT_"))}
    return {**kept, "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", **changes}  # fmt: skip
