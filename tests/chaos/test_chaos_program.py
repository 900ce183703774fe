"""Rules of the program: what leaks is found and ends it with 1, what goes wrong does not stop it, and nothing is left.

The bounded subset of the matrix that ``make test`` runs is here; `make chaos RUNS=1000 SEED=1` is the whole of it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlinfra_prefect.chaos import campaign as running, matrix
from mlinfra_prefect.chaos.place import Place, Setting
from mlinfra_prefect.chaos.plan import Plan, Row
from mlinfra_prefect.chaos.report import SCHEMA, summary
from mlinfra_prefect.chaos.running import Result
from mlinfra_prefect.terraform import find_engine

CACHE = Path(os.environ.get("MLINFRA_TEST_CACHE") or Path(__file__).parents[2] / ".cache")
SUBSET = (
    "client-killed,operation-killed,everything,terraform-killed,reapers-race,client-told-to-end,keeper-and-operation,"
    "store-busy"
)


@pytest.fixture
def setting() -> Iterator[Setting]:
    """With a scratch of its own: what leaks on purpose is kept there."""
    CACHE.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="mlp-"))
    yield Setting(CACHE, str(find_engine(None, cache_dir=CACHE).path), scratch)
    shutil.rmtree(scratch)


def chaos(*words: str) -> subprocess.CompletedProcess[str]:
    """The program as people run it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLINFRA_")}
    return subprocess.run(
        [sys.executable, "-m", "mlinfra_prefect", "chaos", *words],
        env={**env, "MLINFRA_CACHE": str(CACHE)}, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


@pytest.mark.slow
def test_the_subset_of_the_matrix_leaks_nothing(tmp_path: Path) -> None:
    """Real clients, keepers, Terraform and nodes, killed at random moments and at named points."""
    told, page = tmp_path / "chaos.json", tmp_path / "leak-rate.md"
    ran = chaos(
        "--runs", "10", "--seed", "2", "--jobs", "2", "--rows", SUBSET, "--json", str(told), "--report", str(page)
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.fullmatch(r"10 runs, 0 leaks, p95 \d+\.\d s", ran.stdout.splitlines()[-1])
    document = json.loads(told.read_text())
    assert document["schema"] == SCHEMA
    assert not ran.stderr, ran.stderr
    assert sum(row["runs"] for row in document["rows"]) == 10
    assert all(run["struck"] for run in document["runs"] if run["injected"])
    assert "10 runs with a fault in each, 0 leaks" in page.read_text()


@pytest.mark.slow
def test_a_node_ends_itself_at_its_deadline_with_everything_else_gone() -> None:
    """Keeper, client, ledger, cards and Terraform's files are gone, and no reaper comes: only the dead-man is left."""
    ran = chaos("--runs", "1", "--seed", "1", "--rows", "dead-man")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("1 runs, 0 leaks")


def leaks(place: Place, plan: Plan) -> None:
    """A lease for nobody: it lives, and nothing is to end it yet."""
    place.client("up").wait(120)
    place.hit(place.victims("keeper"), "CONT")


def fails(place: Place, plan: Plan) -> None:
    raise RuntimeError("the program has a bug")


def touches(place: Place, plan: Plan) -> None:
    """Ends what another ledger owns."""
    place._decoys[0].kill()
    place._decoys[0].wait()
    place.struck.append({"role": "decoy", "how": "KILL", "at": time.time()})


class Impatient(Row):
    """A row that promises a second."""

    @property
    def promise(self) -> float:
        return 1.0


def test_a_planted_leak_is_counted_kept_and_measured(setting: Setting) -> None:
    """Alive at the promised time: a leak, with how long it lived past that; its place is kept for a look."""
    row = Impatient("leaks", "plants a leak", leaks)
    (found,) = running.campaign(setting, [row], runs=1, seed=1, beyond=1.0)
    assert any(each.startswith("process left") for each in found.leaks)
    assert any(" is ready: " in each for each in found.leaks)
    assert found.beyond >= 1.0
    assert summary([found])["leaks"] == 1
    assert (Path(found.kept) / "words").exists()


def test_a_run_that_goes_wrong_stops_nothing_and_is_not_counted(setting: Setting) -> None:
    rows = [Row("fails", "goes wrong", fails), Row("touches", "touches a decoy", touches)]
    found = running.campaign(setting, rows, runs=6, seed=1)
    wrong = [each for each in found if each.error]
    assert wrong
    assert "the program has a bug" in wrong[0].error
    others = [each.leaks for each in found if not each.error]
    assert others
    assert all(each == ["decoy ['sleep', '7200'] was ended"] for each in others)


def test_the_list_names_every_row_and_every_point() -> None:
    listed = chaos("--list")
    assert listed.returncode == 0
    assert {"everything", "dead-man", "rollout-killed", "before-promote"} <= set(listed.stdout.split())


@pytest.mark.parametrize("words", [["--rows", "nonsense"], ["--runs", "0"], ["--jobs", "0"]])
def test_wrong_input_runs_nothing(words: list[str]) -> None:
    ran = chaos(*words)
    assert ran.returncode == 2
    assert words[0].removeprefix("--") in ran.stderr


def test_a_campaign_goes_on_where_it_was_left(tmp_path: Path) -> None:
    """What a file holds counts and is not done again; a file of other words, or of none, is not gone on with."""
    told = tmp_path / "chaos.json"
    row, words = matrix.ROWS[0], ["--json", str(told), "--rows", matrix.ROWS[0].name, "--go-on"]
    done = Result(row.plan(7, 3), injected=True, seconds=1.5, struck=[{"role": "client", "how": "KILL", "at": 1.0}])
    document = running.as_json([row], [done], seed=7, jobs=1, skipped={}, seconds=60.0)
    running.write(told, document)
    before = running.earlier(told, [row], 7)
    assert before.results == (done,)
    again = running.as_json([row], before.results, seed=7, jobs=1, skipped={}, seconds=1.0, before=before)
    assert {**again, "at": ""} == {**document, "at": "", "seconds": 61.0}
    ran = chaos(*words, "--runs", "1", "--seed", "7")
    assert ran.stdout.splitlines()[-1] == "1 runs, 0 leaks, p95 1.5 s", ran.stderr
    for wrong, says in ((["--seed", "8"], "seed"), (["--seed", "7", "--rows", "everything"], "rows")):
        ran = chaos(*words, *wrong)
        assert (ran.returncode, says in ran.stderr) == (2, True), ran.stderr
    told.write_text("[]")
    assert "holds no campaign" in chaos(*words, "--seed", "7").stderr
    assert "go-on" in chaos("--go-on").stderr


def test_runs_that_were_done_are_left_out(setting: Setting) -> None:
    """By their numbers: what was cut off in the middle is done now."""
    row = Row("fails", "goes wrong", fails)
    before = [Result(row.plan(1, number), injected=True) for number in (0, 2)]
    found = running.campaign(setting, [row], runs=3, seed=1, before=before)
    numbers = [each.plan.number for each in found]
    assert numbers == sorted(set(numbers))
    assert numbers[:4] == [0, 1, 2, 3]
    assert [bool(each.error) for each in found[:4]] == [False, True, False, True]
