"""What a benchmark says: one line per question, with its aim, whether it was met, and the numbers it is made of.

A missed aim is told and never fails: a time on somebody's laptop is no verdict on the code. What is compared is always
measured side by side in the same run (see `side_by_side`), so that a slow machine is slow for both.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

FORMATS = {"s": "{:.3f} s", "x": "{:.2f} x", "MiB": "{:.2f} MiB", "n": "{:.0f}"}


@dataclass(frozen=True, slots=True)
class Line:
    """One answer: ``values`` are the single measurements in ``unit``; ``aim`` is the most their answer should be.

    The answer is the median, or with ``p95`` the value that 95 % of them do not pass.
    """

    question: str
    unit: str
    values: tuple[float, ...]
    aim: float | None = None
    made_of: str = ""
    p95: bool = False

    @property
    def answer(self) -> float:
        if not self.p95:
            return self.median
        return sorted(self.values)[max(0, math.ceil(0.95 * len(self.values)) - 1)]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where nobody aims at anything."""
        return None if self.aim is None else self.answer <= self.aim

    @property
    def verdict(self) -> str:
        return {None: "no aim", True: "met", False: "missed"}[self.met]

    def told(self, value: float) -> str:
        return FORMATS[self.unit].format(value)

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question, "unit": self.unit, "answer": self.answer, "p95": self.p95,
            "median": self.median, "min": min(self.values),
            "max": max(self.values), "values": list(self.values), "aim": self.aim, "met": self.met,
            "made_of": self.made_of,
        }  # fmt: skip


def differences(
    question: str, ours: Sequence[float], theirs: Sequence[float], *, aim: float | None, names: str
) -> Line:
    """The seconds that the first of each pair took longer than the second."""
    values = tuple(a - b for a, b in zip(ours, theirs, strict=True))
    return Line(question, "s", values, aim, _made_of(names, ours, theirs))


def ratios(question: str, ours: Sequence[float], theirs: Sequence[float], *, aim: float | None, names: str) -> Line:
    """How many times as long the first of each pair took."""
    values = tuple(a / b for a, b in zip(ours, theirs, strict=True))
    return Line(question, "x", values, aim, _made_of(names, ours, theirs))


def _made_of(names: str, ours: Sequence[float], theirs: Sequence[float]) -> str:
    first, _, second = names.partition(" | ")
    return f"{first} {statistics.median(ours):.3f} s, {second} {statistics.median(theirs):.3f} s"


def show(lines: Iterable[Line], console: Console) -> None:
    """Print the table; lines never wrap inside a number."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("answer", "min", "max", "runs", "aim", ""):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("made of", style="dim", overflow="fold")
    for line in lines:
        style = {None: "", True: "green", False: "bold red"}[line.met]
        table.add_row(
            line.question, line.told(line.answer), line.told(min(line.values)), line.told(max(line.values)),
            str(len(line.values)), "" if line.aim is None else f"<= {line.told(line.aim)}",
            Text(line.verdict, style), line.made_of,
        )  # fmt: skip
    console.print(table)
