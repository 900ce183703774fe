"""Rule: what ``init`` leaves is paid for once per module and engine, and a stack never runs with half of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlinfra_prefect.terraform import initialised
from mlinfra_prefect.terraform.engine import Engine

PACKAGE = Path(".terraform/providers/registry.terraform.io/hashicorp/aws/5.100.0/linux_amd64")
PROGRAM = "terraform-provider-aws_v5.100.0_x5"


@pytest.fixture
def one_engine(engine_cache: Path) -> Engine:
    from mlinfra_prefect.terraform import find_engine

    return find_engine(None, cache_dir=engine_cache)


LOCK = """\
provider "registry.terraform.io/hashicorp/aws" {
  version     = "5.100.0"
  constraints = "~> 5.0"
  hashes = [
    "h1:edXOJWE4ORX8Fm+dpVpICzMZJat4AX0VRCAy/xkcOc0=",
  ]
}
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """What ``init`` leaves of a module with one provider and one local module."""
    return initialised_at(tmp_path / "first")


def initialised_at(place: Path) -> Path:
    (place / PACKAGE).mkdir(parents=True, exist_ok=True)
    (place / PACKAGE / PROGRAM).write_text("a program")
    (place / ".terraform.lock.hcl").write_text(LOCK)
    (place / ".terraform/modules").mkdir(exist_ok=True)
    (place / ".terraform/modules/modules.json").write_text('{"Modules": []}')
    (place / "main.tf").write_text("# the module")
    return place


def other(tmp_path: Path) -> Path:
    place = tmp_path / "second"
    place.mkdir()
    return place


def test_what_was_kept_comes_back_whole(tmp_path: Path, workdir: Path) -> None:
    """Lock, list of modules and providers; the module itself is not touched."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    assert initialised.restore(kept, second, locked=False)
    assert (second / PACKAGE / PROGRAM).read_text() == "a program"
    assert (second / ".terraform/modules/modules.json").read_text() == '{"Modules": []}'
    assert not (second / "main.tf").exists()


def test_a_program_is_stored_once_and_linked(tmp_path: Path, workdir: Path) -> None:
    """Hundreds of megabytes are not copied for a lease."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    initialised.restore(kept, second, locked=False)
    assert (second / PACKAGE / PROGRAM).stat().st_ino == (workdir / PACKAGE / PROGRAM).stat().st_ino
    assert (second / ".terraform/providers").is_symlink()


def test_what_one_stack_deletes_is_not_gone_for_the_next(tmp_path: Path, workdir: Path) -> None:
    """A stack that is tidied away takes its link with it, and no more."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    initialised.restore(kept, second, locked=False)
    shutil.rmtree(second)
    shutil.rmtree(workdir)
    assert initialised.restore(kept, other(tmp_path), locked=False)


def test_a_stack_whose_init_somebody_else_overtook_gets_what_was_kept(tmp_path: Path, workdir: Path) -> None:
    """Two first leases at once: the second one's own programs, not kept, are in the way of the link."""
    initialised.keep(tmp_path / "kept", workdir)
    late = initialised_at(tmp_path / "late")
    initialised.keep(tmp_path / "kept", late)
    assert not (late / initialised.PROVIDERS).is_symlink()
    assert initialised.restore(tmp_path / "kept", late, locked=False)
    assert (late / initialised.PROVIDERS).resolve() == (tmp_path / "kept" / initialised.PROVIDERS).resolve()


def test_nothing_is_restored_before_something_was_kept(tmp_path: Path) -> None:
    """And nothing is written then."""
    second = other(tmp_path)
    assert not initialised.restore(tmp_path / "kept", second, locked=False)
    assert list(second.iterdir()) == []


@pytest.mark.parametrize("lost", [".terraform.lock.hcl", str(PACKAGE / PROGRAM), ".terraform/providers"])
def test_half_of_it_is_nothing(tmp_path: Path, workdir: Path, lost: str) -> None:
    """A cache that was swept by hand: the next stack pays for its own ``init``, and keeps that."""
    kept = tmp_path / "kept"
    initialised.keep(kept, workdir)
    found = kept / lost
    shutil.rmtree(found) if found.is_dir() else found.unlink()
    second = other(tmp_path)
    assert not initialised.restore(kept, second, locked=False)
    assert list(second.iterdir()) == []
    initialised.keep(kept, initialised_at(tmp_path / "third"))
    assert initialised.restore(kept, second, locked=False)


