"""`gate`: the decision between training and serving, as a node of the run's graph.

A refused model is not an error of the run: the task is Completed, and so is a flow that returns `gate_refused`. What is
an error is a gate that could not decide (a metric that is NaN, a criterion for a metric that nobody measured).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration import runs, telling
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.lifecycle.gating import Judge, Metrics, judge
from mlinfra_prefect.model.verdict import Verdict

REFUSED = "GateRefused"
"""The name of the state of a run whose model was refused."""


@task(name="gate", cache_policy=NO_CACHE, persist_result=False, retries=0)
def _gate(scores: Mapping[str, Any], **criteria: Any) -> Verdict:
    verdict = judge(scores, **criteria)
    say(str(verdict), level=logging.INFO if verdict else logging.WARNING)
    telling.judged(verdict, runs.owner().flow or "gate")
    return verdict


def gate(
    scores: Mapping[str, Any],
    *,
    current: Metrics | None = None,
    by: float | Mapping[str, float] | None = None,
    floors: Metrics | None = None,
    ceilings: Metrics | None = None,
    lower_is_better: Collection[str] = (),
    check: Judge | None = None,
) -> Verdict:
    """Decide whether a candidate may be served. The verdict is true when it may, and says why.

    A task of the run; outside of a run, a plain function.

    Args:
        scores: what a scoring function returned: metrics of the candidate, or of both versions on the same data, as
            ``{"candidate": {...}, "current": {...} or None}`` or flat, as ``{"candidate.auc": …, "current.auc": …}``.
        current: the current version's metrics, where `scores` has only the candidate's.
        by: how much better the candidate must be than the current version: a number for all metrics that both have, or
            one for each metric. Negative: how much worse it may be. Not asked where no version is served yet.
        floors: the least that each metric may be.
        ceilings: the most that each metric may be.
        lower_is_better: metrics such as a loss, whose margin counts downwards.
        check: your own function of ``(candidate, current)``: True or None passes; False, a sentence or an exception
            refuses.

    Raises:
        BadMetrics: a metric is NaN, infinite or no number.
        InvalidInput: no criteria, or one for a metric that was not measured; the field is named.
    """
    call = _gate if runs.in_run() else _gate.fn
    return call(
        scores, current=current, by=by, floors=floors, ceilings=ceilings, lower_is_better=lower_is_better, check=check
    )


def gate_refused(verdict: Verdict) -> State[Verdict]:
    """Return the state with which a flow ends where the gate refused: Completed, ``GateRefused``, with the reason.

    Its result is the verdict: a flow that is called as a function returns it.

    Raises:
        InvalidInput: the verdict passed.
    """
    if verdict:
        raise InvalidInput("verdict", "passed, so nothing was refused", "Write `if not verdict:` before it.")
    return Completed(name=REFUSED, message=verdict.reason, data=verdict)
