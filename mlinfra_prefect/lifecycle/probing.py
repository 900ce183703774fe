"""The probe: does what a live canary did since its step began allow it more requests?

It judges what the router counted (errors, latency), what both versions answer to the same samples, and what a function
of the client says. Whatever goes wrong while judging is a reason against the candidate: the current version is known
to work.
"""

from __future__ import annotations

import math
from typing import Any

from mlinfra_prefect.errors import MlinfraError
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.versions import rollout_of
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.probe import ProbeRequest, Step
from mlinfra_prefect.model.served import Served, ServedVersion, quantile, since


def base_of(served: Served, numbers: tuple[int, ...]) -> dict[str, Any]:
    """Return the counters to take off later, as a step keeps them."""
    return {
        "began": served.began,
        "versions": {str(number): served.version(number).model_dump(mode="json") for number in numbers},
    }


def counted(step: Step, served: Served, number: int) -> ServedVersion:
    """Return what one version has done since a step began; a router that was started again counts from its start."""
    base = step.base.get("versions", {}).get(str(number)) if step.base.get("began") == served.began else None
    return since(served.version(number), None if base is None else ServedVersion.model_validate(base))


def judge_traffic(
    probe: ProbeRequest, canary: ServedVersion, current: ServedVersion | None
) -> tuple[bool, str, dict[str, Any]]:
    """Judge what was counted. Returns whether it passes, why, and the figures for the step. Pure."""
    p95 = quantile(canary.buckets, 0.95)
    figures = {
        "requests": max(0, canary.tried),
        "errors": max(0, canary.failed),
        "p95_ms": None if p95 is None else round(1000 * p95, 3),
    }
    rate = canary.error_rate
    if rate is None:
        return True, "no request came", figures
    told = f"{canary.tried} requests, {canary.failed} failed"
    if rate > probe.max_error_rate:
        return False, f"{told}: an error rate of {rate:.1%} is above {probe.max_error_rate:.1%}", figures
    if p95 is None:
        return True, told, figures
    told += f", 95th percentile {1000 * p95:.0f} ms"
    if probe.max_p95_ms is not None and 1000 * p95 > probe.max_p95_ms:
        return False, f"{told} is above {probe.max_p95_ms:.0f} ms", figures
    before = None if current is None else quantile(current.buckets, 0.95)
    if probe.max_p95_ratio is not None and before and p95 > probe.max_p95_ratio * before:
        return False, f"{told} is more than {probe.max_p95_ratio:g} times the current {1000 * before:.0f} ms", figures
    return True, told, figures


def judge_samples(
    context: Context, probe: ProbeRequest, candidate: RolloutRecord, current: RolloutRecord | None
) -> tuple[bool, str, dict[str, Any]]:
    """Ask both versions the same samples, past the router. Blocking. Returns pass, why, and the figures."""
    platform = context.platform(candidate.platform)
    same = 0
    for number, row in enumerate(probe.samples):
        try:
            answer = platform.ask(candidate, row)
        except MlinfraError as error:
            return False, f"sample {number}: the candidate gave no answer: {error.message}", {}
        if current is None:
            continue
        try:
            known = platform.ask(current, row)
        except MlinfraError as error:
            return False, f"sample {number}: the current version gave no answer to compare with: {error.message}", {}
        same += agrees(answer, known, probe.tolerance)
    if current is None:
        return True, f"answered {len(probe.samples)} samples; there is no current version to agree with", {}
    part = same / len(probe.samples)
    told = f"agrees with the current version on {same} of {len(probe.samples)} samples"
    if probe.min_agreement is not None and part < probe.min_agreement:
        return False, f"{told}: {part:.1%} is below {probe.min_agreement:.1%}", {"agreement": part}
    return True, told, {"agreement": part}


def agrees(one: Any, other: Any, tolerance: float) -> bool:
    """Whether two answers are the same: numbers up to a tolerance (NaN never), lists item by item. Pure."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(agrees(a, b, tolerance) for a, b in zip(one, other, strict=True))
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (one, other))
    return math.isclose(one, other, rel_tol=0.0, abs_tol=tolerance) if numbers else bool(one == other)


def current_rollout(context: Context, endpoint: EndpointRecord) -> RolloutRecord | None:
    """Return the rollout that holds the servers of the current version; None: nothing serves yet."""
    return None if endpoint.current is None else rollout_of(context, endpoint.current)
