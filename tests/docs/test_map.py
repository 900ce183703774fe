"""The map in docs/README.md leads to every page and every example, so that no page is found by luck only."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
MAP = CHECKOUT / "docs" / "README.md"


def test_the_map_links_every_page_and_every_example() -> None:
    """A page that is new and not in the map fails here: add a row that says when one wants it."""
    linked = {(MAP.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", MAP.read_text("utf-8"))}
    pages = {*MAP.parent.glob("*.md"), *CHECKOUT.glob("examples/*/README.md")} - {MAP}
    assert [str(page.relative_to(CHECKOUT)) for page in sorted(pages) if page not in linked] == []


def test_the_readme_leads_to_the_map() -> None:
    """Who comes to the repository finds it."""
    assert "](docs/README.md)" in (CHECKOUT / "README.md").read_text("utf-8")
