"""Where output goes and how moments look: the same everywhere, at 80 columns and at 200."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from mlinfra_prefect.cli.columns import Cell, Table, cell, folded
from mlinfra_prefect.cli.paint import painted, wants_colour

WIDE = 120
"""From this many columns on, tables show what is nice to know as well."""
PIPED_COLUMNS = 200
"""Into a pipe or a file nothing is cut to a terminal's width, unless ``COLUMNS`` says so."""
_COARSE_MINUTES = 10

_STYLES = {
    "requested": "yellow", "provisioning": "yellow", "ready": "green", "releasing": "magenta", "stuck": "bold red",
    "released": "dim", "succeeded": "green", "failed": "red", "stopped": "yellow", "up": "green",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Screen:
    """A stream, its width in columns, and whether it wants colour."""

    stream: TextIO
    width: int
    colour: bool

    def print(self, what: Table | Cell | str = "") -> None:
        """Print a table, or a text that is folded to the width."""
        if isinstance(what, Table):
            lines = what.lines(self.width, colour=self.colour)
        else:
            shown = what if isinstance(what, Cell) else cell(what)
            lines = [painted(line, shown.style) if self.colour else line for line in folded(shown.text, self.width)]
        self.stream.write("".join(f"{line}\n" for line in lines))


def screen() -> Screen:
    """Return standard output."""
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said) > 0:
        width = int(said)
    elif sys.stdout.isatty():
        try:
            width = os.get_terminal_size(sys.stdout.fileno()).columns or PIPED_COLUMNS
        except OSError:
            width = PIPED_COLUMNS
    else:
        width = PIPED_COLUMNS
    return Screen(sys.stdout, width, wants_colour(sys.stdout))


class Facts(Table):
    """A table of two columns without heads: what it is, and its value, which is never cut."""

    def __init__(self) -> None:
        super().__init__(("", " "), whole=("",), folded=(" ",))

    def fact(self, name: str, value: object, style: str = "") -> None:
        """Add one line."""
        self.add(cell(name, "dim"), cell(value, style))


def state_cell(state: str) -> Cell:
    """Return a state in its colour."""
    return cell(state, _STYLES.get(state, ""))


def span(seconds: float) -> str:
    """Return a duration as people say it: ``42s``, ``5m 03s``, ``42m``, ``2h 05m``, ``3d 04h``."""
    minutes, rest = divmod(int(abs(seconds)), 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d {hours_left:02d}h"
    if hours:
        return f"{hours}h {minutes_left:02d}m"
    if minutes >= _COARSE_MINUTES:
        return f"{minutes}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def left(moment: str | None, *, never: str) -> Cell:
    """Return how long it is until a moment (ISO 8601); `never` where there is none."""
    if moment is None:
        return cell(never)
    seconds = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    return cell(span(seconds)) if seconds > 0 else cell(f"past {span(seconds)}", "bold red")


def age(moment: str | None) -> Cell:
    """Return how long ago a moment (ISO 8601) was."""
    return cell("" if moment is None else span((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


def clock(moment: datetime | None) -> str:
    """Return a moment to the second, in UTC."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
