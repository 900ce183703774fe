"""``python -m tests.benchmarks``: every line of the benchmarks from one run, as a table and as JSON.

Bounded: under four minutes with the defaults on two quiet cores, and as much again for the section ``aws``, whose every
number is a Terraform provider of 700 MB that starts. ``--quick`` makes one round of everything, which is too little to
be quoted and is there to prove that the benchmarks run. Never fails on time: a missed aim is a line in red.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from rich.console import Console

from tests.benchmarks import cloud, event_run, leases, ledgers, memory, reaping, rollouts, routing, starts, ui_form
from tests.benchmarks.lines import Line, show
from tests.benchmarks.side_by_side import Effort

Section = Callable[[], list[Line]]


def sections(*, quick: bool) -> dict[str, Section]:
    """What is measured, in order."""

    def effort(rounds: int, seconds: float) -> Effort:
        return Effort(1 if quick else rounds, seconds)

    found: dict[str, Section] = {
        "imports": lambda: starts.imports(effort(8, 30)),
        "ps": lambda: starts.listing(effort(20, 10)),
    }
    for name, engine in leases.engines().items():
        found[f"lease-{name}"] = lambda name=name, engine=engine: leases.added(name, engine, effort(7, 30))  # type: ignore[misc]
    found["flow"] = lambda: leases.in_a_flow(effort(5, 0))
    found["ended"] = lambda: leases.ended(effort(7, 20))
    found["lost"] = lambda: leases.lost(effort(20, 45))
    found["taken"] = lambda: reaping.taken_over(effort(20, 60))
    found["releases"] = lambda: reaping.releases(4 if quick else 50)
    found["watcher"] = lambda: memory.watcher(5 if quick else 50, 15 if quick else 60)
    found["rest"] = lambda: memory.at_rest(10 if quick else 300, 3 if quick else 90)
    found["router"] = lambda: routing.starts(effort(7, 10))
    found["routing"] = lambda: routing.overhead(effort(10, 30))
    found["rollouts"] = lambda: rollouts.changes(effort(20, 0))
    found["ledgers"] = lambda: ledgers.looks(200 if quick else 10_000, effort(5, 20))
    found["aws"] = lambda: cloud.everything(effort(3, 150), effort(1, 0), effort(3, 20))
    if not quick:  # a server, a worker and a browser: a minute, and the browser's own tests drive the same
        found["event"] = lambda: event_run.events(effort(7, 60))
        found["form"] = lambda: ui_form.form(effort(3, 30))
    return found


LONG = {"aws"}
"""Minutes even with one round: with ``--quick`` only where it is named."""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of everything")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="only these sections")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every single measurement")
    arguments = parser.parse_args()
    chosen = sections(quick=arguments.quick)
    if unknown := set(arguments.only or ()) - set(chosen):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are: {', '.join(chosen)}")
    lines: list[Line] = []
    spent: dict[str, float] = {}
    for name, section in chosen.items():
        if name not in (arguments.only or chosen.keys() - (LONG if arguments.quick else set())):
            continue
        began = time.monotonic()
        lines += section()
        spent[name] = time.monotonic() - began
        sys.stderr.write(f"{name}: measured in {spent[name]:.0f} s\n")
    # Where nobody looks at a terminal, numbers are kept whole instead of being folded into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 320)
    console.print(
        f"{machine()}; {sum(spent.values()):.0f} s in all{'; --quick: not to be quoted' if arguments.quick else ''}"
    )
    show(lines, console)
    console.print("first: the first lease of a process, no keeper awake; later: the next one. Imports are in neither.")
    if arguments.json:
        told = {
            "machine": machine(),
            "quick": arguments.quick,
            "seconds": spent,
            "lines": [line.as_json() for line in lines],
        }
        arguments.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


def machine() -> str:
    """What it was measured on."""
    return (
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, Prefect {metadata.version('prefect')}"
    )


if __name__ == "__main__":
    sys.exit(main())
