"""The combination table of the documentation has a test for each row, and each such test has a row."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "combinations.md"
ROW = re.compile(r"^\| `(?P<name>[a-z0-9-]+)` \| (?P<written>.+?) \| (?P<happens>.+?) \|$")


def proven() -> list[str]:
    """The names in every ``@row("...")`` that stands on a test."""
    names = []
    for file in sorted(HERE.glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "row":
                    (name,) = decorator.args
                    assert isinstance(name, ast.Constant)
                    names.append(str(name.value))
    return names


def test_rows_and_tests_are_the_same_set() -> None:
    """A row without a test is a promise nobody checks; a test without a row is a behaviour nobody can read about."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    rows = [found["name"] for line in lines if (found := ROW.match(line))]
    assert len(rows) == len(lines)
    assert [name for name, number in Counter(rows).items() if number > 1] == []
    assert [name for name, number in Counter(proven()).items() if number > 1] == []
    assert set(rows) == set(proven())
