"""How tables and moments look: the same everywhere, at 80 columns and at 200, and plain where nobody looks.

Colour is rich's business: only on a terminal, and never with ``NO_COLOR``. What others wrote is shown as text, never as
markup or as an escape sequence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

WIDE = 120
"""From this many columns on, tables show what is nice to know as well."""
PIPED_COLUMNS = 200
"""Into a pipe or a file nothing is cut to a terminal's width, unless ``COLUMNS`` says so."""
_SHORTEST = 4
_COARSE_MINUTES = 10

_STYLES = {
    "requested": "yellow", "provisioning": "yellow", "ready": "green", "releasing": "magenta", "stuck": "bold red",
    "released": "dim", "succeeded": "green", "failed": "red", "stopped": "yellow", "up": "green",
}  # fmt: skip


def screen(*, stderr: bool = False) -> Console:
    """Return the console of standard output (or error)."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(stderr=stderr, width=PIPED_COLUMNS if piped else None, highlight=False, emoji=False)


def table(*heads: str, whole: Sequence[str] = (), folded: Sequence[str] = ()) -> Table:
    """Return an empty table without rules.

    Args:
        *heads: of its columns.
        whole: those that are never cut. The others get shorter where the screen is narrow.
        folded: of the others, those that go on in the next line instead of being cut.
    """
    columns = [
        Column(head, no_wrap=head in whole, overflow="fold" if head in folded else "ellipsis", min_width=_SHORTEST)
        for head in heads
    ]
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def facts() -> Table:
    """Return an empty table of two columns: what it is, and its value."""
    return Table(
        Column(style="dim", no_wrap=True), Column(overflow="fold"),
        box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False,
    )  # fmt: skip


def plain(value: object, *, style: str = "") -> Text:
    """Return a value as text without control characters; nothing for None."""
    text = "" if value is None else str(value)
    return Text("".join(each if each.isprintable() else " " for each in text), style=style)


def cell(value: object, *, style: str = "") -> Text:
    """Return a value as one line of a table, cut where there is no room for it."""
    text = plain(value, style=style)
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return cell(state, style=_STYLES.get(state, ""))


def span(seconds: float) -> str:
    """Return a duration as people say it: ``42s``, ``5m 03s``, ``42m``, ``2h 05m``, ``3d 04h``."""
    whole = int(abs(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days}d {hours_left:02d}h"
    if hours:
        return f"{hours}h {minutes_left:02d}m"
    if minutes >= _COARSE_MINUTES:
        return f"{minutes}m"
    return f"{minutes}m {rest:02d}s" if minutes else f"{rest}s"


def left(moment: str | None, *, never: str) -> Text:
    """Return how long it is until a moment (ISO 8601); `never` where there is none."""
    if moment is None:
        return cell(never)
    seconds = (datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()
    return cell(span(seconds)) if seconds > 0 else cell(f"past {span(seconds)}", style="bold red")


def age(moment: str | None) -> Text:
    """Return how long ago a moment (ISO 8601) was."""
    return cell("" if moment is None else span((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()))


def clock(moment: datetime | None) -> str:
    """Return a moment to the second, in UTC."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
