"""`agent.folders`: every directory that we make is its owner's alone, whatever the umask of who makes it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.agent.folders import private_folder


@pytest.fixture(autouse=True)
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_all_that_it_makes_is_private(tmp_path: Path) -> None:
    made = private_folder(tmp_path / "a" / "b" / "c")
    assert [mode(each) for each in (made, made.parent, made.parent.parent)] == [0o700] * 3
    assert private_folder(made) == made


def test_what_exists_keeps_its_mode(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    private_folder(shared / "ours")
    private_folder(shared)
    assert (mode(shared), mode(shared / "ours")) == (0o755, 0o700)


def test_another_thing_of_that_name_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        private_folder(tmp_path / "file")
    with pytest.raises(NotADirectoryError):
        private_folder(tmp_path / "file" / "below")
