"""Rule: operations log in as the latest client of their home did; nothing else of its environment travels."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mlinfra_prefect.errors import KeeperUnavailable
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.model.home import Home

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


def test_only_what_is_amazon_s_is_lent(home: Home) -> None:
    """Not the PATH, not another cloud's token, and not what is said of one process only."""
    there = {**KEYS, "PATH": "/bin", "AZURE_TOKEN": "t", "MY_AWS_KEY": "k", "AWS_EXECUTION_ENV": "x"}
    there["AWS_LAMBDA_RUNTIME_API"] = "y"
    cloud_access.lend(home, there)
    assert cloud_access.kept(home) == KEYS
    assert cloud_access.variables(there) == KEYS


def test_what_is_lent_is_private(home: Home) -> None:
    """One file that nobody else reads, in a directory that nobody else lists."""
    cloud_access.lend(home, KEYS)
    file = home.aws / cloud_access.FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.aws.stat().st_mode) == 0o700


def test_the_latest_client_replaces_all_of_the_former_one(home: Home) -> None:
    """A session token of yesterday beside today's keys would be refused by AWS."""
    cloud_access.lend(home, {**KEYS, "AWS_SESSION_TOKEN": "yesterday"})
    cloud_access.lend(home, {"AWS_PROFILE": "work"})
    there = {**KEYS, "AWS_SESSION_TOKEN": "older", "AWS_EXECUTION_ENV": "mine", "PATH": "/bin"}
    cloud_access.borrow(home, there)
    assert there == {"AWS_PROFILE": "work", "AWS_EXECUTION_ENV": "mine", "PATH": "/bin"}


def test_a_client_that_logs_in_otherwise_takes_back_what_was_lent(home: Home) -> None:
    """No variable at all: an instance's role, a file. Yesterday's keys, or an emulator's address, are not for it."""
    cloud_access.lend(home, KEYS)
    cloud_access.lend(home, {"PATH": "/bin"})
    assert cloud_access.kept(home) == {}


def test_lending_the_same_again_writes_nothing(home: Home) -> None:
    """Every lease lends, and a disk that is full must not stop one for that."""
    cloud_access.lend(home, KEYS)
    before = (home.aws / cloud_access.FILE).stat()
    cloud_access.lend(home, dict(KEYS))
    after = (home.aws / cloud_access.FILE).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_where_nothing_was_lent_nothing_is_borrowed(home: Home) -> None:
    """The environment of a reaper stays as it is."""
    there = dict(KEYS)
    cloud_access.borrow(home, there)
    assert there == KEYS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"variables": 3}', '{"variables": ["AWS_REGION"]}'])
def test_a_file_that_cannot_be_read_lends_nothing(home: Home, content: str) -> None:
    """Half a file lends no half of a login."""
    home.aws.mkdir()
    (home.aws / cloud_access.FILE).write_text(content)
    assert cloud_access.kept(home) == {}
    cloud_access.lend(home, KEYS)
    assert cloud_access.kept(home) == KEYS


def test_a_home_that_cannot_be_written_is_said_before_anything_is_rented(home: Home) -> None:
    """A keeper that cannot log in could not give back what its client rented."""
    home.aws.write_text("a file where the directory should be")
    with pytest.raises(KeeperUnavailable, match="cannot be kept in .*aws"):
        cloud_access.lend(home, KEYS)
