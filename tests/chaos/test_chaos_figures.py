"""Rules of what is published: exact bounds, honest counts, and a page that says how to do it again."""

from __future__ import annotations

import re

import pytest

from mlinfra_prefect.chaos.campaign import plans
from mlinfra_prefect.chaos.matrix import ROWS
from mlinfra_prefect.chaos.plan import Plan
from mlinfra_prefect.chaos.report import SCHEMA, closing_line, page, quantile, summary, upper_bound
from mlinfra_prefect.chaos.running import Result


@pytest.mark.parametrize(
    ("leaks", "runs", "bound"),
    # The 0.95 quantile of Beta(leaks + 1, runs - leaks), as tables of Clopper and Pearson give it.
    [(0, 0, 1.0), (0, 1, 0.95), (0, 1000, 0.0029912), (1, 10, 0.394163), (2, 20, 0.282619), (5, 5, 1.0)],
)  # fmt: skip
def test_the_bound_is_exact(leaks: int, runs: int, bound: float) -> None:
    assert upper_bound(leaks, runs) == pytest.approx(bound, rel=1e-3)


def test_no_leak_in_a_thousand_is_the_rule_of_three() -> None:
    assert upper_bound(0, 1000) == pytest.approx(3 / 1000, rel=0.01)


def result(number: int = 0, row: str = "everything", **told: object) -> Result:
    made = Result(Plan(row, 1, number), injected=True, seconds=1.0)
    for name, value in told.items():
        setattr(made, name, value)
    return made


def test_a_run_without_a_fault_and_one_that_went_wrong_are_not_counted() -> None:
    """They would make the rate look better than it was measured; a leak counts whatever else happened."""
    results = [
        result(seconds=2.0), result(seconds=None, leaks=["a process"], beyond=30.0), result(injected=False),
        result(error="Traceback"), result(injected=False, leaks=["a lock"]),
    ]  # fmt: skip
    figures = summary(results)
    assert (figures["runs"], figures["leaks"], figures["missed"], figures["went_wrong"]) == (3, 2, 1, 1)
    assert figures["mean_seconds_beyond"] == 10.0
    assert closing_line(results) == "3 runs, 2 leaks, p95 2.0 s"


def test_quantiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.95), quantile([], 0.5)) == (50.0, 95.0, None)


def test_the_page_gives_each_row_its_figures_and_its_command() -> None:
    document = {
        "schema": SCHEMA, "at": "2026-11-28T12:00:00+00:00", "seed": 7, "jobs": 2, "seconds": 600.0, "commit": "abc",
        "machine": "Linux", "skipped": {"disk-full": "needs root"},
        "rows": [
            {"row": "everything", "about": "all killed", "on": "terraform_data", "promise_seconds": 103.0,
             **summary([result(), result(seconds=3.0)])},
            {"row": "disk-full", "about": "no room", "on": "terraform_data", "promise_seconds": 103.0, **summary([])},
        ],
    }  # fmt: skip
    told = page(document, total=summary([result(), result(seconds=3.0)]), command="make chaos RUNS=2 SEED=7")
    assert "2 runs with a fault in each, 0 leaks" in told
    assert re.search(
        r"\| everything \| 2 \| 0 \| 78 % \| 1\.0 \| 3\.0 \| 3\.0 \| 103 \| 0\.0 \| .make chaos RUNS=2", told
    )
    assert "| disk-full | 0 |" in told
    assert "needs root" in told
    assert told.count("Not measured yet.") == 2


def test_the_seed_decides_everything() -> None:
    """Rows, moments, victims: the same seed the same, another seed others."""

    def first(seed: int, count: int = 200) -> list[Plan]:
        chosen = plans(ROWS, seed)
        return [next(chosen)[1] for _ in range(count)]

    assert first(5) == first(5)
    assert first(5) != first(6)
    assert {plan.row for plan in first(5, 1500)} == {row.name for row in ROWS if row.weight}


def test_at_least_half_of_all_strikes_come_at_random_moments() -> None:
    chosen = plans(ROWS, 1)
    drawn = [next(chosen)[1] for _ in range(1000)]
    assert sum(plan.random for plan in drawn) >= 500
    moments = [strike.at for plan in drawn for strike in plan.strikes if plan.random]
    assert len(set(moments)) > 0.9 * len(moments)


def test_every_row_promises_what_the_readme_promises_at_most() -> None:
    """TTL, operation deadline, reaper's interval and teardown; the first two only where a row needs them."""
    promises = {row.name: row.promise for row in ROWS}
    assert promises["client-killed"] < promises["everything"] < promises["namespace-killed"] < 300


def test_a_campaign_replaces_its_own_part_of_the_page_and_no_other() -> None:
    """What was measured on this machine stands while the cloud is measured again, with what a lease asks of it."""
    document: dict[str, object] = {
        "schema": SCHEMA, "at": "2026-11-28T12:00:00+00:00", "seed": 7, "jobs": 2, "seconds": 600.0, "commit": "abc",
        "machine": "Linux", "skipped": {}, "rows": [],
    }  # fmt: skip
    none = summary([])
    local = page(document, total=none, command="make chaos RUNS=2")
    calls = {"CreateFleet": 1, "DescribeFleets": 3, "GetObject": 40}
    both = page(
        {**document, "platform": "aws", "calls": calls}, total=none, command="make chaos PLATFORM=aws RUNS=3",
        before=local,
    )  # fmt: skip
    assert "`make chaos RUNS=2`" in both
    assert "`make chaos PLATFORM=aws RUNS=3`" in both
    assert "made 4 calls: DescribeFleets 3, CreateFleet 1" in both
    assert both.count("Not measured yet.") == 1
    again = page({**document, "platform": "aws"}, total=none, command="make chaos PLATFORM=aws RUNS=9", before=both)
    assert "RUNS=3" not in again
    assert "`make chaos RUNS=2`" in again
