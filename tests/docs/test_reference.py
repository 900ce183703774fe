"""The reference says what the code says: its page is made of the docstrings, and of nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import mlinfra_prefect
from mlinfra_prefect.cli.app import app
from mlinfra_prefect.cli.docstrings import markdown, parse
from mlinfra_prefect.cli.reference import main, reference
from mlinfra_prefect.model.probe import ProbeRequest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = DOCS / "reference.md"


@pytest.fixture(scope="module")
def page() -> str:
    return reference()


def test_the_committed_page_is_what_the_program_writes(page: str) -> None:
    """A docstring, a signature, a field or an option that changed has to change the page."""
    remedy = "run: python -m mlinfra_prefect.cli.reference docs/reference.md"
    assert PAGE.read_text(encoding="utf-8") == page, remedy


def test_every_public_name_and_every_verb_has_a_heading(page: str) -> None:
    """Nothing public is left out, whatever kind of thing it is."""
    headings = set(re.findall(r"^### `(.+)`$", page, re.MULTILINE))
    assert {name for name in mlinfra_prefect.__all__ if not name.startswith("__")} <= headings
    assert {f"mlinfra-prefect {name}" for name in app if not name.startswith("-")} <= headings


def test_every_field_of_a_record_stands_with_its_default_and_description(page: str) -> None:
    """A reader of the page sees what may be written, what holds otherwise, and what it means."""
    _, _, section = page.partition("### `ProbeRequest`")
    section = section.partition("\n### ")[0]
    for name, field in ProbeRequest.model_fields.items():
        (row,) = (line for line in section.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"`{field.get_default(call_default_factory=True)!r}`" in row
        assert field.description is not None
        assert field.description in row


def test_every_row_of_the_probe_table_is_a_field_with_its_default() -> None:
    """The table of criteria in docs/serving.md has every field of `ProbeRequest`, and no other."""
    text = (DOCS / "serving.md").read_text(encoding="utf-8").partition("## The probe")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", text, re.MULTILINE))
    fields = ProbeRequest.model_fields.items()
    assert told == {name: repr(field.get_default(call_default_factory=True)) for name, field in fields}


def test_a_docstring_becomes_paragraphs_and_lists() -> None:
    """Entries that go on in the next line are one entry, also where that line has a colon."""
    docstring = """Say it ``twice``.

    More of it.

    Args:
        what: the word, and
            so on: indeed.
        **more: others.

    Raises:
        InvalidInput, NotFound: as said.

    Returns:
        The answer, or None.
    """
    assert markdown(parse(docstring)).split("\n\n") == [
        "Say it `twice`.",
        "More of it.",
        "*Args*",
        "* `what`: the word, and so on: indeed.\n* `**more`: others.",
        "*Raises*",
        "* `InvalidInput, NotFound`: as said.",
        "*Returns*",
        "* The answer, or None.",
    ]
    assert markdown(parse(None)) == ""


def test_the_program_writes_one_file(tmp_path: Path, page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is one line and the exit code 2; nothing is written then."""
    assert main([]) == 2
    assert "usage:" in capsys.readouterr().err
    assert main([str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page
