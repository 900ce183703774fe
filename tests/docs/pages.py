"""Reads Markdown as far as the tests of the pages need it: fenced blocks, headings, links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(?P<kind>\S*)\s*$")
_NOT_RUN = re.compile(r"^<!-- not run: (?P<why>.+) -->$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_NAME = re.compile(r"^# (?P<name>[\w.-]+\.(?:py|yaml|toml))(?P<part>, in part)?$")


def pages() -> list[Path]:
    """Every page that people read, as paths relative to the checkout."""
    places = ("*.md", "docs/**/*.md", "examples/*/*.md", "terraform/**/*.md")
    return sorted({path.relative_to(CHECKOUT) for place in places for path in CHECKOUT.glob(place)})


@dataclass(frozen=True)
class Block:
    """One fenced block.

    `name` is the file that its first line names, `part` whether it is only an excerpt of that file, and `not_run` the
    reason that stands in the comment before it.
    """

    line: int
    kind: str
    text: str
    name: str = ""
    part: bool = False
    not_run: str = ""

    def commands(self) -> list[list[str]]:
        """The commands of a console block, as words."""
        lines = [line.removeprefix("$ ") for line in self.text.splitlines() if line.startswith("$ ")]
        return [shlex.split(line, comments=True) for line in lines]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. An unclosed fence fails."""
    found: list[Block] = []
    lines = (CHECKOUT / page).read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        if opened is None:
            number += 1
            continue
        end = next((n for n in range(number + 1, len(lines)) if lines[n] == "```"), None)
        assert end is not None, f"{page}:{number + 1}: the block is never closed"
        body = lines[number + 1 : end]
        named = _NAME.match(body[0]) if body else None
        before = _NOT_RUN.match(lines[number - 1]) if number else None
        if named and named["part"]:
            body = body[1:]
        found.append(
            Block(
                line=number + 1, kind=opened["kind"], text="".join(f"{line}\n" for line in body),
                name=named["name"] if named else "", part=bool(named and named["part"]),
                not_run=before["why"] if before else "",
            )
        )  # fmt: skip
        number = end + 1
    return found


def prose(page: Path) -> str:
    """A page without its blocks."""
    kept, inside = [], False
    for line in (CHECKOUT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            kept.append(line)
    return "\n".join(kept)


def links(page: Path) -> list[str]:
    """The targets of a page's links."""
    return [found["target"] for found in _LINK.finditer(prose(page))]


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links, as GitHub makes them."""
    headings = [line.lstrip("#").strip() for line in prose(page).splitlines() if re.match(r"#{1,6} ", line)]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_numbers(line: str) -> str:
    """A line of output with ids, ports, sizes and times made equal."""
    return re.sub(r"\b[a-z]?[0-9a-f]{12,}(?:-\d+)?\b|\d+(?:\.\d+)?", "#", line).strip()
