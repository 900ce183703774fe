"""The gate: whether a candidate is good enough to be served, from metrics of it and of the current version.

Pure, and strict where it matters: a number that is not one never passes, a margin or a limit for a metric that nobody
measured is a mistake and not a pass, and no criteria at all is a mistake too. That both sets of metrics come from the
same data is the caller's part: score both versions in one function on the node.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

from mlinfra_prefect.errors import BadMetrics, InvalidInput
from mlinfra_prefect.model.names import as_line
from mlinfra_prefect.model.verdict import Check, Verdict

Metrics = Mapping[str, float]
Judge = Callable[[dict[str, float], dict[str, float] | None], bool | str | Verdict | None]
"""A check of the user's own: given the candidate's metrics and the current version's, or None where none is served."""

CANDIDATE, CURRENT = "candidate", "current"


def judge(
    scores: Mapping[str, Any],
    *,
    current: Metrics | None = None,
    by: float | Mapping[str, float] | None = None,
    floors: Metrics | None = None,
    ceilings: Metrics | None = None,
    lower_is_better: Collection[str] = (),
    check: Judge | None = None,
) -> Verdict:
    """Compare a candidate with the current version and with absolute limits.

    Args:
        scores: the candidate's metrics; or those of both, as ``{"candidate": {...}, "current": {...} or None}``, or
            flat, as ``{"candidate.auc": 0.91, "current.auc": 0.9}``.
        current: the current version's metrics on the same data, where `scores` has only the candidate's.
        by: how much better the candidate must be, for each metric named, or for all that both have. A negative margin
            lets it be worse by so much at most (non-inferiority). Not asked where there is no current version.
        floors: the least that each metric may be.
        ceilings: the most that each metric may be.
        lower_is_better: metrics such as a loss, whose margin counts downwards.
        check: your own; it passes with True or None, and refuses with False, with a sentence, or by raising.

    Raises:
        BadMetrics: a metric is NaN, infinite or no number.
        InvalidInput: no criteria; a criterion for a metric that was not measured; a malformed argument.
    """
    candidate, champion = _both(scores, current)
    downwards = {lower_is_better} if isinstance(lower_is_better, str) else set(lower_is_better)
    _known("lower_is_better", downwards, candidate, CANDIDATE)
    least, most = _limits("floors", floors, candidate), _limits("ceilings", ceilings, candidate)
    for name in least.keys() & most.keys():
        if least[name] > most[name]:
            raise InvalidInput(f"floors.{name}", f"{least[name]:.6g} is above the ceiling of {most[name]:.6g}")
    margins = _margins(by, candidate, champion)
    if by is None and not least and not most and check is None:
        raise InvalidInput("gate", "has no criteria, so every model would pass", "Give by, floors, ceilings or check.")
    checks = [_margin(name, margins[name], candidate, champion, name in downwards) for name in margins]
    if by is not None and not margins:
        checks.append(Check(name="margin", ok=True, detail="not asked: there is no current version"))
    checks += [_limit(name, candidate[name], least[name], floor=True) for name in least]
    checks += [_limit(name, candidate[name], most[name], floor=False) for name in most]
    if check is not None:
        checks += _own(check, candidate, champion)
    failed = [each for each in checks if not each.ok]
    return Verdict(
        kind="gate",
        ok=not failed,
        reason=as_line("; ".join(f"{each.name} {each.detail}" for each in failed or checks)),
        checks=tuple(checks),
    )


def _both(scores: Mapping[str, Any], current: Metrics | None) -> tuple[dict[str, float], dict[str, float] | None]:
    """Tell the three forms of scores apart; metrics come back finite."""
    if not isinstance(scores, Mapping):
        raise InvalidInput("scores", f"is a {type(scores).__name__}, not a mapping of metrics")
    first, second, given = scores, current, False
    if isinstance(scores.get(CANDIDATE), Mapping):
        _only(scores, lambda key: key in {CANDIDATE, CURRENT})
        first, second, given = scores[CANDIDATE], scores.get(CURRENT), CURRENT in scores
    elif any(str(key).startswith((f"{CANDIDATE}.", f"{CURRENT}.")) for key in scores):
        _only(scores, lambda key: key.startswith((f"{CANDIDATE}.", f"{CURRENT}.")))
        first, second = (
            {key.removeprefix(f"{side}."): value for key, value in scores.items() if key.startswith(f"{side}.")}
            for side in (CANDIDATE, CURRENT)
        )
        second, given = second or None, bool(second)
    if given and current is not None:
        raise InvalidInput("current", "is given, and scores has the current version's metrics too", "Give one of them.")
    if not first:
        raise InvalidInput("scores", "holds no metric of the candidate")
    second = current if second is None else second
    return _finite(CANDIDATE, first), None if second is None else _finite(CURRENT, second)


def _only(scores: Mapping[str, Any], belongs: Callable[[str], bool]) -> None:
    for key in scores:
        if not belongs(str(key)):
            raise InvalidInput(
                f"scores.{key}",
                "is neither the candidate's nor the current version's",
                "Name every metric 'candidate.NAME' or 'current.NAME', or give {'candidate': {...}, 'current': {...}}.",
            )


