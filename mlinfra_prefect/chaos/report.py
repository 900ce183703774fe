"""What was measured, as figures and as the published page. Pure: documents in, text out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mlinfra_prefect.chaos.running import Result

SCHEMA: Final = "mlinfra-prefect/chaos/1"
CONFIDENCE = 0.95
HEAD = """# Leak rate

Written by `mlinfra-prefect chaos --report`; [chaos.md](chaos.md) says how to run it, how to read it and what
a leak is. What was measured on Terraform's built-in provider, on a real provider with an emulated cloud, and on a
cloud itself is told apart.
"""
TITLES = {"local": "On this machine", "aws": "On AWS, emulated", "cloud": "On AWS itself"}
"""The campaigns of the page, in its order; each is written by itself and leaves the others as they are."""
UNMEASURED = {"local": "Run it: `make chaos RUNS=1000 SEED=1`.", "aws": "Run it: `make chaos PLATFORM=aws RUNS=100`.",
              "cloud": "Needs an account, and somebody who pays for it."}  # fmt: skip
_PART = "<!-- campaign: {name} -->"
_END = "<!-- end of campaign: {name} -->"


def upper_bound(leaks: int, runs: int, confidence: float = CONFIDENCE) -> float:
    """The exact (Clopper-Pearson) one-sided upper bound of a leak rate; 1.0 without a run.

    The rate at which `leaks` or fewer of `runs` would be seen with probability ``1 - confidence``. For none it is
    ``1 - (1 - confidence) ** (1 / runs)``, about 3 / runs.
    """
    if runs == 0 or leaks >= runs:
        return 1.0
    if leaks == 0:
        return 1.0 - float((1.0 - confidence) ** (1.0 / runs))
    low, high = leaks / runs, 1.0
    for _ in range(60):  # halved sixty times: exact to the last digit of a float
        middle = (low + high) / 2
        if _at_most(leaks, runs, middle) > 1.0 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(most: int, runs: int, rate: float) -> float:
    """The probability of at most so many of so many at a rate between 0 and 1."""
    if rate >= 1.0:
        return 0.0
    return sum(
        math.exp(
            math.lgamma(runs + 1) - math.lgamma(k + 1) - math.lgamma(runs - k + 1)
            + k * math.log(rate) + (runs - k) * math.log1p(-rate)
        )
        for k in range(most + 1)
    )  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share of the values does not exceed; None of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def summary(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of some runs. A run without a fault, or in which the program itself failed, is only counted apart."""
    counted = [each for each in results if each.counted]
    leaked = [each for each in counted if each.leaks]
    seconds = [each.seconds for each in counted if each.seconds is not None]
    return {
        "runs": len(counted),
        "leaks": len(leaked),
        "upper_bound": upper_bound(len(leaked), len(counted)),
        "p50_seconds": quantile(seconds, 0.50),
        "p95_seconds": quantile(seconds, 0.95),
        "max_seconds": max(seconds, default=None),
        "mean_seconds_beyond": sum(each.beyond for each in counted) / len(counted) if counted else 0.0,
        "at_random": sum(each.plan.random for each in counted),
        "missed": len([each for each in results if not each.error and not each.injected and not each.leaks]),
        "went_wrong": len([each for each in results if each.error and not each.leaks]),
    }


def closing_line(results: Sequence[Result]) -> str:
    """The last line that ``make chaos`` prints."""
    all_of_them = summary(results)
    p95 = all_of_them["p95_seconds"]
    told = "-" if p95 is None else f"{p95:.1f}"
    return f"{all_of_them['runs']} runs, {all_of_them['leaks']} leaks, p95 {told} s"


def page(document: dict[str, Any], *, total: dict[str, Any], command: str, before: str = "") -> str:
    """The published page, with this campaign in its place; the others stay as the page `before` has them."""
    parts = {name: _part(before, name) or f"Not measured yet. {UNMEASURED[name]}" for name in TITLES}
    parts[document.get("platform", "local")] = _campaign(document, total, command).strip()
    told = [
        f"## {TITLES[name]}\n\n{_PART.format(name=name)}\n\n{text}\n\n{_END.format(name=name)}\n"
        for name, text in parts.items()
    ]
    return "\n".join([HEAD, *told])