def test_a_program_that_was_verified_is_not_hashed_at_every_command(tmp_path: Path, workdir: Path) -> None:
    """Terraform hashes what its lock file has hashes of; the version stays locked."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    initialised.restore(kept, second, locked=False)
    told = (second / ".terraform.lock.hcl").read_text()
    assert "5.100.0" in told
    assert "hashes" not in told


@pytest.mark.parametrize("change", ["content", "time", "file"])
def test_a_program_that_is_another_one_is_verified_again(tmp_path: Path, workdir: Path, change: str) -> None:
    """A program that was changed since ``init`` verified it, however its size and its times look."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    program = kept / PACKAGE / PROGRAM
    before = program.stat()
    if change == "file":
        program.unlink()
        program.write_text("a program")
    if change == "content":
        program.write_text("b program")
    if change != "file":
        os.utime(program, ns=(before.st_atime_ns, before.st_mtime_ns))
    initialised.restore(kept, second, locked=False)
    assert (second / ".terraform.lock.hcl").read_text() == LOCK


def test_the_lock_file_of_a_module_is_law(tmp_path: Path, workdir: Path) -> None:
    """Whoever commits hashes wants them to be compared, every time."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    initialised.restore(kept, second, locked=True)
    assert (second / ".terraform.lock.hcl").read_text() == LOCK


def test_what_somebody_uses_is_never_replaced(tmp_path: Path, workdir: Path) -> None:
    """Two stacks that initialise at once: the programs that the first one runs stay where they are."""
    kept, second = tmp_path / "kept", initialised_at(other(tmp_path))
    initialised.keep(kept, workdir)
    before = (workdir / PACKAGE / PROGRAM).stat().st_ino
    initialised.keep(kept, second)
    assert (workdir / PACKAGE / PROGRAM).stat().st_ino == before
    assert (second / PACKAGE / PROGRAM).read_text() == "a program"


def test_a_mirror_that_was_taken_away_is_seen(tmp_path: Path, workdir: Path) -> None:
    """Terraform links to packages of a mirror on the host; a link that leads nowhere is no provider."""
    mirror = tmp_path / "mirror"
    (workdir / PACKAGE).rename(mirror)
    (workdir / PACKAGE).symlink_to(mirror)
    kept = tmp_path / "kept"
    initialised.keep(kept, workdir)
    assert initialised.restore(kept, other(tmp_path), locked=False)
    shutil.rmtree(mirror)
    shutil.rmtree(tmp_path / "second")
    assert not initialised.restore(kept, other(tmp_path), locked=False)


def test_a_stack_that_borrowed_lends_nothing(tmp_path: Path, workdir: Path) -> None:
    """A link to what is kept would be kept as a link to itself."""
    kept, second = tmp_path / "kept", other(tmp_path)
    initialised.keep(kept, workdir)
    initialised.restore(kept, second, locked=False)
    initialised.keep(tmp_path / "again", second)
    assert not (tmp_path / "again").exists()


def test_a_working_directory_without_providers_is_not_kept(tmp_path: Path, workdir: Path) -> None:
    """A module of the built-in provider only has nothing to keep."""
    shutil.rmtree(workdir / ".terraform/providers")
    initialised.keep(tmp_path / "kept", workdir)
    assert not (tmp_path / "kept").exists()


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(
    tmp_path: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: what was begun is removed, and the stack goes on with what it has."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(initialised, "write_private", full)
    initialised.keep(tmp_path / "cache" / "kept", workdir)
    assert list((tmp_path / "cache").iterdir()) == []
    assert (workdir / PACKAGE / PROGRAM).read_text() == "a program"


def test_another_text_another_engine_and_another_version_have_places_of_their_own(
    tmp_path: Path, one_engine: Engine
) -> None:
    """What one engine has unpacked another one may not be able to use."""
    engines = [one_engine, replace(one_engine, version="1.99.0"), replace(one_engine, path=tmp_path / "tofu")]
    places = {initialised.place(tmp_path, engine, digest) for engine in engines for digest in ("a", "b")}
    assert len(places) == 6
    assert initialised.place(tmp_path, one_engine, "a") == initialised.place(tmp_path, one_engine, "a")
