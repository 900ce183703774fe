"""Functions sent by value: closures and notebooks, towards the node only."""

from __future__ import annotations

import functools
import sys
import threading
import types

import pytest

from mlinfra_prefect.code import prepare
from mlinfra_prefect.errors import InvalidInput, NotImportable


@pytest.fixture
def closures(project, load_module):
    """A module with a function that makes functions, using a sibling, as the flow's process has imported it."""
    project({"pyproject.toml": "", "lib/bv_sibling.py": "def double(x): return 2 * x",
             "lib/bv_train.py": "import bv_sibling\ndef offset(x): return x + 1\n"
             "def make(n):\n    def fit(x): return bv_sibling.double(offset(x)) + n\n"
             "    return fit\ndef keep(value): return lambda: value"})  # fmt: skip
    load_module("lib/bv_sibling.py", "bv_sibling")
    return load_module("lib/bv_train.py", "bv_train")


def test_a_closure_runs_on_the_node_with_what_it_captured(closures, tmp_path, call_on_node):
    """Its captured value travels in it; its module's imports and functions are found in the project's code."""
    prepared = prepare(closures.make(100), by_value=True, cache_dir=tmp_path / "cache")
    assert prepared.by_value
    assert prepared.reference.file == "lib/_mlinfra_by_value.py"
    assert prepared.reference.qualname == "function"
    assert prepared.reference.name == "fit"
    assert list(prepared.signature.parameters) == ["x"]
    assert call_on_node(prepared, 3) == 108


def test_without_by_value_a_closure_is_refused(closures, tmp_path):
    """Sending a function itself is a choice, never a fallback."""
    with pytest.raises(NotImportable, match="by_value=True"):
        prepare(closures.make(1), cache_dir=tmp_path / "cache")


def test_what_a_closure_captured_is_part_of_the_code_hash(closures, tmp_path):
    """Two closures over different values are different code."""
    one, two = (prepare(closures.make(n), by_value=True, cache_dir=tmp_path / "cache") for n in (1, 2))
    assert one.code_hash != two.code_hash


def test_a_notebook_function_runs_on_the_node(project, tmp_path, monkeypatch, call_on_node):
    """A cell's function, with the globals it uses, goes by value; the project around the notebook goes along."""
    project({"pyproject.toml": "", "nb_helper.py": "def triple(x): return 3 * x"})
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.syspath_prepend(".")
    exec("import nb_helper\nrate = 10\ndef fit(x): return nb_helper.triple(x) + rate", vars(main))  # noqa: S102 - what a kernel does
    with pytest.raises(NotImportable, match="by_value=True"):
        prepare(main.fit, cache_dir=tmp_path / "cache")
    prepared = prepare(main.fit, by_value=True, cache_dir=tmp_path / "cache")
    assert call_on_node(prepared, 2) == 16


def test_a_session_without_a_file_prepares_by_value(project, run_python):
    """The same from a real interactive `__main__`."""
    project({"pyproject.toml": ""})
    result = run_python(
        "-c",
        "import os, pathlib\nfrom mlinfra_prefect.code import prepare\ndef fit(day): return day\n"
        "p = prepare(fit, by_value=True, cache_dir=pathlib.Path(os.environ['CACHE']))\n"
        "print(p.reference.text, p.signature)",
    )
    assert result.stdout.strip() == "fit (by value) (day)", result.stderr


def test_the_node_needs_no_cloudpickle_of_its_own(closures, tmp_path, call_on_node):
    """An environment built from requirements may lack it; the version that wrote the function travels with it."""
    prepared = prepare(closures.make(1), by_value=True, cache_dir=tmp_path / "cache")
    assert call_on_node(prepared, 1, site=False) == 5


def test_our_decorators_come_off_before_the_function_is_sent(closures, tmp_path, call_on_node):
    """The node gets the body, not a task that would call the node again."""
    inner = closures.make(0)

    @functools.wraps(inner)
    def decorated(x):
        raise AssertionError(x)

    decorated.__mlinfra_callable__ = inner
    assert call_on_node(prepare(decorated, by_value=True, cache_dir=tmp_path / "cache"), 1) == 4


def test_the_python_minor_version_is_recorded_and_checked_on_the_node(closures, tmp_path):
    """Bytecode of one minor version is not read by another: said before provisioning, and in the loader itself."""
    prepared = prepare(closures.make(1), by_value=True, cache_dir=tmp_path / "cache")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert prepared.python == here
    assert prepare(closures.offset, cache_dir=tmp_path / "cache").python is None
    source = prepared.package.extra["lib/_mlinfra_by_value.py"].decode()
    elsewhere = source.replace(f"!= ({sys.version_info.major}, {sys.version_info.minor})", "!= (2, 7)")
    with pytest.raises(ImportError, match=f"from Python {here}.*same minor version"):
        exec(elsewhere, {"__file__": str(tmp_path / "x.py")})  # noqa: S102


def test_a_capture_that_cannot_be_copied_is_said(closures, tmp_path):
    """The message names what Python could not copy, and what to do."""
    with pytest.raises(NotImportable, match="lock") as caught:
        prepare(closures.keep(threading.Lock()), by_value=True, cache_dir=tmp_path / "cache")
    assert "inside the function" in caught.value.remedy


def test_a_capture_that_is_data_is_refused(closures, tmp_path, monkeypatch):
    """Over the cap the remedy is an argument or an input."""
    monkeypatch.setattr("mlinfra_prefect.code.by_value.MAX_PICKLE", 1000)
    with pytest.raises(NotImportable, match="captures") as caught:
        prepare(closures.keep(bytes(2000)), by_value=True, cache_dir=tmp_path / "cache")
    assert "inputs" in caught.value.remedy


def test_an_address_cannot_go_by_value(project, tmp_path):
    """Text names code; there is no function to send."""
    project({"pyproject.toml": "", "train.py": ""})
    with pytest.raises(InvalidInput) as caught:
        prepare("train.py:fit", by_value=True, cache_dir=tmp_path / "cache")
    assert caught.value.field == "by_value"
