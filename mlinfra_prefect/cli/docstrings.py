"""Reads docstrings as this package writes them (Google's sections) and gives them back as Markdown.

It exists so that the reference is made of the docstrings themselves: a page written beside them would say something
else after a month. It knows what our docstrings use, and nothing more.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns|Yields):$")
_ENTRY = re.compile(r"^(?P<names>[\w*][\w*., …]*?): (?P<text>.+)$")
_INDENT = "    "


@dataclass(frozen=True, slots=True)
class Docstring:
    """One docstring: its text, and its sections as (name, entries); an entry is (names, text)."""

    text: str
    sections: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


def parse(docstring: str | None) -> Docstring:
    """Read a docstring; an absent one is empty. Pure."""
    text: list[str] = []
    sections: list[tuple[str, list[str]]] = []
    for line in inspect.cleandoc(docstring or "").splitlines():
        found = _SECTION.match(line)
        if found is not None:
            sections.append((found[1], []))
        elif sections and (line.startswith(_INDENT) or not line):
            sections[-1][1].append(line.removeprefix(_INDENT))
        else:
            text.append(line)
    return Docstring("\n".join(text).strip(), tuple((name, _entries(lines)) for name, lines in sections))


def _entries(lines: list[str]) -> tuple[tuple[str, str], ...]:
    """Join the lines of a section's entries: an entry begins where the indentation does not go on."""
    entries: list[tuple[str, str]] = []
    for line in filter(None, lines):
        found = _ENTRY.match(line)
        if found is not None:
            entries.append((found["names"], found["text"]))
        elif entries:
            names, text = entries[-1]
            entries[-1] = (names, f"{text} {line.strip()}")
        else:
            entries.append(("", line.strip()))
    return tuple(entries)


def markdown(found: Docstring) -> str:
    """Return a docstring as Markdown: paragraphs, then a list for each section. Pure."""
    parts = [plain(found.text)] if found.text else []
    for name, entries in found.sections:
        listed = [f"* `{names}`: {plain(text)}" if names else f"* {plain(text)}" for names, text in entries]
        parts.append("\n".join([f"*{name}*", "", *listed]))
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Return text with reStructuredText's double backquotes as Markdown's single ones. Pure."""
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.DOTALL)
