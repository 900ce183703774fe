"""``chaos``: the fault matrix, for everybody who wants to see the leak rate for themselves."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from pathlib import Path

from mlinfra_prefect import killpoints
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.chaos import campaign as running, matrix
from mlinfra_prefect.chaos.models import models_in
from mlinfra_prefect.chaos.place import Setting
from mlinfra_prefect.chaos.plan import Row
from mlinfra_prefect.chaos.report import closing_line, page, summary
from mlinfra_prefect.chaos.running import Result
from mlinfra_prefect.cli.outcome import DONE, FAILED
from mlinfra_prefect.errors import InvalidInput, UnsupportedHere
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.terraform import find_engine


def chaos(
    *,
    list_rows: bool,
    runs: int,
    seed: int,
    rows: str,
    jobs: int,
    json_file: str | None,
    report: str | None,
    go_on: bool,
) -> int:
    """Run a campaign, or say what there is to run. The exit code is 1 when anything leaked."""
    chosen = _chosen(rows)
    if list_rows:
        _list(chosen)
        return DONE
    if runs < 1 or jobs < 1:
        raise InvalidInput("runs" if runs < 1 else "jobs", "is less than 1", "Give a number from 1.")
    if go_on and json_file is None:
        raise InvalidInput("go-on", "names no campaign", "Add --json FILE: the file that its first part wrote.")
    before = running.earlier(Path(json_file), chosen, seed) if go_on and json_file is not None else running.Earlier()
    skipped = _skipped(chosen)
    can = [row for row in chosen if row.name not in skipped]
    setting = _setting(can)
    began = time.monotonic()
    told: list[Result] = list(before.results)

    def on_result(result: Result) -> None:
        told.append(result)
        running.note(result)
        if json_file is not None and len(told) % SAVE_EVERY == 0:  # what a long campaign found so far is not lost
            save(told)

    def save(found: list[Result]) -> dict[str, object]:
        seconds = time.monotonic() - began
        document = running.as_json(chosen, found, seed=seed, jobs=jobs, skipped=skipped, seconds=seconds, before=before)
        if json_file is not None:
            running.write(Path(json_file), document)
        return document

    results = running.campaign(
        setting, can, runs=runs, seed=seed, jobs=jobs, before=before.results, on_result=on_result
    )
    document = save(results)
    if report is not None:
        words = ["make", "chaos", f"RUNS={runs}", f"SEED={seed}", *([f"ROWS={rows}"] if rows else [])]
        text = page(document, total=summary(results), command=shlex.join(words))
        Path(report).write_text(text, encoding="utf-8")
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")
    print(closing_line(results))
    return FAILED if any(result.leaks for result in results) else DONE


SAVE_EVERY = 10
"""Runs after which the file of a campaign that goes on is written."""


def _skipped(chosen: list[Row]) -> dict[str, str]:
    if not Path("/proc/self/environ").exists():
        raise UnsupportedHere("The judge believes /proc, so `chaos` runs on Linux only.")
    why_not = {row.name: row.needs() for row in chosen}
    skipped = {name: why for name, why in why_not.items() if why}
    if len(skipped) == len(chosen):
        raise UnsupportedHere("; ".join(f"{name}: {why}" for name, why in skipped.items()))
    return skipped


def _setting(can: list[Row]) -> Setting:
    cache = Home.from_environment().cache
    private_folder(cache)
    engine = str(find_engine(_configured(), cache_dir=cache).path)
    return Setting(cache, engine, Path(tempfile.gettempdir()), models_in(cache) if any(r.serves for r in can) else ())


def _configured() -> Path | None:
    named = os.environ.get("MLINFRA_TERRAFORM")
    return Path(named) if named else None


def _chosen(names: str) -> list[Row]:
    by_name = {row.name: row for row in matrix.ROWS}
    if not names:
        return list(matrix.ROWS)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in by_name:
            raise InvalidInput("rows", f"there is no row {name!r}", "See: mlinfra-prefect chaos --list")
    return [by_name[name] for name in wanted]


def _list(rows: list[Row]) -> None:
    print("Rows:")
    for row in rows:
        print(f"  {row.name:26} {row.about}")
    print(f"Kill points ({killpoints.VARIABLE}=POINT[:n], in the home of a fault test only):")
    for point, about in killpoints.POINTS.items():
        print(f"  {point:26} {about}")
