"""The probe: what was counted, what was answered, and why anything unclear speaks against the candidate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mlinfra_prefect.errors import EndpointNotReady
from mlinfra_prefect.lifecycle.probing import agrees, base_of, counted, judge_samples, judge_traffic
from mlinfra_prefect.model.probe import ProbeRequest, Step
from mlinfra_prefect.model.served import Served, ServedVersion, quantile
from mlinfra_prefect.testing.records import MOMENT, sample_rollout

QUICK, SLOW = (0.010, 100), (0.500, 100)


def seen(requests: int = 0, errors: int = 0, *buckets: tuple[float, int], version: int = 2) -> ServedVersion:
    return ServedVersion(version=version, share=10, requests=requests, errors=errors, buckets=buckets)


def test_no_request_is_no_reason_against_a_canary() -> None:
    """An endpoint that nobody asks can still be rolled forward; `min_requests` is there to ask for more."""
    ok, reason, figures = judge_traffic(ProbeRequest(), seen(), seen(500, 0, QUICK))
    assert (ok, reason) == (True, "no request came")
    assert figures == {"requests": 0, "errors": 0, "p95_ms": None}


@pytest.mark.parametrize(("errors", "ok"), [(0, True), (5, True), (6, False), (100, False)])
def test_the_error_rate_may_reach_its_limit_and_not_pass_it(errors: int, ok: bool) -> None:
    """The sentence says how many of how many, and what was allowed."""
    found, reason, figures = judge_traffic(ProbeRequest(max_error_rate=0.05), seen(100, errors, QUICK), None)
    assert found is ok
    assert reason.startswith(f"100 requests, {errors} failed")
    assert ok or f"{errors:.1f}% is above 5.0%" in reason
    assert (figures["requests"], figures["errors"], figures["p95_ms"]) == (100, errors, 9.5)


def test_a_canary_that_answers_nothing_fails_though_no_client_noticed() -> None:
    """The router asks another version then, and counts the try as made again: it is the canary's failure."""
    dead = ServedVersion(version=2, share=10, requests=0, retried=30)
    ok, reason, figures = judge_traffic(ProbeRequest(), dead, seen(500, 0, QUICK))
    assert not ok
    assert "30 requests, 30 failed" in reason
    assert (figures["requests"], figures["errors"]) == (30, 30)


@pytest.mark.parametrize(
    ("criteria", "current", "ok"),
    [
        ({}, seen(100, 0, QUICK), True),
        ({"max_p95_ms": 474}, None, False),
        ({"max_p95_ms": 475}, None, True),
        ({"max_p95_ratio": 2.0}, seen(100, 0, QUICK), False),
        ({"max_p95_ratio": 50.0}, seen(100, 0, QUICK), True),
        ({"max_p95_ratio": 2.0}, None, True),
        ({"max_p95_ratio": 2.0}, seen(), True),
    ],
    ids=["any", "above", "at", "slower than before", "as allowed", "nothing before", "nobody asked before"],
)
def test_latency_is_judged_alone_and_beside_the_current_version(
    criteria: dict[str, Any], current: ServedVersion | None, ok: bool
) -> None:
    """A ratio needs something to be a ratio of."""
    found, reason, figures = judge_traffic(ProbeRequest(**criteria), seen(100, 0, SLOW), current)
    assert (found, figures["p95_ms"]) == (ok, 475.0)
    assert ok or "475 ms" in reason


latencies = st.lists(st.tuples(st.floats(0.001, 10), st.integers(0, 50)), min_size=1, max_size=6).map(
    lambda found: tuple(sorted(dict(found).items()))
)


@given(buckets=latencies, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_quantile_lies_in_its_bucket_and_rises_with_its_part(
    buckets: tuple[tuple[float, int], ...], low: float, high: float
) -> None:
    """None without any request; a version that is slower everywhere is slower at each quantile, too."""
    low, high = sorted((low, high))
    first, second = quantile(buckets, low), quantile(buckets, high)
    if not any(count for _, count in buckets):
        assert first is second is None
        return
    assert first is not None
    assert second is not None
    slowest = max(limit for limit, count in buckets if count)
    assert 0 <= first <= second * (1 + 1e-9) <= slowest * (1 + 2e-9)
    assert quantile(tuple((2 * limit, count) for limit, count in buckets), high) == pytest.approx(2 * second)


def test_what_came_before_a_step_does_not_count_and_a_restarted_router_counts_from_its_start() -> None:
    """A version that failed at 10 % is not blamed for it at 50 %."""
    early = Served(revision=1, began=100.0, versions=(seen(50, 40, (0.01, 50)), seen(9, 0, version=1)))
    step = Step(share=50, began_at=MOMENT, base=base_of(early, (2, 1)))
    later = Served(revision=2, began=100.0, versions=(seen(80, 41, (0.01, 75), (0.1, 5)), seen(9, 0, version=1)))
    now = counted(step, later, 2)
    assert (now.requests, now.errors, now.buckets) == (30, 1, ((0.01, 25), (0.1, 5)))
    assert counted(step, later, 1).requests == 0
    again = later.revised(began=200.0)
    assert counted(step, again, 2) == later.version(2)
    assert counted(step, again, 7).requests == 0


scalars = st.one_of(st.integers(-5, 5), st.floats(allow_nan=False), st.text(max_size=2), st.booleans(), st.none())
answers = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=8)


