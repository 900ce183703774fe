"""The second dead-man ends what is past its own deadline, and nothing else. AWS runs it; here its handler is called."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from aws_account import ENVIRONMENT, LEDGER, OTHER_REGION, REGION, SHARED, Account, account, server, tagged

import mlinfra_prefect
from mlinfra_prefect.aws import deadman
from mlinfra_prefect.errors import InvalidInput, NotYetDestroyed

__all__ = ["account", "server"]  # fixtures
GRACE = 300


def tags(seconds: float, **more: str) -> dict[str, str]:
    """With a deadline that many seconds from now."""
    return tagged(deadline=str(int(time.time() + seconds)), **more)


LATE, SOON = -GRACE - 60.0, -GRACE + 60.0


@pytest.fixture
def function(account: Account, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call the handler as the scheduler does, in its own environment; returns its answer and its log."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in account.server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ENVIRONMENT", ENVIRONMENT)
    monkeypatch.delenv("REGIONS", raising=False)
    monkeypatch.delenv("GRACE_SECONDS", raising=False)
    deadman._client.cache_clear()

    def call() -> tuple[object, list[dict[str, object]]]:
        capsys.readouterr()
        try:
            answer = deadman.handler({"source": "aws.scheduler"}, None)
        except NotYetDestroyed as raised:
            answer = raised
        return answer, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    yield call
    deadman._client.cache_clear()


def test_what_is_past_its_deadline_is_ended_whosever_it_is(account, function):
    """Of every ledger: the function knows none, and the deadline is the machine's own."""
    late = {account.instance(tags(LATE)), account.instance(tags(LATE, ledger="another"))}
    fleet, machines = account.fleet(tags(LATE, lease="l00000000000000000000-1"), market="spot")
    answer, log = function()
    assert answer == {"seen": 5, "ended": 5, "malformed": 0}
    living = account.living()
    assert not living & {*late, fleet, *machines}
    assert not any(each.startswith("sir-") for each in living)
    ended = [each for each in log if each["event"] == "ended"]
    assert len(ended) == 5
    assert {each["ledger"] for each in ended} == {LEDGER, "another"}
    assert log[-1]["event"] == "done"


def test_everything_else_lives_on(account, function):
    """Within its time or its grace, untagged, of another environment, shared, unreadable, or no machine at all."""
    account.everything({"Name": "somebody's"})
    account.everything(SHARED)
    account.everything(tags(LATE, environment="prod"))
    account.fleet(tags(3600.0))
    account.instance(tags(SOON))
    account.instance(tags(LATE) | SHARED)
    account.instance({key: value for key, value in tags(LATE).items() if not key.endswith(":lease")})
    account.volume(tags(LATE))
    account.address(tags(LATE))
    afar = account.instance(tags(LATE), region=OTHER_REGION)
    before = account.living()
    answer, _ = function()
    assert answer == {"seen": 3, "ended": 0, "malformed": 0}
    assert account.living() == before
    assert afar in account.living(OTHER_REGION)


@pytest.mark.parametrize("deadline", ["soon", "", "1e9", "-1", "0x1"])
def test_a_deadline_that_cannot_be_read_ends_nothing_and_is_told(account, function, deadline):
    """A guess would end a stranger's training."""
    broken = account.instance(tagged(deadline=deadline))
    without = account.instance({key: value for key, value in tagged().items() if not key.endswith(":deadline")})
    answer, log = function()
    assert answer == {"seen": 2, "ended": 0, "malformed": 2}
    assert {broken, without} <= account.living()
    told = [each["thing"] for each in log if each["event"] == "no-deadline"]
    assert sorted(told) == sorted(f"instance {each} in {REGION}" for each in (broken, without))


def test_every_region_that_it_is_given_is_swept(account, function, monkeypatch):
    """And one that is no region does not keep the others' machines alive, and shows."""
    monkeypatch.setenv("REGIONS", f"{REGION}, {OTHER_REGION}")
    near, far = account.instance(tags(LATE)), account.instance(tags(LATE), region=OTHER_REGION)
    assert function()[0] == {"seen": 2, "ended": 2, "malformed": 0}
    assert near not in account.living()
    assert far not in account.living(OTHER_REGION)
    monkeypatch.setenv("REGIONS", f"no region!,{REGION}")
    again = account.instance(tags(LATE))
    answer, log = function()
    assert isinstance(answer, NotYetDestroyed)
    assert again not in account.living()
    assert any(each["event"] == "not-seen" for each in log)


