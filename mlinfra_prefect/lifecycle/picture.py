"""The timeline as a picture: a person sees at a glance what was paid for and what was only waited for.

A few hundred bytes of SVG need no plotting library. Columns are fixed (what, bars, how long) and letters are of one
width, so nothing can overlap or be cut off, whatever the names are; what is too long is shortened in its middle. The
picture brings a background of its own, because the page around it may be light or dark.
"""

from __future__ import annotations

import base64
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import datetime
from xml.sax.saxutils import escape

from mlinfra_prefect.lifecycle.timeline import Span

MOST_ROWS = 40
"""More spans than these are told as a number; the ledger has them all."""
WIDTH = 920
_ROW = 28
_TOP = 68
_MARGIN = 20
_BARS_FROM = 280
_BARS_TO = 780
_CELL = 7.9
"""Pixels of one letter of 13 px in a monospaced font, rounded up."""
_LABEL_CELLS = int((_BARS_FROM - _MARGIN - 12) / _CELL)
_TITLE_CELLS = int((WIDTH - 2 * _MARGIN) / (_CELL * 16 / 13))
_MOST_TICKS = 5
_STEPS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600,
          7200, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)  # fmt: skip
_LEAST_BAR = 2.0
_KINDS = frozenset({"provision", "train", "release", "deploy", "serve"})
_STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; fill: #1f2937 }
.title { font-size: 16px; font-weight: bold } .quiet { fill: #586274 } .end { text-anchor: end }
.middle { text-anchor: middle } .card { fill: #ffffff; stroke: #cbd2dc } .grid { stroke: #dfe4ea }
.provision { fill: #2f6fdb } .train { fill: #1d8a4e } .release { fill: #8a4fc4 } .deploy { fill: #b45f06 }
.serve { fill: #0e7f8c } .other { fill: #6b7280 }
@media (prefers-color-scheme: dark) {
text { fill: #e5e9f0 } .quiet { fill: #a3adbb } .card { fill: #161b22; stroke: #3a424d } .grid { stroke: #2b323c }
.provision { fill: #6ea0f5 } .train { fill: #4cc38a } .release { fill: #b98be6 } .deploy { fill: #e39a4a }
.serve { fill: #45b8c6 } .other { fill: #9aa3af }
}
""".replace("\n", "")


def duration(seconds: float) -> str:
    """Say how long something took, for people: ``0.42 s``, ``12.3 s``, ``2 min 05 s``, ``1 h 05 min``, ``3 d 4 h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def label(span: Span, names: Mapping[str, str]) -> str:
    """Say what a span is: ``train acme.churn:train``, or ``deploy churn`` with the names of what it is of."""
    return f"{span.what} {span.detail or names.get(span.of, '')}".rstrip()


def shortened(text: str, cells: int) -> str:
    """Shorten a text in its middle to a number of columns of a monospaced font; a wide letter takes two. Pure."""
    if _cells(text) <= cells:
        return text
    tail_cells = (cells - 1) // 2
    head = _taken(text, cells - 1 - tail_cells)
    tail = _taken(text[::-1], tail_cells)[::-1]
    return f"{head}…{tail}"


def timeline_svg(spans: Sequence[Span], *, title: str, names: Mapping[str, str] | None = None) -> str:
    """Draw spans, each on a row of its own, on one axis of time. Pure; the same spans give the same picture.

    Args:
        spans: in the order in which they are shown; of more than `MOST_ROWS` the first are drawn.
        title: above it.
        names: what the leases and endpoints are called, by id; shown where a span has no detail.
    """
    shown = spans[: MOST_ROWS if len(spans) <= MOST_ROWS else MOST_ROWS - 1]
    rows = len(shown) + (len(shown) < len(spans))
    began = min((span.began for span in spans), default=None)
    length = max(((span.ended - began).total_seconds() for span in spans), default=0.0) if began else 0.0
    bottom = _TOP + max(rows, 1) * _ROW
    height = bottom + 34
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{_STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        _text(_MARGIN, 30, shortened(title, _TITLE_CELLS), "title"),
        _text(_MARGIN, 52, _subtitle(began, length), "quiet"),
    ]
    drawn += _axis(length, bottom) if began else []
    for number, span in enumerate(shown):
        assert began is not None
        drawn += _row(span, _TOP + number * _ROW, began, length, label(span, names or {}))
    if rows > len(shown):
        drawn.append(_text(_MARGIN, _TOP + len(shown) * _ROW + 18, f"and {len(spans) - len(shown)} more", "quiet"))
    return "".join([*drawn, "</svg>"])


def data_uri(svg: str) -> str:
    """Return an address that holds the picture itself, so that nothing has to be stored anywhere for it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _row(span: Span, top: int, began: datetime, length: float, what: str) -> list[str]:
    scale = (_BARS_TO - _BARS_FROM) / (length or 1.0)
    seconds = max(0.0, span.seconds)
    width = max(_LEAST_BAR, seconds * scale)
    left = min(_BARS_FROM + max(0.0, (span.began - began).total_seconds()) * scale, _BARS_TO - width)
    kind = span.what if span.what in _KINDS else "other"
    return [
        _text(_MARGIN, top + 18, shortened(what, _LABEL_CELLS)),
        f'<rect class="{kind}" x="{left:.2f}" y="{top + 5}" width="{width:.2f}" height="{_ROW - 10}" rx="3"/>',
        _text(WIDTH - _MARGIN, top + 18, duration(seconds), "end"),
    ]


def _axis(length: float, bottom: int) -> list[str]:
    step = next((each for each in _STEPS if length / each <= _MOST_TICKS), _STEPS[-1] * math.ceil(length / 432000))
    drawn = []
    for number in range(int(length / step) + 1):
        x = _BARS_FROM + number * step / (length or 1.0) * (_BARS_TO - _BARS_FROM)
        drawn.append(f'<line class="grid" x1="{x:.2f}" x2="{x:.2f}" y1="{_TOP}" y2="{bottom}"/>')
        drawn.append(_text(x, bottom + 20, _tick(number * step, step), "quiet middle"))
    return drawn


def _tick(seconds: float, step: float) -> str:
    if step < 1:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"
    if step < 60:
        return f"{seconds:.0f} s"
    if step < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def _subtitle(began: datetime | None, length: float) -> str:
    return f"from {began:%Y-%m-%d %H:%M:%S} UTC, {duration(length)}" if began else "nothing has happened yet"


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{attribute}>{_xml(text)}</text>'


def _xml(text: str) -> str:
    # XML cannot hold control characters and non-characters at all, not even escaped.
    allowed = "".join(each if each.isprintable() or each == " " else "\N{REPLACEMENT CHARACTER}" for each in text)
    return escape(allowed, {'"': "&quot;", "'": "&apos;"})


def _cells(text: str) -> int:
    return sum(_width(each) for each in text)


def _width(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in {"W", "F"} else 1


def _taken(text: str, cells: int) -> str:
    taken = 0
    for number, letter in enumerate(text):
        taken += _width(letter)
        if taken > cells:
            return text[:number]
    return text
