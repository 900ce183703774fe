"""A real lease from the command line: up, exec, logs, pull, show, reap, release."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest


def listed(cli, lease):
    return next(each for each in json.loads(cli("ps", "--json", "--all").stdout) if each["id"] == lease)


def waited(look, seconds=15.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


def test_up_leaves_a_lease_without_a_client(leased):
    """`up` returns, and its lease lives on: no client, a live keeper, its owner told."""
    cli, lease = leased
    found = listed(cli, lease)
    assert (found["state"], found["name"], found["accelerator"]) == ("ready", "shared", "cpu")
    assert found["client"] == {"kind": "none", "pid": None, "host": None, "alive": None}
    assert found["keeper"]["alive"] is True
    assert found["owner"]["host"] == os.uname().nodename
    assert found["owner"]["flow_run_id"] is None


def test_exec_gives_output_and_exit_code_of_the_command(leased):
    """The command's output comes as it was written, its last unfinished line too, and its exit code is ours."""
    cli, lease = leased
    done = cli(
        "exec", lease, "--", "sh", "-c", "echo one; echo; echo two >&2; printf '%s' \"$1\"; exit 7", "-", "--flag"
    )
    assert (done.returncode, done.stdout) == (7, "one\n\ntwo\n--flag")
    assert cli("exec", lease, "--", "nosuchprogram").returncode == 127
    assert cli("exec", lease, "--", "sh", "-c", "kill -9 $$").returncode == 137


def test_every_exec_runs_anew(leased):
    """The same command twice runs twice, though a retried flow would pick the first one up again."""
    cli, lease = leased
    said = {cli("exec", lease, "--", "sh", "-c", "echo $MLINFRA_JOB_ID").stdout for _ in range(2)}
    assert len(said) == 2


def test_exec_runs_on_the_node(leased):
    """The command runs under the agent with the lease's identity, not here."""
    cli, lease = leased
    done = cli("exec", lease, "--", "sh", "-c", "echo $MLINFRA_LEASE_ID $MLINFRA_ON_NODE", MLINFRA_LEASE_ID="not-this")
    assert done.stdout.split() == [lease, "1"]


def test_logs_and_pull_give_what_a_command_left(leased, tmp_path):
    """`logs --job` is the whole log of a job; `pull` copies its artifact, verified, and overwrites nothing."""
    cli, lease = leased
    made = cli(
        "exec",
        lease,
        "--",
        "sh",
        "-c",
        "echo trained; mkdir -p $MLINFRA_OUTPUT_DIR/d; echo m > $MLINFRA_OUTPUT_DIR/d/m.txt",
    )
    assert made.returncode == 0, made.stderr
    artifact = made.stderr.split("artifact ")[1].split()[0]
    told = json.loads(cli("show", lease, "--json").stdout)
    job = next(each["job_id"] for each in told["record"]["jobs"] if each["artifact_id"] == artifact)
    assert cli("logs", lease, "--job", job).stdout == "trained\n"
    place = tmp_path / "pulled"
    done = cli("pull", artifact, str(place), "--json")
    (pulled,) = json.loads(done.stdout)["artifacts"]
    assert (place / "d" / "m.txt").read_text() == "m\n"
    assert [each["path"] for each in pulled["files"]] == ["d/m.txt"]
    assert cli("pull", artifact, str(place)).returncode == 0  # the very same files are no clash
    (place / "d" / "m.txt").write_text("mine")
    assert cli("pull", artifact, str(place)).returncode == 2
    assert (place / "d" / "m.txt").read_text() == "mine"


def test_a_changed_artifact_is_not_pulled(leased, tmp_path):
    """A stored file that is not what was recorded is refused before anything is copied."""
    cli, lease = leased
    made = cli("exec", lease, "--", "sh", "-c", "echo good > $MLINFRA_OUTPUT_DIR/m.txt")
    artifact = made.stderr.split("artifact ")[1].split()[0]
    stored = cli.home.artifacts / artifact / "files" / "m.txt"
    stored.chmod(0o600)
    stored.write_text("evil\n")
    done = cli("pull", artifact, str(tmp_path / "pulled"))
    assert (done.returncode, (tmp_path / "pulled").exists()) == (1, False)
    assert "sha256" in done.stderr
    stored.write_text("good\n")


