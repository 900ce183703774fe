"""Tables of plain columns that fit the screen: some columns are never cut, some get shorter, some go on below.

Standard library only, because the listings that are asked for again and again are made with it: a table library would
cost more than the rest of the verb.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlinfra_prefect.cli.paint import painted

GAP = 2
SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Cell:
    """One value, and its style (`paint.painted`)."""

    text: str
    style: str = ""


def cell(value: object, style: str = "") -> Cell:
    """Return a value as a cell, empty for None. What others wrote stays text: control characters become blanks."""
    text = "" if value is None else str(value)
    return Cell(text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text), style)


class Table:
    """Rows of cells under heads.

    Args:
        heads: of its columns; all blank: no line of heads.
        whole: the heads of columns that are never cut. The others get shorter where the screen is narrow.
        folded: the heads of those that go on in the next line instead of being cut.
    """

    def __init__(self, heads: Sequence[str], *, whole: Collection[str] = (), folded: Collection[str] = ()) -> None:
        self._heads = [Cell(head, "bold") for head in heads]
        self._whole = [head in whole for head in heads]
        self._folded = [head in folded for head in heads]
        self._rows: list[Sequence[Cell]] = []

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        self._rows.append(cells)

    def lines(self, width: int, *, colour: bool) -> list[str]:
        """Return its lines for a screen of so many columns, without blanks at their ends."""
        rows = [self._heads, *self._rows] if any(head.text.strip() for head in self._heads) else self._rows
        widths = self._widths(rows, width)
        return [line for row in rows for line in self._row(row, widths, colour=colour)]

    def _widths(self, rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
        widths = [max((columns_of(row[number].text) for row in rows), default=0) for number in range(len(self._heads))]
        while sum(widths) + GAP * (len(widths) - 1) > width:
            shrinkable = [n for n, whole in enumerate(self._whole) if not whole and widths[n] > SHORTEST]
            if not shrinkable:
                break  # the terminal itself wraps what cannot be made to fit
            widths[max(shrinkable, key=lambda number: widths[number])] -= 1
        return widths

    def _row(self, row: Sequence[Cell], widths: Sequence[int], *, colour: bool) -> list[str]:
        parts = [
            folded(each.text, width) if goes_on else [cut(each.text, width)]
            for each, width, goes_on in zip(row, widths, self._folded, strict=True)
        ]
        found = []
        for number in range(max(map(len, parts))):
            texts = [part[number] if number < len(part) else "" for part in parts]
            last = max((n for n, text in enumerate(texts) if text), default=-1)
            line = ""
            for n, text in enumerate(texts[: last + 1]):
                padding = "" if n == last else " " * (widths[n] - columns_of(text) + GAP)
                line += (painted(text, row[n].style) if colour else text) + padding
            found.append(line)
        return found


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in {"W", "F"}) for char in text
    )


def cut(text: str, width: int) -> str:
    """Return the text, shortened with an ellipsis where it takes more columns."""
    if columns_of(text) <= width:
        return text
    while text and columns_of(text) > width - 1:
        text = text[:-1]
    return f"{text}…"


def folded(text: str, width: int) -> list[str]:
    """Return the text in lines of at most so many columns, broken at blanks where there are any."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and columns_of(f"{line} {word}") > width:
            lines.append(line)
            line = ""
        rest = f"{line} {word}" if line else word
        while columns_of(rest) > width > 0:
            taken = max(1, next((n for n in range(len(rest), 0, -1) if columns_of(rest[:n]) <= width), 1))
            lines.append(rest[:taken])
            rest = rest[taken:]
        line = rest
    return [*lines, line] if line or not lines else lines