@given(one=answers, other=answers, tolerance=st.floats(0, 10))
def test_agreeing_is_mutual_and_everything_agrees_with_itself(one: Any, other: Any, tolerance: float) -> None:
    """Which of the two is the candidate makes no difference."""
    assert agrees(one, one, tolerance)
    assert agrees(one, other, tolerance) == agrees(other, one, tolerance)


@pytest.mark.parametrize(
    ("one", "other", "tolerance", "same"),
    [
        (1.0, 1.01, 0.01001, True),
        (1.0, 1.02, 0.01, False),
        ([1, [2.0, "a"]], [1.0, [2, "a"]], 0.0, True),
        ([1, 2], [1, 2, 3], 9.0, False),
        (float("nan"), float("nan"), 1.0, False),
        (float("inf"), float("inf"), 0.0, True),
        (True, 1, 0.0, True),
        (True, 1.2, 0.5, False),
        ("1", 1, 9.0, False),
        ([], None, 9.0, False),
    ],
)
def test_numbers_agree_up_to_the_tolerance_and_nothing_else_does(
    one: Any, other: Any, tolerance: float, same: bool
) -> None:
    """Lists item by item; NaN agrees with nothing, also not with itself; a truth value is not a number."""
    assert agrees(one, other, tolerance) is same
    assert agrees(other, one, tolerance) is same


CANDIDATE, CURRENT = sample_rollout(version=2), sample_rollout(version=1)


def asked(**answers: Any) -> Any:
    """A context whose servers answer as told: a function of the row, or an error that they raise."""

    def ask(rollout: Any, row: Any) -> Any:
        answer = answers["candidate" if rollout is CANDIDATE else "current"]
        if isinstance(answer, Exception):
            raise answer
        return answer(row)

    return SimpleNamespace(platform=lambda _: SimpleNamespace(ask=ask))


@pytest.mark.parametrize(("least", "ok"), [(None, True), (0.75, True), (0.76, False)])
def test_samples_are_asked_of_both_and_the_agreement_is_told(least: float | None, ok: bool) -> None:
    """The share of the samples to which both say the same."""
    probe = ProbeRequest(samples=[[0], [1], [2], [3]], min_agreement=least)
    context = asked(candidate=lambda row: [row[0] == 3], current=lambda _: [False])
    found, reason, figures = judge_samples(context, probe, CANDIDATE, CURRENT)
    assert (found, figures) == (ok, {"agreement": 0.75})
    assert "3 of 4 samples" in reason
    assert ok or "75.0% is below 76.0%" in reason


@pytest.mark.parametrize("who", ["candidate", "current"])
def test_an_answer_that_does_not_come_is_against_the_candidate(who: str) -> None:
    """Nobody knows then what it would do; the sentence names the sample and who was silent."""
    answers: dict[str, Any] = {
        "candidate": lambda _: [1],
        "current": lambda _: [1],
        who: EndpointNotReady("No answer."),
    }
    found, reason, _ = judge_samples(asked(**answers), ProbeRequest(samples=[[0]]), CANDIDATE, CURRENT)
    assert found is False
    assert reason.startswith("sample 0: the ")
    assert who in reason
    assert "No answer." in reason


def test_a_first_version_has_to_answer_and_has_nobody_to_agree_with() -> None:
    """Its samples are asked all the same."""
    probe = ProbeRequest(samples=[[0], [1]], min_agreement=1.0)
    found, reason, figures = judge_samples(asked(candidate=lambda _: [1]), probe, CANDIDATE, None)
    assert (found, figures) == (True, {})
    assert "no current version" in reason
    assert judge_samples(asked(candidate=EndpointNotReady("No.")), probe, CANDIDATE, None)[0] is False