def test_show_tells_record_attempts_history_and_receipt(leased):
    """`show --json` has the record, its attempts, every transition, and the receipt."""
    cli, lease = leased
    told = json.loads(cli("show", lease, "--json").stdout)
    assert set(told) == {"record", "attempts", "history", "receipt", "addenda"}
    assert (told["record"]["id"], told["receipt"]) == (lease, None)
    assert told["attempts"] == told["record"]["attempts"]
    assert all(set(line) == {"time", "generation", "actor", "before", "state", "reason"} for line in told["history"])
    states = [line["state"] for line in told["history"]]
    assert [states[0], *dict.fromkeys(states)] == ["requested", "requested", "provisioning", "ready"]
    for columns in ("80", "200"):
        human = cli("show", lease, COLUMNS=columns).stdout
        assert all(title in human for title in ("Attempts", "History", lease, "none, by design"))
        assert max(map(len, human.splitlines())) <= int(columns)


def test_reap_leaves_a_healthy_lease_alone(leased):
    """A live lease of a live keeper is skipped, and that is exit code 0."""
    cli, lease = leased
    done = cli("reap", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["released"], told["stuck"]) == (0, [], [])
    assert [each["id"] for each in told["skipped"]] == [lease]
    assert listed(cli, lease)["state"] == "ready"


def test_the_next_verb_replaces_a_lost_keeper(leased):
    """After the keeper's death any verb starts a new one, and the lease goes on under it."""
    cli, lease = leased
    before = listed(cli, lease)
    os.kill(before["keeper"]["pid"], signal.SIGKILL)
    waited(lambda: not Path(f"/proc/{before['keeper']['pid']}").exists())
    assert cli("ps").returncode == 0
    after = waited(lambda: (found := listed(cli, lease))["generation"] > before["generation"] and found)
    assert (after["state"], after["keeper"]["alive"]) == ("ready", True)
    assert after["keeper"]["pid"] != before["keeper"]["pid"]
    assert cli("exec", lease, "--", "true").returncode == 0


