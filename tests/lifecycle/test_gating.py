"""The gate lets nothing pass that it could not compare, and says of everything else by how much."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from mlinfra_prefect.errors import BadMetrics, InvalidInput
from mlinfra_prefect.lifecycle.gating import judge
from mlinfra_prefect.model.verdict import Check, Verdict

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("scores", "current"),
    [
        ({"auc": 0.91, "loss": 0.2}, {"auc": 0.90, "loss": 0.25}),
        ({"candidate": {"auc": 0.91, "loss": 0.2}, "current": {"auc": 0.90, "loss": 0.25}}, None),
        ({"candidate": {"auc": 0.91, "loss": 0.2}}, {"auc": 0.90, "loss": 0.25}),
        ({"candidate.auc": 0.91, "candidate.loss": 0.2, "current.auc": 0.90, "current.loss": 0.25}, None),
        ({"candidate.auc": 0.91, "candidate.loss": 0.2}, {"auc": 0.90, "loss": 0.25}),
    ],
)
def test_the_forms_of_scores_are_judged_alike(scores, current) -> None:
    """Metrics beside each other, nested, or flat as `evaluate` returns them: the same verdict, word for word."""
    verdict = judge(scores, current=current, by={"auc": 0.02, "loss": 0.01}, lower_is_better=["loss"])
    assert not verdict
    assert [(check.name, check.ok, check.candidate, check.current) for check in verdict.checks] == [
        ("auc", False, 0.91, 0.90), ("loss", True, 0.2, 0.25),
    ]  # fmt: skip
    assert verdict.reason == "auc 0.91 is below 0.92 (current 0.9 + 0.02)"
    assert str(verdict) == f"gate refused: {verdict.reason}"


@given(FINITE, FINITE, st.floats(-1e3, 1e3))
def test_a_margin_is_what_the_candidate_must_be_better_by(candidate: float, current: float, margin: float) -> None:
    """Upwards for a score, downwards for a loss; a negative margin is how much worse it may be."""
    up = judge({"m": candidate}, current={"m": current}, by=margin)
    down = judge({"m": -candidate}, current={"m": -current}, by=margin, lower_is_better=["m"])
    assert up.ok == down.ok
    slack = 1e-9 * max(1.0, abs(current) + abs(margin))
    if candidate > current + margin + slack:
        assert up
    if candidate < current + margin - slack:
        assert not up


@pytest.mark.parametrize(("candidate", "current", "by"), [(0.3, 0.1, 0.2), (0.905, 0.9, 0.005), (0.7, 0.8, -0.1)])
def test_equal_on_paper_is_reached(candidate: float, current: float, by: float) -> None:
    """0.1 + 0.2 is 0.30000000000000004 in binary; nobody's model is refused for that."""
    assert judge({"m": candidate}, current={"m": current}, by=by)


def test_a_number_as_margin_counts_for_every_metric_that_both_have() -> None:
    """What only one of them has cannot be compared."""
    verdict = judge({"a": 1.0, "b": 1.0, "new": 0.0}, current={"a": 0.5, "b": 2.0, "old": 0.0}, by=0.1)
    assert [(check.name, check.ok) for check in verdict.checks] == [("a", True), ("b", False)]


def test_floors_and_ceilings_hold_without_a_current_version() -> None:
    """The first version has nothing to be compared with: margins say so, limits hold all the same."""
    first = judge({"auc": 0.9}, by=0.01, floors={"auc": 0.8})
    assert first
    assert "there is no current version" in first.reason
    assert not judge({"auc": 0.7}, by={"auc": 0.01}, floors={"auc": 0.8})
    assert judge({"candidate": {"auc": 0.9}, "current": None}, by={"auc": 0.01}).checks[0].current is None
    slow = judge({"ms": 12.0}, ceilings={"ms": 10})
    assert (slow.ok, slow.reason) == (False, "ms 12 is above 10")
    assert judge({"ms": 10.0}, ceilings={"ms": 10}, floors={"ms": 10})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True, "0.9", None, [0.9], 10**400])
def test_what_is_no_finite_number_never_passes(bad) -> None:
    """On either side, gated or not: the metric is named."""
    with pytest.raises(BadMetrics, match=r"candidate\.auc"):
        judge({"auc": bad, "other": 1.0}, floors={"other": 0.5})
    with pytest.raises(BadMetrics, match=r"current\.auc"):
        judge({"auc": 0.9}, current={"auc": bad}, by=0.0)


def test_numbers_of_numpy_are_numbers() -> None:
    """A scoring function returns what its libraries do."""
    numpy = pytest.importorskip("numpy")
    assert judge({"auc": numpy.float32(0.9), "n": numpy.int64(3)}, floors={"auc": 0.5, "n": 3})
    assert not judge({"auc": 0.9}, check=lambda new, _: numpy.float64(new["auc"]) > 1)


