"""The import check in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlinfra_prefect.agent.loading import MissingGuard
from mlinfra_prefect.code import check, check_import, collect, prepare, reference
from mlinfra_prefect.errors import InvalidInput, NotImportable


class Started:
    """Counts the processes that the check starts, and keeps how."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.processes = []
        real = subprocess.Popen

        def popen(argv, **options):
            self.calls.append((argv, options))
            self.processes.append(real(argv, **options))
            return self.processes[-1]

        monkeypatch.setattr(check.subprocess, "Popen", popen)


@pytest.fixture
def started(monkeypatch):
    return Started(monkeypatch)


def check_text(root, text, cache, **options):
    return check_import(reference(text), collect(root), cache_dir=cache, **options)


def test_the_second_check_of_the_same_code_starts_no_process(project, tmp_path, started):
    """Success is remembered by code, address and interpreter, with the parameters; a change checks again."""
    root = project({"pyproject.toml": "", "train.py": "def fit(a, *, b=1): ...\ndef other(): ..."})
    first = check_text(root, "train.py:fit", tmp_path / "cache")
    second = check_text(root, "train.py:fit", tmp_path / "cache")
    assert len(started.calls) == 1
    assert first == second
    assert list(second.parameters) == ["a", "b"]
    check_text(root, "train.py:other", tmp_path / "cache")
    (root / "train.py").write_text("def fit(): ...\n")
    assert not check_text(root, "train.py:fit", tmp_path / "cache").parameters
    assert len(started.calls) == 3


def test_many_checks_of_the_same_code_at_once_start_one_process(project, tmp_path, started):
    """A `.map` over eight leases costs one import."""
    root = project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: check_text(root, "train.py:fit", tmp_path / "cache"), range(4)))
    assert len(started.calls) == 1


def test_a_failure_is_not_remembered(project, tmp_path, started):
    """The user mends the environment, not the code, and tries again."""
    root = project({"pyproject.toml": "", "train.py": "import no_such_package_x"})
    for _ in range(2):
        with pytest.raises(NotImportable):
            check_text(root, "train.py:fit", tmp_path / "cache")
    assert len(started.calls) == 2


def test_a_spoiled_memory_is_checked_again(project, tmp_path, started):
    """Half a file is no success."""
    root = project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    check_text(root, "train.py:fit", tmp_path / "cache")
    for stored in (tmp_path / "cache/import-checks").glob("*.json"):
        stored.write_text("{")
    check_text(root, "train.py:fit", tmp_path / "cache")
    assert len(started.calls) == 2


def test_the_check_runs_the_packed_code_not_the_checkout(project, tmp_path):
    """A module that .gitignore keeps at home imports here and not on the node: the check says so, and names it."""
    root = project({"pyproject.toml": "", ".gitignore": "secret_sauce.py\n", "secret_sauce.py": "",
                    "train.py": "import secret_sauce\ndef fit(): ..."})  # fmt: skip
    with pytest.raises(NotImportable, match="No module named 'secret_sauce'") as caught:
        check_text(root, "train.py:fit", tmp_path / "cache")
    assert "code package holds it" in caught.value.remedy