@pytest.fixture
def heard() -> Iterator[None]:
    """A person's terminal has Ctrl-C heard; what a script runs in its background ignores it, with all its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_interrupting_exec_ends_the_command_on_the_node(leased, tmp_path):
    """Ctrl-C is SIGTERM for the command, exit code 130 for us, and the lease lives on."""
    cli, lease = leased
    script = "trap 'echo told; exit 3' TERM; echo started; while :; do sleep 0.1; done"
    with subprocess.Popen(
        cli.argv("exec", lease, "--", "sh", "-c", script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=cli.environment(),
    ) as verb:  # fmt: skip
        assert verb.stdout.readline() == "started\n"
        verb.send_signal(signal.SIGINT)
        assert verb.stdout.read() == "told\n"
        assert verb.wait() == 130
    assert listed(cli, lease)["state"] == "ready"


def test_release_gives_back_prints_the_receipt_and_is_a_no_op_afterwards(cli):
    """`release` ends in a clean receipt; a second one does nothing and says so; logs outlive the node."""
    (cli.home.root.parent / "request.yaml").write_text("accelerator: cpu\nmax_minutes: 600\n")
    up = cli("up", "request.yaml", "--max-minutes", "5", COLUMNS="80")
    lease = json.loads(cli("ps", "--json").stdout)[0]["id"]
    for told in (f"lease {lease} is ready after", f'attach("{lease}")', f"exec {lease} -- ", f"release {lease}"):
        assert told in up.stdout, up.stderr
    assert "(in 4m" in up.stdout
    assert max(map(len, up.stdout.splitlines())) <= 80
    with subprocess.Popen(
        cli.argv("logs", "-f", lease), stdout=subprocess.PIPE, text=True, env=cli.environment()
    ) as follower:
        assert cli("exec", lease, "--", "sh", "-c", "echo seen; printf end").returncode == 0
        assert follower.stdout.readline() == "seen\n"
        first = cli("release", lease, "--json")
        assert (follower.stdout.read(), follower.wait(timeout=20)) == ("end", 0)
    told = json.loads(first.stdout)
    assert (first.returncode, told["state"], told["already_released"]) == (0, "released", False)
    assert told["receipt"]["destroyed"] == ["1/terraform_data.node"]
    assert [search["found"] for search in told["receipt"]["searches"]] == [[], []]
    again = cli("release", lease)
    assert (again.returncode, "released already" in again.stdout, "clean" in again.stdout) == (0, True, True)
    assert cli("logs", lease).stdout == "seen\nend"
    assert cli("ps", "--json").stdout.strip() == "[]"
    assert json.loads(cli("show", lease, "--json").stdout)["receipt"] == told["receipt"]
    refused = cli("exec", lease, "--", "true")
    assert refused.returncode == 1


@pytest.mark.usefixtures("heard")
def test_interrupting_up_gives_the_lease_back(cli):
    """Ctrl-C while `up` waits releases what was asked for; nothing is left."""
    with subprocess.Popen(
        cli.argv("up", "cpu", "--max-minutes", "5"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment(),
    ) as verb:
        waited(lambda: json.loads(cli("ps", "--json").stdout))
        verb.send_signal(signal.SIGINT)
        said = verb.communicate(timeout=30)[1].decode()
    assert verb.returncode == 130, said
    assert "Traceback" not in said
    (found,) = json.loads(cli("ps", "--json", "--all").stdout)
    assert (found["state"], found["reason"]) == ("released", "interrupted while it was provisioned")


def test_without_capacity_up_leaves_nothing(cli):
    """`up` of what this machine has not is exit code 4, and no record was written."""
    done = cli("up", "B200:16")
    assert (done.returncode, done.stdout) == (4, "")
    assert cli("ps", "--all", "--json").stdout.strip() == "[]"


def test_reap_tells_what_it_cannot_touch(cli, write):
    """What cannot be read is stuck, and that is exit code 3."""
    import sqlite3

    bad = write("lease", "bad")
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET schema = 99")
    done = cli("reap", "--json")
    assert done.returncode == 3
    assert [each["id"] for each in json.loads(done.stdout)["stuck"]] == [bad]
    assert bad in cli("reap").stdout
    assert set(json.loads(done.stdout)) == {"released", "stuck", "skipped", "orphans", "planned", "dry_run"}
    would = cli("reap", "--dry-run", "--json")
    assert (would.returncode, json.loads(would.stdout)["dry_run"]) == (3, True)


def test_a_dry_run_makes_no_home_and_wrong_options_are_wrong_input(cli):
    """A look leaves nothing behind; what makes no sense together, and an unknown environment, are told by name."""
    done = cli("reap", "--dry-run")
    assert (done.returncode, done.stdout.strip()) == (0, "Nothing to reap.")
    assert not cli.home.ledger.exists()
    for words, told in ((("--dry-run", "--until-quiet"), "--until-quiet"), (("--environment", "nowhere"), "nowhere")):
        refused = cli("reap", *words)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert told in refused.stderr
    nowhere = cli("reap", MLINFRA_HOME="/proc/nowhere")  # nobody can write there, not even root
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "MLINFRA_HOME: /proc/nowhere cannot be used" in nowhere.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look into another user's home")
def test_another_user_s_home_is_refused_and_nothing_is_written(cli, write):
    """`sudo mlinfra-prefect reap` would leave files in it that its owner's keeper cannot open."""
    lease = write("lease", "training")

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in cli.home.root.rglob("*") if path.suffix != ".sqlite-shm"}

    before = written()
    os.chown(cli.home.ledger, 4711, 4711)
    assert lease in cli("ps").stdout  # to look is no harm
    for words in (("reap",), ("release", lease), ("up", "cpu")):
        refused = cli(*words)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "is the home of user 4711" in refused.stderr
        assert "sudo -u '#4711'" in refused.stderr
    assert written() == before


def test_one_name_of_two_endpoints_is_not_guessed(cli, write):
    """A name that endpoints of two environments have is refused with both ids; a released round is never meant."""
    write("endpoint", "churn")
    other = write("endpoint", "churn", round_number=2, environment="prod")
    done = cli("release", "churn")
    assert done.returncode == 2
    assert other in done.stderr


@pytest.mark.parametrize("words", [["exec", "{}"], ["exec", "{}", "--"]])
def test_exec_without_a_command_says_how_to_write_it(leased, words):
    """A forgotten command is wrong input."""
    cli, lease = leased
    done = cli(*(word.format(lease) for word in words))
    assert done.returncode == 2
    assert "exec LEASE -- COMMAND" in done.stderr