def test_what_refuses_stops_no_other_and_fails_the_run(account, function):
    """The function's error metric is the only one who looks."""
    protected = account.instance(tags(LATE), protected=True)
    others = {account.instance(tags(LATE)), account.instance(tags(LATE, ledger="another"))}
    answer, log = function()
    assert isinstance(answer, NotYetDestroyed)
    assert protected in str(answer)
    assert not others & account.living()
    assert [each["reason"] for each in log if each["event"] == "refused"]


@pytest.mark.parametrize("operation", ["DescribeFleets", "DescribeSpotInstanceRequests", "GetResources"])
def test_what_cannot_be_seen_fails_the_run_and_the_rest_is_ended(account, function, operation):
    """A missing permission for one kind does not keep the machines running."""
    late = account.instance(tags(LATE))
    account.server.proxy.fault(operation, status=403, code="AccessDeniedException", times=None)
    answer, log = function()
    account.server.proxy.clear()
    assert isinstance(answer, NotYetDestroyed)
    assert late not in account.living()
    assert any(each["event"] == "not-seen" for each in log)


def test_a_run_with_nothing_due_is_four_calls(account, function):
    """It runs every few minutes, for ever."""
    account.instance(tags(3600.0))
    _, calls = account.counted(function)
    assert calls == ["GetResources", "DescribeInstances", "DescribeFleets", "DescribeSpotInstanceRequests"]


def test_running_twice_is_running_once(account, function):
    """Idempotent: the ended is not ended again."""
    account.fleet(tags(LATE))
    assert function()[0] == {"seen": 2, "ended": 2, "malformed": 0}
    assert function()[0] == {"seen": 0, "ended": 0, "malformed": 0}


def test_the_grace_is_a_setting(account, function, monkeypatch):
    """In seconds past the deadline."""
    late = account.instance(tags(SOON))
    monkeypatch.setenv("GRACE_SECONDS", "0")
    assert function()[0] == {"seen": 1, "ended": 1, "malformed": 0}
    assert late not in account.living()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENVIRONMENT", ""),
        ("GRACE_SECONDS", "soon"),
        ("GRACE_SECONDS", "-1"),
        ("GRACE_SECONDS", "nan"),
        ("AWS_REGION", ""),
    ],
)
def test_a_wrong_setting_touches_nothing_and_fails_the_run(account, function, monkeypatch, name, value):
    """A function that silently does nothing is no dead-man."""
    account.instance(tags(LATE))
    before = account.living()
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput):
        function()
    assert account.living() == before


# --- as one file ------------------------------------------------------------------------------------------------------


def test_the_archive_is_the_same_on_every_build(tmp_path):
    """By its hash AWS knows whether the function changed."""
    one, other = deadman.build_archive(tmp_path / "a.zip"), deadman.build_archive(tmp_path / "b.zip")
    content = one.path.read_bytes()
    assert content == other.path.read_bytes()
    assert one.sha256 == other.sha256 == base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert deadman.build_archive(tmp_path / "a.zip") == one
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.zip", "b.zip"]
    with zipfile.ZipFile(one.path) as archive:
        assert {each.external_attr >> 16 for each in archive.infolist()} == {0o100644}
        assert {each.date_time for each in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert len(content) < 200_000


RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import importlib
name, _, function = sys.argv[2].rpartition(".")
answer = getattr(importlib.import_module(name), function)({}, None)
ours = {each: module.__file__ for each, module in sys.modules.items() if each.partition(".")[0] == "mlinfra_prefect"}
print(json.dumps([answer, ours]))
"""


def test_the_archive_runs_by_itself_with_nothing_but_boto3(account, function, tmp_path, monkeypatch):
    """Another interpreter, the zip and the SDK: it ends a machine, imports what it packs, and packs no more."""
    archive = deadman.build_archive(tmp_path / "dead-man.zip").path
    late = account.instance(tags(LATE))
    done = subprocess.run(
        [sys.executable, "-I", "-c", RUN, str(archive), deadman.HANDLER], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**{key: os.environ[key] for key in account.server.environment}, "ENVIRONMENT": ENVIRONMENT},
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer, modules = json.loads(done.stdout.splitlines()[-1])
    assert answer == {"seen": 1, "ended": 1, "malformed": 0}
    assert late not in account.living()
    assert all(file.startswith(str(archive)) for file in modules.values())
    with zipfile.ZipFile(archive) as packed:
        names = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in packed.namelist()}
    assert names == set(modules)


def test_the_archive_holds_our_own_code(tmp_path):
    """The reaper's sweep, not a copy of it."""
    root = Path(mlinfra_prefect.__file__).parent
    with zipfile.ZipFile(deadman.build_archive(tmp_path / "a.zip").path) as packed:
        for name in packed.namelist():
            if not name.endswith("__init__.py"):
                assert packed.read(name) == (root.parent / name).read_bytes()