def test_the_fresh_interpreter_has_an_allow_listed_environment(project, tmp_path, monkeypatch, started):
    """No credential and no PYTHONPATH of the flow's process reaches it; MLINFRA_ON_NODE does."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    (tmp_path / "only_here_x.py").write_text("")
    root = project({"pyproject.toml": "", "train.py": "import os\nassert os.environ['MLINFRA_ON_NODE'] == '1'\n"
                    "assert 'AWS_SECRET_ACCESS_KEY' not in os.environ\nassert os.environ['LC_ALL']\ndef fit(): ...",
                    "other.py": "import only_here_x\ndef fit(): ..."})  # fmt: skip
    check_text(root, "train.py:fit", tmp_path / "cache")
    assert "AWS_SECRET_ACCESS_KEY" not in started.calls[0][1]["env"]
    with pytest.raises(NotImportable, match="only_here_x"):
        check_text(root, "other.py:fit", tmp_path / "cache")


def test_the_last_line_of_the_traceback_is_in_the_message(project, tmp_path):
    """The user sees what their module raised."""
    root = project({"pyproject.toml": "", "train.py": "print('noise')\nraise RuntimeError('no licence file')"})
    with pytest.raises(NotImportable, match=r"RuntimeError: no licence file") as caught:
        check_text(root, "train.py:fit", tmp_path / "cache")
    assert caught.value.field == "function"


def test_a_function_that_is_not_there_is_said(project, tmp_path):
    """An address in text may be wrong."""
    root = project({"pyproject.toml": "", "train.py": ""})
    with pytest.raises(NotImportable, match=r"no 'fit'"):
        check_text(root, "train.py:fit", tmp_path / "cache")


def test_a_flow_started_at_import_is_a_missing_guard(project, tmp_path):
    """The clear error names the guard and the flow; nothing ran, and no Prefect server was started."""
    pytest.importorskip("prefect")
    root = project({"pyproject.toml": "", "train.py": "from prefect import flow\n"
                    "@flow\ndef nightly(): open('ran', 'w')\n"
                    "def fit(): ...\nnightly()\n"})  # fmt: skip
    with pytest.raises(NotImportable, match=r"missing `if __name__ == \"__main__\":` guard.*'nightly'"):
        check_text(root, "train.py:fit", tmp_path / "cache")


def test_a_generator_named_in_text_is_refused(project, tmp_path):
    """What is refused for a function is refused for its address."""
    root = project({"pyproject.toml": "", "train.py": "def fit():\n    yield 1"})
    with pytest.raises(NotImportable, match="generator"):
        check_text(root, "train.py:fit", tmp_path / "cache")


def test_an_import_that_never_ends_is_ended(project, tmp_path, started):
    """Past the time the whole process group is gone, and the message says what an import should not do."""
    root = project({"pyproject.toml": "", "train.py": "import subprocess, sys, pathlib, time\n"
                    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
                    f"pathlib.Path({str(tmp_path / 'child')!r}).write_text(str(child.pid))\n"
                    "time.sleep(60)"})  # fmt: skip
    with pytest.raises(NotImportable, match=r"longer than 1\.5 seconds"):
        check_text(root, "train.py:fit", tmp_path / "cache", timeout=1.5)
    assert started.processes[0].returncode is not None
    child = int((tmp_path / "child").read_text())
    for _ in range(100):  # the kernel hands an orphan to its reaper a moment later
        try:
            with open(f"/proc/{child}/stat") as stat:  # noqa: PTH123
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return
            os.kill(child, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.02)
    pytest.fail("the import's own child process is still alive")


def test_threads_that_the_import_started_do_not_hold_the_check(project, tmp_path):
    """A module with a background thread imports; the check does not wait for the thread."""
    root = project(
        {
            "pyproject.toml": "",
            "train.py": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n"
            "def fit(): ...",
        }
    )
    began = time.monotonic()
    check_text(root, "train.py:fit", tmp_path / "cache", timeout=20)
    assert time.monotonic() - began < 10


def test_a_module_that_kills_the_interpreter_is_said_with_its_status(project, tmp_path):
    """A native crash has no traceback, but a status and the last line."""
    root = project({"pyproject.toml": "", "train.py": "import os, sys\nprint('bye', flush=True)\nos._exit(7)"})
    with pytest.raises(NotImportable, match="ended with status 7 bye"):
        check_text(root, "train.py:fit", tmp_path / "cache")


def test_an_interpreter_that_cannot_start_is_an_error(project, tmp_path):
    """The field is `python`."""
    root = project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    with pytest.raises(InvalidInput) as caught:
        check_text(root, "train.py:fit", tmp_path / "cache", python=str(tmp_path / "python"))
    assert caught.value.field == "python"


def test_nothing_but_archive_and_memory_is_left_behind(project, tmp_path):
    """The unpacked code of a check goes with it."""
    root = project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    check_text(root, "train.py:fit", tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["code", "import-checks"]


# --- requirements that only the node has -----------------------------------------------------------------------------


def test_a_package_that_the_node_installs_may_be_missing_here(project, tmp_path):
    """With requirements the file is read instead of run, and its parameters are still known."""
    root = project(
        {"pyproject.toml": "", "train.py": "import no_such_package_x\ndef fit(a, /, b=1, *c, d, e=2, **f): ..."}
    )
    found = check_text(root, "train.py:fit", tmp_path / "cache", requirements=["no-such-package-x"])
    assert str(found) == "(a, /, b=None, *c, d, e=None, **f)"
    with pytest.raises(NotImportable, match="no 'fut'"):
        check_text(root, "train.py:fut", tmp_path / "cache", requirements=["no-such-package-x"])


@pytest.mark.parametrize("missing", ["helper_x.gone", "pkg_x.gone"])
def test_a_missing_part_of_the_project_is_not_excused_by_requirements(project, tmp_path, missing):
    """No requirement will bring a module of a package that is the project's own."""
    root = project({"pyproject.toml": "", "pkg_x/__init__.py": "", "src/helper_x/__init__.py": "",
                    "train.py": f"import {missing}\ndef fit(): ..."})  # fmt: skip
    with pytest.raises(NotImportable, match="gone"):
        check_text(root, "train.py:fit", tmp_path / "cache", requirements=["numpy"])