@pytest.mark.parametrize(
    ("scores", "criteria", "field"),
    [
        ({"auc": 0.9}, {}, "gate"),
        ({}, {"by": 0.1}, "scores"),
        ({"candidate": {}}, {"by": 0.1}, "scores"),
        ([0.9], {"by": 0.1}, "scores"),
        ({"auc": 0.9}, {"floors": {"acu": 0.8}}, "floors.acu"),
        ({"auc": 0.9}, {"ceilings": {"ms": 8}}, "ceilings.ms"),
        ({"auc": 0.9}, {"floors": {"auc": math.nan}}, "floors.auc"),
        ({"auc": 0.9}, {"floors": 0.8}, "floors"),
        ({"auc": 0.9}, {"floors": {"auc": 0.9}, "ceilings": {"auc": 0.8}}, "floors.auc"),
        ({"auc": 0.9}, {"by": {"acu": 0.1}}, "by.acu"),
        ({"auc": 0.9}, {"by": {"auc": 0.1}, "current": {"f1": 0.9}}, "by.auc"),
        ({"auc": 0.9}, {"by": 0.1, "current": {"f1": 0.9}}, "by"),
        ({"auc": 0.9}, {"by": "much"}, "by"),
        ({"auc": 0.9}, {"by": True}, "by"),
        ({"auc": 0.9}, {"by": math.inf}, "by"),
        ({"auc": 0.9}, {"by": 0.1, "lower_is_better": "auc loss"}, "lower_is_better.auc loss"),
        ({"auc": 0.9}, {"by": 0.1, "current": [0.9]}, "current"),
        ({"candidate": {"auc": 0.9}, "current": {"auc": 0.8}}, {"by": 0.1, "current": {"auc": 0.7}}, "current"),
        ({"candidate": {"auc": 0.9}, "champion": {"auc": 0.8}}, {"by": 0.1}, "scores.champion"),
        ({"candidate.auc": 0.9, "auc": 0.8}, {"by": 0.1}, "scores.auc"),
        ({"current.auc": 0.9}, {"by": 0.1}, "scores"),
        ({"auc": 0.9}, {"check": "auc > 0.8"}, "check"),
        ({"auc": 0.9}, {"check": lambda new, old: new}, "check"),
    ],
)
def test_a_gate_that_cannot_decide_says_which_field_is_wrong(scores, criteria, field: str) -> None:
    """A typing error in a criterion is an error, and never a pass."""
    with pytest.raises(InvalidInput) as error:
        judge(scores, **criteria)
    assert error.value.field == field


def _raises(new, old) -> bool:
    raise ValueError(f"{new['auc']} of {old}")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (lambda new, old: False, "check <lambda> said no"),
        (lambda new, old: "worse for small customers", "check <lambda> worse for small customers"),
        (_raises, "check _raises raised ValueError: 0.9 of None"),
        (lambda new, old: Verdict(kind="gate", ok=False, reason="fairness"), "check <lambda> fairness"),
    ],
)
def test_a_check_of_ones_own_refuses_with_its_sentence(said, reason: str) -> None:
    """By False, by a sentence, by raising, or with a verdict of its own; what else passed does not help."""
    verdict = judge({"auc": 0.9}, floors={"auc": 0.5}, check=said)
    assert (verdict.ok, verdict.reason) == (False, reason)


def test_a_check_of_ones_own_sees_both_and_cannot_change_them() -> None:
    """It is given the metrics by name, and passes with True, None, or a verdict that passed."""
    seen = []

    def spoil(new, old) -> None:
        seen.append((dict(new), dict(old)))
        new["auc"] = old["auc"] = 0.0

    scores = {"candidate": {"auc": 0.9}, "current": {"auc": 0.8}}
    assert judge(scores, check=spoil)
    assert judge(scores, check=lambda new, old: new["auc"] > old["auc"])
    inner = Verdict(kind="gate", ok=True, reason="fair", checks=(Check(name="parity", ok=True, detail="0.01"),))
    assert [check.name for check in judge(scores, check=lambda *_: inner).checks] == ["parity", "check <lambda>"]
    assert seen == [({"auc": 0.9}, {"auc": 0.8})]
    assert scores == {"candidate": {"auc": 0.9}, "current": {"auc": 0.8}}


def test_a_verdict_is_a_table_in_which_no_name_breaks_a_cell() -> None:
    """One row for each check, passed or not, with the numbers that were compared."""
    verdict = judge({"a|b <i>": 0.5, "f1": 0.9}, current={"f1": 0.8}, by=0.05, floors={"a|b <i>": 0.6})
    first, _, head, line, *rows = verdict.table.splitlines()
    assert first.startswith("**gate refused: ")
    assert head.count("|") == line.count("|") == 7
    assert rows[0] == "| f1 | 0.9 | 0.8 | 0.85 | passed | 0.9 is at least 0.85 (current 0.8 + 0.05) |"
    assert rows[1].startswith("| a\\|b &lt;i> | 0.5 |  | 0.6 | **refused** |")
