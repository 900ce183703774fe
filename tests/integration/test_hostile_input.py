"""What comes from a form, an event or a shell is data: hostile values are refused by field, and nothing is written."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from integration_harness import Asked
from prefect.exceptions import ParameterTypeError

from mlinfra_prefect import ServingRequest, lease
from mlinfra_prefect.__main__ import main
from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.flows.model_lifecycle import model_lifecycle
from mlinfra_prefect.model.declaration import ServingDeclaration
from mlinfra_prefect.model.record import parsed

TEXTS = {
    "unicode": "prodüktion", "look-alike": "рrod", "newline": "a\nb", "trailing newline": "dev\n", "NUL": "a\0b",
    "200 kB": "x" * 200_000, "an option": "-lock=false", "a path up": "../../x", "an absolute path": "/etc/passwd",
    "a template": '${file("/etc/passwd")}', "a shell": "$(id)", "nothing": "", "a blank": " ",
}  # fmt: skip
VALUES: dict[str, dict[str, Any]] = {
    "name": TEXTS | {"a number": 7, "a list": ["a"]},
    "environment": TEXTS | {"null": None},
    "platform": {name: text for name, text in TEXTS.items() if text},
    "accelerator": TEXTS
    | {"a negative count": "A100:-1", "no count": "A100:", "a fraction": "A100:1.5", "NaN": "A100:nan", "yaml": "a: b"},
    "max_minutes": {"NaN": math.nan, "infinite": math.inf, "negative": -1, "zero": 0, "huge": 10**30, "text": "many"},
    "max_usd": {"NaN": math.nan, "infinite": math.inf, "negative": -1.0, "zero": 0, "huge": 1e300, "text": "much"},
    "grace_seconds": {"NaN": math.nan, "infinite": math.inf, "negative": -1.0},
    "nodes": {"negative": -1, "many": 10**9, "a fraction": 1.5},
    "on_client_lost": {"another word": "explode", "a template": "${x}"},
}
TABLE = [
    pytest.param(field, value, id=f"{field}-{name}") for field, each in VALUES.items() for name, value in each.items()
]


@pytest.fixture(autouse=True)
def nothing_written(asked: Asked, home: Path) -> Any:
    before = {path.relative_to(home) for path in (home / "work").rglob("*")}
    yield
    assert asked.leases == []
    assert {path.relative_to(home) for path in (home / "work").rglob("*")} == before


@pytest.mark.parametrize(("field", "value"), TABLE)
def test_lease_refuses_it_by_field(field: str, value: Any) -> None:
    """From Python. The message is short whatever the value is."""
    with pytest.raises(InvalidInput) as refused, lease({field: value}):
        pass
    said = str(refused.value)
    assert field in said
    assert len(said) < 2000
    assert "\0" not in said


OPTIONS = {"name": "--name", "environment": "--environment", "max_minutes": "--max-minutes", "max_usd": "--max-usd"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        each for each in TABLE if each.values[0] in OPTIONS and each.values[1] not in (None, 7, ["a"])
    ],  # 7 is a name there
)
def test_the_command_line_refuses_it_by_option(field: str, value: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """From a shell: exit code 2 and one sentence; nothing is taken for another option."""
    code = main(["up", "cpu", f"{OPTIONS[field]}={value}"])
    told = capsys.readouterr()
    assert code == 2
    assert told.out == ""
    assert field in told.err.replace("-", "_").lower()
    assert len(told.err) < 2500
    assert "Traceback" not in told.err


FORM: list[tuple[str, Any]] = [
    *[("environment", text) for name, text in TEXTS.items()],
    *[("endpoint", text) for name, text in TEXTS.items()],
    *[("accelerator", text) for name, text in TEXTS.items() if text.strip()],
    ("dataset", "a\0b"), ("dataset", "../../no-such-file"), ("dataset", '${file("/etc/passwd")}'),
    ("canary", "100,10"), ("canary", "$(id)"), ("canary", "1e2"),
    ("max_minutes", -1), ("max_minutes", "many"), ("regularisation", -1.0), ("epochs", 0),
    ("accuracy_floor", math.nan), ("accuracy_floor", 2),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FORM, ids=[f"{field}-{str(value)[:20]!a}" for field, value in FORM])
def test_the_form_of_the_shipped_flow_refuses_it(field: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the UI or an event: Prefect's own check of types, and then the first lines of the flow."""
    monkeypatch.setattr("mlinfra_prefect.flows.model_lifecycle.lease", _never)
    monkeypatch.setattr("mlinfra_prefect.flows.model_lifecycle.approve_plan", _never)
    with pytest.raises((InvalidInput, ParameterTypeError)) as refused:
        model_lifecycle.fn(**model_lifecycle.validate_parameters({field: value}))
    assert field in str(refused.value)


def _never(*_: object, **__: object) -> None:
    pytest.fail("it went on")


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", text) for text in TEXTS.values()] + [("auth", text) for text in ("public", "Token", "", "none ", 0)]
    + [("port", 22), ("port", -1), ("replicas", -1), ("predictor", "../x.py:f"), ("predictor", "/x.py:f"),
       ("autth", "none")],
)  # fmt: skip
def test_serving_refuses_it_by_field(field: str, value: Any) -> None:
    """Names of endpoints become parts of URLs, paths and arguments."""
    with pytest.raises(InvalidInput) as refused:
        parsed(ServingRequest, {"name": "churn", field: value}, prefix="serving")
    assert f"serving.{field}" in str(refused.value)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in pairwise("abcdefghij")
)
FILES: dict[str, str] = {
    "bomb": BOMB, "object": "name: !!python/object/apply:os.system [id]\n", "twice": "name: a\nname: b\n",
    "too long": "name: " + "x" * 70_000, "unknown": "nmae: a\n", "list": "- a\n", "nul": "name: 'a\\0b'\n",
    "deep": "[" * 1500,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Aliases, objects of Python, keys twice: one sentence, from Python and from a shell, and nothing is run."""
    path = tmp_path / "request.yaml"
    path.write_text(FILES[name])
    with pytest.raises(InvalidInput) as refused, lease(path):
        pass
    assert len(str(refused.value)) < 2000
    assert main(["up", str(path)]) == 2
    told = capsys.readouterr()
    assert (told.out, "Traceback" in told.err) == ("", False)


def test_a_declaration_is_as_strict() -> None:
    """`apply` takes its names from a file of somebody's repository."""
    for text in TEXTS.values():
        with pytest.raises(InvalidInput):
            parsed(ServingDeclaration, {"endpoints": [{"name": text}]})
