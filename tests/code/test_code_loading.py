"""The loader that the node and the import check share."""

from __future__ import annotations

import os
import sys

import pytest

from mlinfra_prefect.agent.loading import (
    IMPORTING,
    LoadFailed,
    MissingGuard,
    forbid_while_importing,
    load,
    module_name,
)


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch):
    """Loading changes sys.path and sys.modules of its process: on a node that is the point, here it is undone."""
    modules = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "import_root", "name"),
    [
        ("train.py", "", "train"),
        ("a/b.py", "", "a.b"),
        ("a/__init__.py", "", "a"),
        ("src/pkg/mod.py", "src", "pkg.mod"),
        ("examples/01-x/train.py", "examples/01-x", "train"),
        ("__init__.py", "", "__init__"),
    ],
)
def test_a_modules_name_is_its_path_below_the_import_root(file, import_root, name):
    """The name is derived, never sent, so the two sides cannot disagree."""
    assert module_name(file, import_root) == name


def test_a_file_outside_its_import_root_has_no_name():
    """A reference that contradicts itself is an error, not a guess."""
    with pytest.raises(LoadFailed):
        module_name("a/b.py", "c")


def test_a_module_is_never_main_so_its_guard_holds(project):
    """What stands under the `__main__` guard does not run on the node."""
    root = project(
        {
            "guarded_x.py": "NAME = __name__\ndef fit(): return NAME\n"
            'if __name__ == "__main__":\n    raise AssertionError'
        }
    )
    assert load(root, "", "guarded_x.py", None, "fit")() == "guarded_x"


def test_siblings_packages_and_a_src_directory_import(project):
    """The import root, the code root and `src` are where imports look, in this order."""
    root = project(
        {"ex/one/loadtrain_a.py": "import loadsib_a, loadtop_a, loadsrc_a\n"
         "def fit(): return loadsib_a.x + loadtop_a.x + loadsrc_a.x",
         "ex/one/loadsib_a.py": "x = 'sibling '", "loadtop_a/__init__.py": "x = 'top '",
         "src/loadsrc_a.py": "x = 'src'", "loadsib_a.py": "x = 'wrong'"}
    )  # fmt: skip
    assert load(root, "ex/one", "ex/one/loadtrain_a.py", None, "fit")() == "sibling top src"


def test_relative_imports_work(project):
    """A module of a package is imported as one."""
    root = project(
        {
            "src/loadpkg_b/__init__.py": "",
            "src/loadpkg_b/names.py": "x = 1",
            "src/loadpkg_b/mod.py": "from .names import x\ndef fit(): return x",
        }
    )
    assert load(root, "src", "src/loadpkg_b/mod.py", None, "fit")() == 1


@pytest.mark.parametrize("file", ["json.py", "my-train.py", "01_train.py", "__main__.py", "two.dots.py", "sys.py"])
def test_a_script_may_have_a_name_that_is_taken_or_cannot_be_imported(project, file):
    """A script called json.py is not the module json, and that module stays itself."""
    root = project({file: "import dataclasses\n@dataclasses.dataclass\nclass A: ...\ndef fit(): return 'mine', A()"})
    assert load(root, "", file, None, "fit")()[0] == "mine"
    import json

    assert json.loads("1") == 1


def test_an_installed_module_is_imported_by_name():
    """Without a code package the name is enough."""
    assert load(None, "", None, "json.decoder", "JSONDecoder.decode").__name__ == "decode"


@pytest.mark.parametrize(
    ("file", "qualname", "message"),
    [
        ("gone_c.py", "fit", "no file"),
        ("here_c.py", "fit", "__main__"),
        ("here_c.py", "x", "not a function"),
        (None, "fit", "neither a file"),
    ],
)
def test_what_is_not_there_is_said(project, file, qualname, message):
    """A missing file, a missing name (perhaps under the guard) and a non-function are three sentences."""
    root = project({"here_c.py": "x = 1\nif __name__ == '__main__':\n    def fit(): ..."})
    with pytest.raises(LoadFailed, match=message):
        load(root, "", file, None, qualname)


@pytest.mark.parametrize(
    "body",
    [
        "run()",
        "try:\n    run()\nexcept BaseException:\n    pass",
        "import asyncio\nasync def main(): run()\nasyncio.run(main())",
        "raise SystemExit(run.serve('x'))",
        "step()",
        "step.submit()",
    ],
)
def test_a_flow_or_task_started_at_import_is_a_missing_guard_even_when_swallowed(project, body):
    """Whatever the script does with the exception, the answer is the guard, by the flow's name, and nothing ran."""
    pytest.importorskip("prefect")
    lines = (
        "from prefect import flow, task\n"
        "@flow(name='nightly')\ndef run(): raise AssertionError('ran')\n"
        "@task(name='nightly')\ndef step(): raise AssertionError('ran')\n"
    )
    root = project({"unguarded_d.py": f"{lines}def fit(): ...\n{body}"})
    with pytest.raises(MissingGuard, match=r"the (flow|task) 'nightly'.*__main__"):
        load(root, "", "unguarded_d.py", None, "fit")


def test_prefect_is_as_before_once_the_import_is_over(project):
    """The body may call what it likes, and a flow of the same process is not stopped."""
    prefect = pytest.importorskip("prefect")
    before = prefect.Flow.__call__, prefect.Task.submit
    root = project({"good_e.py": "import prefect\ndef fit(): return prefect.Flow.__call__, prefect.Task.submit"})
    assert load(root, "", "good_e.py", None, "fit")() == before
    assert IMPORTING not in os.environ


def test_a_script_that_ends_the_process_at_import_is_a_missing_guard(project):
    """`sys.exit(main())` without a guard must not end the node's runner."""
    root = project({"exits_f.py": "def fit(): ...\nimport sys\nsys.exit(3)"})
    with pytest.raises(MissingGuard, match="SystemExit: 3"):
        load(root, "", "exits_f.py", None, "fit")


def test_our_own_leases_are_stopped_at_import_and_only_then(project):
    """`forbid_while_importing` raises inside an import for a node, and does nothing elsewhere."""
    root = project(
        {
            "leases_g.py": "from mlinfra_prefect.agent.loading import forbid_while_importing as f\n"
            "def fit(): f('a lease')\nf('a lease')"
        }
    )
    forbid_while_importing("a lease")
    with pytest.raises(MissingGuard, match="started a lease"):
        load(root, "", "leases_g.py", None, "fit")
    forbid_while_importing("a lease")


def test_what_the_users_module_raises_stays_as_it_is(project):
    """The runner reports the user's own exception with its traceback."""
    root = project({"raises_h.py": "raise KeyError('mine')"})
    with pytest.raises(KeyError, match="mine"):
        load(root, "", "raises_h.py", None, "fit")