# --- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_gives_reference_package_and_hash(project, load_module, tmp_path):
    """All that a call's code needs, from the function alone."""
    project(
        {
            "pyproject.toml": "",
            "src/pkg/__init__.py": "",
            "src/pkg/mod.py": "from pkg import __name__ as n\ndef fit(x): ...",
        }
    )
    sys.modules.pop("pkg", None)
    load_module("src/pkg/__init__.py", "pkg")
    prepared = prepare(load_module("src/pkg/mod.py", "pkg.mod").fit, cache_dir=tmp_path / "cache")
    assert prepared.reference.text == "src/pkg/mod.py:fit"
    assert prepared.reference.import_root == "src"
    assert prepared.code_hash == prepared.package.sha256
    assert list(prepared.signature.parameters) == ["x"]
    assert not prepared.by_value
    assert not prepared.aliases


def test_prepare_refuses_a_function_whose_file_does_not_travel(project, load_module, tmp_path, started):
    """Ignored by Git: said before any process is started."""
    project({"pyproject.toml": "", ".gitignore": "scratch.py", "scratch.py": "def fit(): ..."})
    with pytest.raises(NotImportable, match=r"scratch\.py is not in the code package"):
        prepare(load_module("scratch.py", "scratch").fit, cache_dir=tmp_path / "cache")
    assert not started.calls


def test_an_installed_function_needs_no_package_and_has_a_hash_of_its_own(project, tmp_path):
    """The hash tells two functions of one module apart."""
    project({"pyproject.toml": ""})
    one, two = (prepare(function, cache_dir=tmp_path / "cache") for function in (json.dumps, json.loads))
    assert one.package is None
    assert one.reference.module == "json"
    assert one.code_hash != two.code_hash


def test_a_command_has_a_package_and_no_reference(project, tmp_path, started):
    """The project around the working directory travels; there is nothing to import."""
    project({"pyproject.toml": "", "train.sh": "true"})
    prepared = prepare(None, cache_dir=tmp_path / "cache")
    assert prepared.reference is None
    assert [file.path for file in prepared.package.files] == ["pyproject.toml", "train.sh"]
    assert not started.calls


def test_a_guarded_script_prepares_its_own_function(project, run_python):
    """The whole path from a real `__main__`: the script imports on its own and its guard holds."""
    project({"pyproject.toml": "", "ex/helper_y.py": "x = 1", "ex/train.py": "import os, pathlib, helper_y\n"
             "def fit(day): ...\nif __name__ == '__main__':\n    from mlinfra_prefect.code import prepare\n"
             "    p = prepare(fit, cache_dir=pathlib.Path(os.environ['CACHE']))\n"
             "    print(p.reference.text, p.signature, p.aliases)"})  # fmt: skip
    result = run_python("ex/train.py")
    assert result.stdout.strip() == "ex/train.py:fit (day) {'__main__': 'train'}", result.stderr


def test_a_check_never_starts_another_check(project, load_module, tmp_path, monkeypatch, started):
    """A script that prepares at import does so in its own check too: there it is a missing guard, not a fork bomb."""
    project({"pyproject.toml": "", "train.py": "def fit(): ..."})
    module = load_module("train.py", "train")
    monkeypatch.setenv("MLINFRA_IMPORTING", "1")
    with pytest.raises(MissingGuard, match="__main__"):
        prepare(module.fit, cache_dir=tmp_path / "cache")
    assert not started.calls
