"""A campaign: many runs, several at a time, for hours. One run that goes wrong never stops it.

The same seed chooses the same rows, moments and victims in the same order, whatever the number of jobs.
"""

from __future__ import annotations

import json
import platform as host
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

from mlinfra_prefect.chaos.place import Setting
from mlinfra_prefect.chaos.plan import Plan, Row
from mlinfra_prefect.chaos.report import SCHEMA, summary
from mlinfra_prefect.chaos.running import BEYOND_SECONDS, Result, run
from mlinfra_prefect.errors import InvalidInput

MOST_MISSES = 4
"""Runs that may be started for each one that is wanted: some strikes find no victim any more, and are not counted."""


def plans(rows: Sequence[Row], seed: int) -> Iterator[tuple[Row, Plan]]:
    """Yield runs for ever, as the seed decides: rows by their weight. Rows of weight 0 only run when named alone.

    Pure: the n-th run of a seed over the same rows is always the same.
    """
    weights = [row.weight for row in rows]
    if not any(weights):
        weights = [1] * len(rows)
    number = 0
    while True:
        row = Random(f"{seed}:{number}").choices(rows, weights)[0]  # noqa: S311 (it must be repeatable)
        yield row, row.plan(seed, number)
        number += 1


def campaign(
    setting: Setting,
    rows: Sequence[Row],
    *,
    runs: int,
    seed: int,
    jobs: int = 1,
    beyond: float = BEYOND_SECONDS,
    before: Sequence[Result] = (),
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Do runs until `runs` faults reached their victims, `jobs` at a time; returns every result, in order of number.

    What a campaign of this seed and these rows has done `before` counts, and is not done again. Interrupted
    (``KeyboardInterrupt``), it waits for the runs that are going and returns what there is.
    """
    known = {result.plan.number for result in before}
    wanted = ((row, plan) for row, plan in plans(rows, seed) if plan.number not in known)
    done: list[Result] = list(before)
    going: set[Future[Result]] = set()
    started, injected = len(done), sum(each.counted for each in done)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            while injected < runs and started < MOST_MISSES * runs:
                while len(going) < jobs and injected + len(going) < runs and started < MOST_MISSES * runs:
                    row, plan = next(wanted)
                    going.add(pool.submit(run, setting, row, plan, beyond=beyond))
                    started += 1
                ended, going = wait(going, return_when=FIRST_COMPLETED)
                for each in ended:
                    result = each.result()
                    done.append(result)
                    injected += result.counted
                    on_result(result)
            for each in going:
                done.append(each.result())
                on_result(done[-1])
        except KeyboardInterrupt:
            done += [each.result() for each in wait(going).done]
    return sorted(done, key=lambda result: result.plan.number)


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a campaign that is gone on with has done."""

    results: tuple[Result, ...] = ()
    seconds: float = 0.0
    commits: tuple[str, ...] = ()


def earlier(path: Path, rows: Sequence[Row], seed: int) -> Earlier:
    """Return what the campaign in a file has done; nothing, when there is no such file.

    Raises:
        InvalidInput: it is no campaign, or one of another seed or of other rows.
    """
    if not path.exists():
        return Earlier()
    try:
        document = json.loads(path.read_bytes())
        told = (document["schema"], document["seed"], tuple(row["row"] for row in document["rows"]))
        results = tuple(map(Result.read, document["runs"]))
        found = Earlier(results, float(document["seconds"]), tuple(document["commit"].split(", ")))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput("json", f"{path} holds no campaign: {type(error).__name__}: {error}") from error
    for name, is_there, wanted in zip(
        ("json", "seed", "rows"), told, (SCHEMA, seed, tuple(row.name for row in rows)), strict=True
    ):
        if is_there != wanted:
            raise InvalidInput(name, f"the campaign in {path} has another one", "Name another file, or the same words.")
    return found


def as_json(
    rows: Iterable[Row],
    results: Sequence[Result],
    *,
    seed: int,
    jobs: int,
    skipped: dict[str, str],
    seconds: float,
    before: Earlier | None = None,
    platform: str = "local",
    calls: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The whole campaign as one JSON document; its format is described in ``docs/chaos.md``."""
    before = before or Earlier()
    return {
        "schema": SCHEMA,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform,
        "seed": seed,
        "jobs": jobs,
        "seconds": round(before.seconds + seconds, 1),
        "commit": ", ".join(dict.fromkeys((*before.commits, _commit()))),
        "machine": machine(),
        "skipped": skipped,
        **({"calls": dict(calls)} if calls else {}),
        "rows": [
            {"row": row.name, "about": row.about, "on": row.on, "promise_seconds": row.promise,
             **summary([each for each in results if each.plan.row == row.name])}
            for row in rows
        ],
        "runs": [result.told() for result in results],
    }  # fmt: skip


def write(path: Path, document: dict[str, Any]) -> None:
    """Write a document so that an interruption leaves the old one or the new one."""
    scratch = path.with_name(f".{path.name}.{time.time_ns()}")
    scratch.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    scratch.replace(path)


def machine() -> str:
    """This machine in a line: what decides how fast it is."""
    from os import cpu_count

    memory = ""
    try:
        total = int(Path("/proc/meminfo").read_text(encoding="ascii").split()[1])
        memory = f", {total / 1024 / 1024:.0f} GiB"
    except (OSError, ValueError, IndexError):
        pass
    return f"{host.system()} {host.release()}, {cpu_count()} cores{memory}, Python {host.python_version()}"


def _commit() -> str:
    here = Path(__file__).resolve().parent
    argv = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        told = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return told.stdout.strip() or "unknown"


def note(result: Result) -> None:
    """Say at once, on standard error, what must be looked at."""
    if result.leaks or result.error:
        what = "LEAK" if result.leaks else "went wrong"
        told = "; ".join(result.leaks) or result.error.strip().splitlines()[-1]
        sys.stderr.write(f"{what}: run {result.plan.number} ({result.plan.row}): {told}\n  kept in {result.kept}\n")
