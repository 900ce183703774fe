"""``chaos``: the fault matrix, for everybody who wants to see the leak rate for themselves."""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mlinfra_prefect import killpoints
from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.chaos import campaign as running, matrix, matrix_aws
from mlinfra_prefect.chaos.calls import calls_of_a_lease
from mlinfra_prefect.chaos.cloud import REGIONS, Cloud, Clouds
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
    platform: Literal["local", "aws"],
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
    chosen = _chosen(rows, platform)
    if list_rows:
        _list(chosen)
        return DONE
    _refuse(runs=runs, jobs=jobs, go_on=go_on, named=json_file is not None)
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

    def save(found: list[Result]) -> dict[str, Any]:
        seconds = time.monotonic() - began
        document = running.as_json(
            chosen, found, seed=seed, jobs=jobs, skipped=skipped, seconds=seconds, before=before, platform=platform,
            calls=calls,
        )  # fmt: skip
        if json_file is not None:
            running.write(Path(json_file), document)
        return document

    calls: dict[str, int] = {}
    try:
        results = running.campaign(
            setting, can, runs=runs, seed=seed, jobs=jobs, before=before.results, on_result=on_result
        )
        if report is not None or json_file is not None:
            calls |= calls_of_a_lease(setting)
    finally:
        if setting.clouds is not None:
            setting.clouds.close()
    document = save(results)
    if report is not None:
        on = [f"PLATFORM={platform}"] if platform != "local" else []
        words = ["make", "chaos", *on, f"RUNS={runs}", f"SEED={seed}", *([f"ROWS={rows}"] if rows else [])]
        _report(Path(report), document, results, shlex.join(words))
    for name, why in skipped.items():
        print(f"skipped: {name}: {why}")
    print(closing_line(results))
    return FAILED if any(result.leaks for result in results) else DONE


def _refuse(*, runs: int, jobs: int, go_on: bool, named: bool) -> None:
    if runs < 1 or jobs < 1:
        raise InvalidInput("runs" if runs < 1 else "jobs", "is less than 1", "Give a number from 1.")
    if go_on and not named:
        raise InvalidInput("go-on", "names no campaign", "Add --json FILE: the file that its first part wrote.")


def _report(there: Path, document: dict[str, Any], results: Sequence[Result], command: str) -> None:
    before = there.read_text(encoding="utf-8") if there.exists() else ""
    there.write_text(page(document, total=summary(results), command=command, before=before), encoding="utf-8")


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
    scratch, regions = Path(tempfile.gettempdir()), REGIONS[: max((row.regions for row in can), default=1)]
    return Setting(
        cache, engine, scratch, models_in(cache) if any(row.serves for row in can) else (),
        Clouds(partial(Cloud, cache, engine, scratch, regions)) if any(row.platform == "aws" for row in can) else None,
    )  # fmt: skip


def _configured() -> Path | None:
    named = os.environ.get("MLINFRA_TERRAFORM")
    return Path(named) if named else None


def _chosen(names: str, platform: str) -> list[Row]:
    there = matrix_aws.ROWS if platform == "aws" else matrix.ROWS
    by_name = {row.name: row for row in there}
    if not names:
        return list(there)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in by_name:
            listing = "mlinfra-prefect chaos --list" + (f" --platform {platform}" if platform != "local" else "")
            raise InvalidInput("rows", f"there is no row {name!r}", f"See: {listing}")
    return [by_name[name] for name in wanted]


def _list(rows: list[Row]) -> None:
    print("Rows:")
    for row in rows:
        print(f"  {row.name:26} {row.about}")
    print(f"Kill points ({killpoints.VARIABLE}=POINT[:n], in the home of a fault test only):")
    for point, about in killpoints.POINTS.items():
        print(f"  {point:26} {about}")
