"""A shared ledger from the command line down: who uses it, who is kept from it, and what another host may do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import closing

import psutil
import pytest
from s3_stores import keys

from mlinfra_prefect.agent import identity
from mlinfra_prefect.aws import S3Ledger
from mlinfra_prefect.errors import InvalidInput, LedgerUnavailable
from mlinfra_prefect.keeper.reap import reap
from mlinfra_prefect.keeper.starting import watcher_env
from mlinfra_prefect.lifecycle.config import load_config
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.ledger_place import SHARED
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.testing.records import sample_lease

CLIENT = """
import sys, time
from mlinfra_prefect import lease
if __name__ == "__main__":
    with lease("cpu", name="killed") as infra:
        print(infra.id, flush=True)
        time.sleep(600)
"""


@pytest.fixture
def env(moto, bucket, tmp_path):
    passed = {
        name: os.environ[name] for name in ("PATH", "MLINFRA_TERRAFORM", "TF_CLI_CONFIG_FILE") if name in os.environ
    }
    return {
        **passed, **moto.environment, "HOME": str(tmp_path), "MLINFRA_HOME": str(tmp_path / "home"),
        "MLINFRA_LEDGER": f"s3://{bucket}/team", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip


def run(env, *arguments, rc=0):
    done = subprocess.run(
        [sys.executable, "-m", "mlinfra_prefect", *arguments], env=env, cwd=env["HOME"], capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout


def carriers(lease_id):
    """Every process of the lease but the keeper's own operations: its agent, and what Terraform started."""
    found = []
    for process in psutil.process_iter():
        try:
            values = process.environ()
            if values.get("MLINFRA_LEASE_ID") == lease_id and "mlinfra_prefect.keeper" not in process.cmdline():
                found.append(values)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_leases_are_kept_in_the_shared_ledger_and_nothing_of_it_reaches_a_node(env, bucket, tmp_path, monkeypatch):
    """The verbs work on it; agents get no credentials; another host's reaper is kept off."""
    assert run(env, "up", "cpu", "--max-minutes", "5")
    [listed] = json.loads(run(env, "ps", "--json"))
    lease_id = listed["id"]
    assert (listed["state"], listed["up"]) == ("ready", True)
    nodes = carriers(lease_id)
    assert nodes
    leaked = [name for values in nodes for name in values if name.startswith("AWS_") or name == "MLINFRA_LEDGER"]
    assert leaked == []
    assert lease_id in run(env, "show", lease_id)
    assert not (tmp_path / "home" / "ledger.sqlite").exists()

    # Another host, with a home of its own: it sees the lease, and neither takes it over nor calls it gone.
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        patch.setattr(identity, "boot", lambda: "another-boot")
        patch.setenv("MLINFRA_LEDGER", env["MLINFRA_LEDGER"])
        other = Context(Home(tmp_path / "other"))
        found = reap(other, settle_seconds=0.0)
        assert [(each.id, each.reason) for each in found.skipped] == [
            (lease_id, f"it is on {os.uname().nodename}: only a reaper there can prove it gone")
        ]
        assert (found.released, found.stuck) == ((), ())
        assert not list(other.home.cards.iterdir())

    # The home remembers its ledger: the variable may be missing later on, as in cron.
    bare = {name: value for name, value in env.items() if name != "MLINFRA_LEDGER"}
    run(bare, "release", lease_id)
    assert json.loads(run(env, "ps", "--json")) == []

    # A client that is killed: the keeper, or the reaper, gives its lease back.
    script = tmp_path / "client.py"
    script.write_text(CLIENT)
    with subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True) as client:
        try:
            killed = client.stdout.readline().strip()
            assert killed
        finally:
            client.send_signal(signal.SIGKILL)
    run(env, "reap")
    with closing(S3Ledger(env["MLINFRA_LEDGER"])) as ledger:
        for each in (lease_id, killed):
            record = ledger.read(each).record
            assert record.state is State.RELEASED
            assert record.receipt is not None
        assert ledger.records(states=[State.READY, State.RELEASING, State.STUCK]) == []
    assert [key for key in keys(bucket) if "/open/" in key] == []
    assert carriers(lease_id) == carriers(killed) == []