def _part(page: str, name: str) -> str:
    """What a page says of a campaign; empty: nothing yet."""
    _, _, rest = page.partition(_PART.format(name=name))
    text, end, _ = rest.partition(_END.format(name=name))
    return text.strip() if end else ""


def _campaign(document: dict[str, Any], total: dict[str, Any], command: str) -> str:
    p50, p95, most = (_seconds(total[name]) for name in ("p50_seconds", "p95_seconds", "max_seconds"))
    lines = [
        f"**{total['runs']} runs with a fault in each, {total['leaks']} leaks at the promised time.** With 95 %",
        f"confidence fewer than {_percent(total['upper_bound'])} of such runs leak. From the last fault, or from when",
        f"nobody wanted it any more, until all was gone: p50 {p50} s, p95 {p95} s, at most {most} s.",
        f"{total['at_random']} of the {total['runs']} runs were struck at random moments, the others at named points.",
        "",
        "| | |",
        "|---|---|",
        f"| date | {document['at']} |",
        f"| commit | {document['commit']} |",
        f"| machine | {document['machine']} |",
        f"| command | `{command}` |",
        f"| took | {document['seconds'] / 60:.0f} minutes, {document['jobs']} runs at a time |",
        f"| no victim any more, no kill point, or nothing to leak yet: not counted | {total['missed']} |",
        f"| the program itself failed, so the run is not counted | {total['went_wrong']} |",
    ]
    places = dict.fromkeys(row["on"] for row in document["rows"])
    for place in places:
        lines += ["", f"### Measured on `{place}`", "", *_table(document, place)]
    if document.get("calls"):
        lines += ["", "### Calls of one lease", "", *_calls(document["calls"])]
    lines += ["", "### What the rows do", "", "| row | what is done, and what must hold |", "|---|---|"]
    lines += [f"| {row['row']} | {row['about']} |" for row in document["rows"]]
    if document["skipped"]:
        lines += [
            "",
            "Skipped on this machine: " + "; ".join(f"{k} ({v})" for k, v in document["skipped"].items()) + ".",
        ]
    return "\n".join(lines) + "\n"


def _calls(calls: dict[str, int]) -> list[str]:
    """What one lease without a fault asks of the cloud, its node's and its client's polling of the bucket apart."""
    polled = {name: count for name, count in calls.items() if "Object" in name}
    asked = {name: count for name, count in calls.items() if name not in polled}
    listed = ", ".join(f"{name} {count}" for name, count in sorted(asked.items(), key=lambda each: (-each[1], each[0])))
    return [
        f"A lease without a fault, from asking to its receipt, made {sum(asked.values())} calls: {listed}.",
        f"Beside that {sum(polled.values())} requests to the bucket, which grow with the time that it trains.",
    ]


def _table(document: dict[str, Any], place: str) -> list[str]:
    lines = [
        "| row | runs | leaks | 95 % bound | p50 s | p95 s | max s | promised s | mean s beyond | again |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    on = "" if document.get("platform", "local") == "local" else f"PLATFORM={document['platform']} "
    for row in document["rows"]:
        if row["on"] != place:
            continue
        again = f"`make chaos {on}RUNS={max(1, row['runs'])} SEED={document['seed']} ROWS={row['row']}`"
        if row["runs"] == 0:
            why = document["skipped"].get(row["row"], "not reached by this seed")
            lines.append(f"| {row['row']} | 0 | | | | | | {row['promise_seconds']:.0f} | | {why} |")
            continue
        lines.append(
            f"| {row['row']} | {row['runs']} | {row['leaks']} | {_percent(row['upper_bound'])} | "
            f"{_seconds(row['p50_seconds'])} | {_seconds(row['p95_seconds'])} | {_seconds(row['max_seconds'])} | "
            f"{row['promise_seconds']:.0f} | {row['mean_seconds_beyond']:.1f} | {again} |"
        )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
