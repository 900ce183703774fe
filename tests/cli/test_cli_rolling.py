"""Serving changes by hand: how `promote`, `rollback`, `retire` and `endpoints --repair` answer and how they refuse.

What they do to servers is proven where servers are: tests/keeper/test_keeper_verbs.py.
"""

from __future__ import annotations

import json

import pytest

from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.probe import Step
from mlinfra_prefect.testing.records import MOMENT, sample_endpoint, sample_rollout

FIRST = sample_endpoint().versions[0].revised(rollout=None)
TWO_SERVE = (FIRST.revised(share=70), FIRST.revised(version=2, share=30))
ONE_GONE = (FIRST.revised(state="retired", share=0), FIRST.revised(version=2))
CANARY = FIRST.revised(version=2, state="canary", share=0, promoted_at=None, rollout=sample_rollout(version=2).id)
TAKEN_BACK = CANARY.revised(state="rolled-back", reason="it disagreed")


def only_line(text: str) -> str:
    (line,) = text.splitlines()
    return line


@pytest.mark.parametrize(
    ("words", "versions", "says"),
    [
        (["promote", "churn", "--version", "1"], ONE_GONE, "Version 1 of endpoint 'churn' is gone. Deploy its model"),
        (["promote", "churn", "--version", "7"], ONE_GONE, "Endpoint 'churn' has no version 7. It has: 1, 2."),
        (["promote", "churn"], ONE_GONE, "has no rollout in flight, so there is nothing to promote"),
        (["promote", "churn", "--version", "2"], (FIRST, TAKEN_BACK), "Version 2 of 'churn' was rolled back"),
        (["promote", "churn"], (FIRST, CANARY), "is lost, not ready"),
        (["rollback", "churn"], (FIRST,), "has no version before the current one to go back to"),
        (["retire", "churn", "2"], ONE_GONE, "Version 2 is all that endpoint 'churn' serves. Release the endpoint"),
        (
            ["retire", "churn", "2"],
            (FIRST, CANARY),
            "is being rolled out. Take it back: mlinfra-prefect rollback churn",
        ),
        (["promote", "nobody"], (FIRST,), "There is no endpoint 'nobody' in environment 'dev'"),
        (
            ["rollback", "churn", "--environment", "prod"],
            (FIRST,),
            "There is no endpoint 'churn' in environment 'prod'",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line_and_changes_nothing(cli, write, words, versions, says):
    """Exit code 1, what happened and what to do; the versions are as they were."""
    write("endpoint", "churn", versions=versions)
    before = json.loads(cli("endpoints", "--json").stdout)
    done = cli(*words)
    assert (done.returncode, done.stdout) == (1, "")
    line = only_line(done.stderr)
    assert line.startswith("error: ")
    assert says in line
    assert json.loads(cli("endpoints", "--json").stdout) == before


@pytest.mark.parametrize(
    "words",
    [["promote"], ["promote", "churn", "--version", "second"], ["retire", "churn"], ["retire", "churn", "x"],
     ["rollback"], ["endpoints", "--repair=maybe"]],
)  # fmt: skip
def test_wrong_usage_is_exit_code_2(cli, words):
    """A version is a number; the help is named."""
    done = cli(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{words[0]} --help" in only_line(done.stderr)


@pytest.mark.parametrize("as_json", [True, False])
def test_the_endpoint_is_told_as_it_is_then(cli, write, as_json):
    """`{id, name, url, versions}`, or one line with the shares."""
    endpoint = write("endpoint", "churn", State.PROVISIONING, versions=TWO_SERVE)
    done = cli("retire", "churn", "2", "--reason", "too slow", *(["--json"] if as_json else []))
    assert (done.returncode, done.stderr) == (0, "")
    if as_json:
        assert json.loads(done.stdout) == {
            "id": endpoint, "name": "churn", "url": "http://127.0.0.1:8123",
            "versions": [
                {"version": 1, "state": "serving", "share": 100}, {"version": 2, "state": "retiring", "share": 0},
            ],
        }  # fmt: skip
    else:
        assert only_line(done.stdout) == "churn: version 2 retires; version 1 100 % (serving)"
    (last,) = json.loads(cli("show", "churn", "--json").stdout)["history"][-1:]
    assert last["reason"] == "version 2: retired: too slow"
    again = cli("retire", "churn", "2")
    assert again.returncode == 0


def test_routes_that_do_not_follow_are_an_error_that_names_the_remedy(cli, write):
    """The decision stands in the record, and whoever decided is told that it is not served."""
    write("endpoint", "churn", versions=TWO_SERVE)
    done = cli("retire", "churn", "2")
    assert done.returncode == 1
    assert "'churn' has no router" in only_line(done.stderr)
    (found,) = json.loads(cli("endpoints", "--json").stdout)
    assert [(v["share"], v["declared_share"]) for v in found["versions"]] == [(None, 100), (None, 0)]


def test_show_tells_what_each_step_of_a_rollout_found(cli, write):
    """Which version of which endpoint, and why it was given more or taken back; never cut."""
    found = "with 10 % of the requests: 40 requests, 9 failed: an error rate of 22.5% is above 1.0%"
    steps = (
        Step(share=0, began_at=MOMENT, ok=True, reason="before it got requests: its servers are ready"),
        Step(share=10, began_at=MOMENT, ok=False, reason=found),
        Step(share=50, began_at=MOMENT),
    )
    rollout = write("rollout", "churn", version=2, steps=steps)
    shown = cli("show", rollout, COLUMNS="60").stdout
    assert max(map(len, shown.splitlines())) <= 60
    words = shown.split()
    assert found.split()[:4] == words[words.index("failed") + 1 :][:4]
    assert all(word in words for word in found.split())
    told = [line.split()[:3] for line in shown.splitlines()]
    lines = [line for line in told if "%" in line[1:2]]
    assert lines == [["0", "%", "passed"], ["10", "%", "failed"], ["50", "%", "is"]]
    assert f"2 of {sample_endpoint().id}" in shown


def test_nothing_to_repair_is_said(cli, write):
    """Neither an endpoint that has no version yet nor one that goes is brought back."""
    write("endpoint", "new", State.PROVISIONING, versions=(CANARY.revised(state="deploying"),))
    write("endpoint", "going", State.RELEASING)
    write("rollout", "retired", promoted_at=MOMENT)
    done = cli("endpoints", "--repair")
    assert (done.returncode, done.stdout) == (0, "Everything that should be served is up.\n")
    assert json.loads(cli("endpoints", "--repair", "--json").stdout) == {"repaired": []}
