"""Small projects on disk, modules loaded from them, and scripts run from them, for the tests of the code package."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

import mlinfra_prefect
from mlinfra_prefect.agent import loading
from mlinfra_prefect.code import Prepared, write_archive

REPOSITORY = Path(mlinfra_prefect.__file__).resolve().parents[1]

WriteTree = Callable[[Mapping[str, str | bytes]], Path]
LoadModule = Callable[[str, str], ModuleType]
CallOnNode = Callable[..., object]
RunPython = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteTree:
    """Write files into one project directory, which is the working directory and not a shared place."""
    root = tmp_path.resolve() / "project"
    root.mkdir()
    monkeypatch.chdir(root)

    def write(files: Mapping[str, str | bytes]) -> Path:
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return root

    return write


@pytest.fixture
def load_module(project: WriteTree, monkeypatch: pytest.MonkeyPatch) -> LoadModule:
    """Import a file of the project under a name, as the flow's process would have done."""
    root = project({})

    def load(file: str, name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, root / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def run_python(project: WriteTree, tmp_path: Path) -> RunPython:
    """Run a Python of its own in the project with this package importable; the process has ended on return."""
    root = project({})

    def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "CACHE": str(tmp_path / "cache"),
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=root, env=environment, input=text, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    return run


_NODE = """
import importlib.util, json, pathlib, sys
loader, code, call = sys.argv[1:]
spec = importlib.util.spec_from_file_location("node_loading", loader)
loading = importlib.util.module_from_spec(spec)
sys.modules["node_loading"] = loading
spec.loader.exec_module(loading)
call = json.loads(call)
function = loading.load(pathlib.Path(code), call["import_root"], call["file"], call["module"], call["qualname"])
print(json.dumps(function(*call["args"])))
"""


@pytest.fixture
def call_on_node(tmp_path: Path) -> CallOnNode:
    """Unpack the archive somewhere else and call the function in an interpreter that has nothing else of the flow."""

    def call(prepared: Prepared, *args: object, site: bool = True) -> object:
        assert prepared.package is not None
        assert prepared.reference is not None
        code = tmp_path / "node"
        with zipfile.ZipFile(write_archive(prepared.package, tmp_path / "archives")) as archive:
            archive.extractall(code)
        at = prepared.reference
        request = {
            "import_root": at.import_root, "file": at.file, "module": at.module, "qualname": at.qualname, "args": args,
        }  # fmt: skip
        options = ["-E", "-P"] if site else ["-E", "-P", "-S"]  # -S: no site-packages at all
        result = subprocess.run(
            [sys.executable, *options, "-c", _NODE, loading.__file__, str(code), json.dumps(request)],
            cwd=tmp_path, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return call