def test_the_keeper_gets_what_reaches_a_shared_ledger_and_no_cloud_variable_without_one(env, tmp_path, monkeypatch):
    """With a ledger of its own a keeper needs no credential, so it has none."""
    own = watcher_env(Context(Home(tmp_path / "own")))
    assert [name for name in own if name.startswith("AWS_") or name == "MLINFRA_LEDGER"] == []
    monkeypatch.setenv("MLINFRA_LEDGER", env["MLINFRA_LEDGER"])
    shared = watcher_env(Context(Home(tmp_path / "shared")))
    assert {name: shared.get(name) for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "MLINFRA_LEDGER")} == {
        name: env[name] for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "MLINFRA_LEDGER")
    }


@pytest.mark.parametrize(
    "text",
    ["s3:/acme", "s3://", "s3://A_B/x", "https://acme/x", "s3://acme/../x", "s3://acme//x", "s3://acme/a b",
     "x" * 100_000, "s3://acme/" + "p" * 600, "s3://acme/\n", "s3://acme/\0", "s3://acme/é"],
)  # fmt: skip
def test_a_malformed_address_is_refused_before_anything_is_made(text, tmp_path, monkeypatch):
    """One sentence that names the field, from the variable and from the file."""
    if "\0" not in text:
        monkeypatch.setenv("MLINFRA_LEDGER", text)
        with pytest.raises(InvalidInput, match="^MLINFRA_LEDGER: ") as told:
            Context(Home(tmp_path / "home"))
        assert len(str(told.value)) < 400
        assert not (tmp_path / "home").exists()
        monkeypatch.delenv("MLINFRA_LEDGER")
    (tmp_path / "mlinfra-prefect.toml").write_text(f"ledger = {json.dumps(text)}\n")
    with pytest.raises(InvalidInput, match=r"^mlinfra-prefect\.toml: ledger: "):
        load_config(tmp_path)


def test_the_variable_goes_before_the_file_and_a_home_stays_with_its_ledger(env, bucket, tmp_path, monkeypatch):
    """Two ledgers never share a home: the second one is refused, and so is another one at the same address."""
    (tmp_path / "mlinfra-prefect.toml").write_text(f'ledger = "s3://{bucket}/file"\n')
    monkeypatch.chdir(tmp_path)
    assert str(Context(Home(tmp_path / "a")).address) == f"s3://{bucket}/file"
    monkeypatch.setenv("MLINFRA_LEDGER", f"s3://{bucket}/variable")
    context = Context(Home(tmp_path / "b"))
    assert str(context.address) == f"s3://{bucket}/variable"
    assert context.ledger.ledger_id
    vars(context).pop("ledger")
    assert context.ledger.identity  # the home knows it by now
    monkeypatch.delenv("MLINFRA_LEDGER")
    with pytest.raises(InvalidInput, match=r"^MLINFRA_LEDGER: .*is not the ledger of"):
        _ = Context(Home(tmp_path / "b")).ledger
    (tmp_path / "mlinfra-prefect.toml").unlink()
    assert str(Context(Home(tmp_path / "b")).address) == f"s3://{bucket}/variable"
    kept = tmp_path / "b" / SHARED
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "ledger_id": "another"}))
    with pytest.raises(LedgerUnavailable, match="deleted or replaced"):
        _ = Context(Home(tmp_path / "b")).ledger


def test_a_home_with_open_records_of_its_own_does_not_change_over(env, tmp_path, monkeypatch):
    """They would be seen by nobody any more."""
    own = Context(Home(tmp_path / "home"))
    own.ledger.create(sample_lease(), actor="test", reason="made")
    own.ledger.close()
    monkeypatch.setenv("MLINFRA_LEDGER", env["MLINFRA_LEDGER"])
    with pytest.raises(InvalidInput, match=r"^MLINFRA_LEDGER: .*1 open record"):
        _ = Context(Home(tmp_path / "home")).ledger
