"""`doctor`: each line that is not OK names the next step."""

from __future__ import annotations

import json
import sqlite3


def checks(done):
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0)
    for each in told["checks"]:
        assert set(each) == {"check", "status", "message", "next"}
        assert (each["status"] == "OK") == (each["next"] is None), each
    return {each["check"]: each for each in told["checks"] if each["status"] != "OK"}, told["checks"]


def test_a_good_machine_passes(cli):
    """Every question is asked and answered, and nothing fails here."""
    done = cli("doctor", "--json")
    bad, every = checks(done)
    asked = {each["check"] for each in every}
    assert asked >= {"python", "system", "prefect", "fastapi", "home", "disk", "config", "terraform", "serving", "gpus",
                     "ledger", "keeper"}  # fmt: skip
    assert [each for each in bad.values() if each["status"] == "FAIL"] == []
    assert done.returncode == 0


def test_a_missing_engine_fails_with_the_next_step(cli):
    """A configured Terraform that is not there is a FAIL, and the other checks are made all the same."""
    done = cli("doctor", "--json", MLINFRA_TERRAFORM=str(cli.home.root / "no-terraform"))
    bad, every = checks(done)
    assert (done.returncode, bad["terraform"]["status"]) == (1, "FAIL")
    assert "Install" in bad["terraform"]["next"]
    assert len(every) >= 12


def test_a_malformed_configuration_fails(cli, tmp_path):
    """The configuration's file and field are named."""
    path = tmp_path / "bad.toml"
    path.write_text("[environments.prod]\nplatform = 'moon'\n")
    done = cli("doctor", "--json", MLINFRA_CONFIG=str(path))
    bad, _ = checks(done)
    assert (done.returncode, bad["config"]["status"]) == (1, "FAIL")
    assert "environments.prod" in bad["config"]["message"]


def test_an_open_home_is_a_warning(cli):
    """A home that others can open still works: a warning with the command that closes it, and exit code 0."""
    cli.home.root.mkdir(mode=0o755)
    bad, _ = checks(cli("doctor", "--json"))
    assert bad["home"]["status"] == "WARN"
    assert bad["home"]["next"].startswith("chmod 700 ")
    human = cli("doctor", COLUMNS="80")
    assert human.returncode == 0
    assert "chmod 700" in human.stdout


def test_an_unreadable_record_fails(cli, write):
    """A record that cannot be read is named."""
    bad_record = write("lease", "bad")
    with sqlite3.connect(cli.home.ledger) as db:
        db.execute("UPDATE records SET json = '{}'")
    done = cli("doctor", "--json")
    bad, _ = checks(done)
    assert done.returncode == 1
    assert bad_record in bad["ledger"]["message"]


def test_a_home_that_cannot_be_made_fails_and_stops_no_other_check(cli, tmp_path):
    """One broken thing never hides the answers to the other questions."""
    (tmp_path / "file").write_text("")
    done = cli("doctor", "--json", MLINFRA_HOME=str(tmp_path / "file" / "home"))
    bad, every = checks(done)
    assert done.returncode == 1
    assert bad["home"]["status"] == "FAIL"
    assert {each["check"] for each in every} >= {"python", "gpus", "config"}