def _finite(whose: str, metrics: object) -> dict[str, float]:
    if not isinstance(metrics, Mapping):
        raise InvalidInput(whose, f"is a {type(metrics).__name__}, not a mapping of metrics", "Pass its metrics.")
    return {str(name): _number(f"{whose}.{name}", value, BadMetrics) for name, value in metrics.items()}


def _number(field: str, value: object, error: type[BadMetrics | InvalidInput]) -> float:
    problem = f"is {value!r}, not a finite number"
    # Real: numpy's numbers are, too. A bool is one by accident, and True as a metric is somebody's mistake.
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    if issubclass(error, InvalidInput):
        raise error(field, problem)
    raise BadMetrics(as_line(f"gate: the metric {field} {problem}."), "Nothing passes a gate with such a metric.")


def _known(field: str, names: Collection[str], metrics: Metrics, whose: str) -> None:
    for name in names:
        if name not in metrics:
            raise InvalidInput(
                f"{field}.{name}", f"is not a metric of the {whose}; there is {', '.join(sorted(metrics)) or 'none'}"
            )


def _limits(field: str, given: Metrics | None, candidate: Metrics) -> dict[str, float]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise InvalidInput(field, f"is a {type(given).__name__}, not a mapping of metric to number")
    _known(field, given, candidate, CANDIDATE)
    return {name: _number(f"{field}.{name}", value, InvalidInput) for name, value in given.items()}


def _margins(by: object, candidate: Metrics, champion: Metrics | None) -> dict[str, float]:
    """The margin of each metric that has one; a number counts for all metrics that both have."""
    if by is None:
        return {}
    if isinstance(by, Mapping):
        _known("by", by, candidate, CANDIDATE)
        if champion is not None:
            _known("by", by, champion, "current version")
        return {name: _number(f"by.{name}", margin, InvalidInput) for name, margin in by.items()}
    margin = _number("by", by, InvalidInput)
    shared = [name for name in candidate if champion is not None and name in champion]
    if champion is not None and not shared:
        raise InvalidInput(
            "by",
            f"has nothing to compare: the candidate has {', '.join(candidate)}, "
            f"the current version {', '.join(champion) or 'nothing'}",
        )
    return dict.fromkeys(shared, margin)


def _margin(name: str, margin: float, candidate: Metrics, champion: Metrics | None, downwards: bool) -> Check:
    value = candidate[name]
    if champion is None:
        detail = "margin not asked: there is no current version"
        return Check(name=as_line(name), ok=True, candidate=value, detail=detail)
    threshold = champion[name] - margin if downwards else champion[name] + margin
    checked = _limit(name, value, threshold, floor=not downwards)
    against = f"{champion[name]:.6g} {'-' if downwards == (margin >= 0) else '+'} {abs(margin):.6g}"
    return checked.revised(current=champion[name], detail=f"{checked.detail} (current {against})")


def _limit(name: str, value: float, threshold: float, *, floor: bool) -> Check:
    # 0.9 + 0.005 must be reached by 0.905, whatever the last binary digit says.
    equal = math.isclose(value, threshold, rel_tol=1e-12, abs_tol=1e-15)
    ok = equal or (value > threshold if floor else value < threshold)
    side = ("at least" if floor else "at most") if ok else ("below" if floor else "above")
    detail = f"{_digits(value, threshold)} is {side} {_digits(threshold, value)}"
    return Check(name=as_line(name), ok=ok, candidate=value, threshold=threshold, detail=detail)


def _digits(value: float, other: float) -> str:
    """As few digits as tell the two apart."""
    short = f"{value:.6g}"
    return short if value == other or short != f"{other:.6g}" else f"{value!r}"


def _own(check: Judge, candidate: Metrics, champion: Metrics | None) -> list[Check]:
    name = as_line(f"check {getattr(check, '__name__', type(check).__name__)}")
    if not callable(check):
        raise InvalidInput("check", f"is a {type(check).__name__}, not a function")
    try:
        said: Any = check(dict(candidate), None if champion is None else dict(champion))
    except Exception as error:  # noqa: BLE001 (the user's own code: whatever it raises, the model does not pass)
        return [Check(name=name, ok=False, detail=as_line(f"raised {type(error).__name__}: {error}"))]
    if isinstance(said, Verdict):
        return [*said.checks, Check(name=name, ok=said.ok, detail=said.reason)]
    if isinstance(said, str):
        return [Check(name=name, ok=False, detail=as_line(said.strip() or "said no"))]
    if (
        said is None or isinstance(said, bool) or type(said).__name__ in {"bool_", "bool"}
    ):  # numpy has a bool of its own
        ok = said is None or bool(said)
        return [Check(name=name, ok=ok, detail="passed" if ok else "said no")]
    raise InvalidInput(
        "check", f"returned a {type(said).__name__}", "Return True or None to pass; False or a sentence to refuse."
    )
