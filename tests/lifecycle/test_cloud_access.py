"""Rule: operations log in as the latest client of their account did; nothing else of its environment travels."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from mlinfra_prefect.errors import KeeperUnavailable, LedgerUnavailable
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.lifecycle.cloud_access import Login, kept, variables
from mlinfra_prefect.model.home import Home

KEYS = {"AWS_ACCESS_KEY_ID": "AKIA0", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}
OTHER = {"AWS_PROFILE": "work"}
MINE, THEIRS, UNSEEN = "111111111111", "222222222222", "333333333333"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home").ensure()


def lend(home: Home, environment: dict[str, str], account: str = MINE) -> None:
    cloud_access.lend(home, environment, lambda: account)


def unknown() -> str:
    raise LedgerUnavailable("AWS does not answer.")


def test_only_what_is_amazon_s_is_lent(home: Home) -> None:
    """Not the PATH, not another cloud's token, and not what is said of one process only."""
    there = {**KEYS, "PATH": "/bin", "AZURE_TOKEN": "t", "MY_AWS_KEY": "k", "AWS_EXECUTION_ENV": "x"}
    there["AWS_LAMBDA_RUNTIME_API"] = "y"
    lend(home, there)
    assert kept(home) == KEYS
    assert variables(there) == KEYS


def test_it_is_kept_where_only_the_user_reads(home: Home) -> None:
    """Keys may be among it."""
    lend(home, KEYS)
    assert stat.S_IMODE(home.aws.stat().st_mode) == 0o700
    files = sorted(home.aws.iterdir())
    assert [each.name for each in files] == [f"login.{MINE}", "login.latest"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in files] == [0o600, 0o600]


def test_the_latest_client_s_login_leaves_nothing_of_the_former_one(home: Home) -> None:
    """A session token of yesterday beside the key of today would be refused."""
    lend(home, {**KEYS, "AWS_SESSION_TOKEN": "yesterday"})
    lend(home, OTHER)
    there = {"AWS_SESSION_TOKEN": "of the keeper", "AWS_EXECUTION_ENV": "its own", "PATH": "/bin"}
    Login(home, there).as_latest()
    assert there == {"AWS_PROFILE": "work", "AWS_EXECUTION_ENV": "its own", "PATH": "/bin"}


def test_each_account_keeps_its_own_login(home: Home) -> None:
    """A client of one account takes the keeper nothing of the leases that it has in another one."""
    lend(home, KEYS, MINE)
    lend(home, OTHER, THEIRS)
    there = {"PATH": "/bin"}
    login = Login(home, there)
    login.as_client_of(MINE)
    assert there == {"PATH": "/bin", **KEYS}
    for account in (THEIRS, UNSEEN, ""):  # where none is known: the latest
        login.as_client_of(account)
        assert there == {"PATH": "/bin", **OTHER}
    login.as_itself()
    assert there == {"PATH": "/bin"}


def test_a_client_that_needs_no_variable_has_the_keeper_log_in_by_itself(home: Home) -> None:
    """A role of the host is not taken away by the keys of another account, nor by having none."""
    own = {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/role", "PATH": "/bin"}
    there = dict(own)
    lend(home, {"PATH": "/bin"}, MINE)
    lend(home, KEYS, THEIRS)
    login = Login(home, there)
    login.as_latest()
    assert there == {**KEYS, "PATH": "/bin"}
    login.as_client_of(MINE)
    assert there == own


def test_an_account_that_cannot_be_told_is_no_reason_to_lend_nothing(home: Home) -> None:
    """It is the latest login all the same; the next client of it is asked again."""
    lend(home, KEYS, MINE)
    cloud_access.lend(home, OTHER, unknown)
    assert kept(home) == OTHER
    assert kept(home, MINE) == KEYS
    lend(home, OTHER, THEIRS)
    assert kept(home, THEIRS) == OTHER


def test_what_did_not_change_is_not_written_or_asked_again(home: Home) -> None:
    """A hundred leases of one client cost one write, and one question whose login it is."""
    lend(home, KEYS)
    before = (home.aws / cloud_access.LATEST).stat()
    cloud_access.lend(home, dict(KEYS), unknown)
    after = (home.aws / cloud_access.LATEST).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert json.loads((home.aws / cloud_access.LATEST).read_text())["account"] == MINE


def test_where_nothing_was_lent_nothing_is_borrowed(home: Home) -> None:
    """The environment of a reaper stays as it is."""
    there = dict(KEYS)
    Login(home, there).as_latest()
    assert there == KEYS


def test_the_file_of_a_former_version_is_read_until_a_client_lends_anew(home: Home) -> None:
    """Its leases were begun with it, and it does not say whose it is."""
    home.aws.mkdir()
    (home.aws / cloud_access.FORMER).write_text(json.dumps({"variables": KEYS}))
    assert kept(home, MINE) == kept(home) == KEYS
    lend(home, OTHER, THEIRS)
    assert not (home.aws / cloud_access.FORMER).exists()
    assert kept(home) == OTHER


def test_an_environment_may_be_called_login(home: Home) -> None:
    """What `init aws` keeps of it is no login, and stays."""
    (home.aws / cloud_access.FORMER / f"{MINE}-eu-central-1").mkdir(parents=True)
    assert kept(home) == {}
    lend(home, KEYS)
    assert (home.aws / cloud_access.FORMER).is_dir()
    assert kept(home) == KEYS


@pytest.mark.parametrize("account", ["latest", "/../../etc", "", "١٢٣"])
def test_what_is_no_account_names_no_file(home: Home, account: str) -> None:
    """Records say it, and a shared ledger's are written by others."""
    lend(home, KEYS, MINE)
    planted = (home.aws / f"login.{account}").resolve()
    planted.parent.mkdir(parents=True, exist_ok=True)
    if account != "latest":
        planted.write_text(json.dumps({"variables": OTHER}))
    assert kept(home, account) == KEYS


@pytest.mark.parametrize("content", ["", "{", "[]", '{"variables": 3}', '{"variables": ["AWS_REGION"]}'])
def test_a_file_that_cannot_be_read_lends_nothing(home: Home, content: str) -> None:
    """Half a file lends no half of a login."""
    home.aws.mkdir()
    for name in (cloud_access.LATEST, cloud_access.FORMER):
        (home.aws / name).write_text(content)
    assert kept(home) == {}
    lend(home, KEYS)
    assert kept(home) == KEYS


def test_a_home_that_cannot_be_written_is_said_before_anything_is_rented(home: Home) -> None:
    """A keeper that cannot log in could not give back what its client rented."""
    home.aws.write_text("a file where the directory should be")
    with pytest.raises(KeeperUnavailable, match="cannot be kept in .*aws"):
        lend(home, KEYS)
