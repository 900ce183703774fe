"""One run from its plan to its result: play, wait for the promised time, have it judged, end everything."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.cloud import Cloud
from mlinfra_prefect.chaos.place import Place, Setting
from mlinfra_prefect.chaos.plan import Plan, Row

BEYOND_SECONDS = 120.0
"""How long a leak is watched past its promised time, to see how long it lives."""
IDLE_SECONDS = 15.0
"""Within which a watcher with nothing to watch must have gone."""
IDLE_EVERY = 5
"""Every fifth run waits for that, too."""


@dataclass(slots=True)
class Result:
    """What became of one run.

    Args:
        plan: as it was decided.
        injected: whether a fault reached a victim; a run without one proves nothing and is not counted.
        leaks: what was left at the promised time, in words; empty: nothing.
        seconds: from the last fault, or from when nobody wanted it any more, until all was gone; None: it never was.
        beyond: seconds alive past the promised time.
        struck: who was hit, how and when.
        wall: seconds that the run took.
        error: what went wrong in the program itself; such a run is not counted.
        kept: where the place of a run that leaked, or went wrong, was kept for a look.
    """

    plan: Plan
    injected: bool = False
    leaks: list[str] = field(default_factory=list)
    seconds: float | None = None
    beyond: float = 0.0
    struck: list[dict[str, Any]] = field(default_factory=list)
    wall: float = 0.0
    error: str = ""
    kept: str = ""

    @property
    def counted(self) -> bool:
        """Whether it is one of the published ones: a fault reached its victim, or something leaked anyway."""
        return bool(self.leaks) or (self.injected and not self.error)

    def told(self) -> dict[str, Any]:
        """As plain JSON."""
        return asdict(self)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Result:
        """Return a result from its plain JSON.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        return cls(**{**told, "plan": Plan.read(told["plan"])})


def run(setting: Setting, row: Row, plan: Plan, *, beyond: float = BEYOND_SECONDS) -> Result:
    """Do one run. Raises nothing but what ends the program: what goes wrong is in the result."""
    result = Result(plan)
    if row.platform == "local" or setting.clouds is None:
        _run(setting, row, result, beyond=beyond)
        return result
    try:
        with setting.clouds.lent() as lent:
            _run(setting, row, result, beyond=beyond, cloud=lent.cloud)
            lent.spoilt = bool(result.leaks or result.error)
    except Exception:  # noqa: BLE001 (an account that cannot be made, or does not answer)
        result.error = result.error or traceback.format_exc()
    return result


def _run(setting: Setting, row: Row, result: Result, *, beyond: float, cloud: Cloud | None = None) -> None:
    plan, began = result.plan, time.monotonic()
    try:
        place = Place(setting, plan, cloud)
    except OSError as error:
        result.error = f"no place for a run: {error}"
        return
    try:
        row.play(place, plan)
        _judge(place, row, plan, result, beyond)
    except Exception:  # noqa: BLE001 (one run that goes wrong never stops a campaign)
        result.error = traceback.format_exc()
    finally:
        result.wall = round(time.monotonic() - began, 3)
        keep = bool(result.leaks or result.error)
        result.kept = str(place.root) if keep else ""
        place.close(keep=keep)


def _judge(place: Place, row: Row, plan: Plan, result: Result, beyond: float) -> None:
    # Clients that live go on for as long as they want; what counts begins when nobody wants anything any more.
    until = time.monotonic() + row.promise
    while any(each.poll() is None for each in place.clients) and not place.said("over") and time.monotonic() < until:
        if place.is_gone():
            break
        time.sleep(0.05)
    promised = place.over_since() + row.promise
    gone = place.wait_gone(promised, reaper=row.reaper)
    result.struck = place.struck + [
        {"role": "point", "how": point, "at": moment} for point, moment in place.kills_at_points()
    ]
    # A plan with a point is one fault with it: where nobody came by, it was not done.
    reached = bool(place.kills_at_points()) if plan.points else bool(result.struck)
    result.injected = reached and place.at_stake()
    if gone is None:
        result.leaks = [f"a client still waits: {each.args!r}" for each in place.clients if each.poll() is None]
        result.leaks += place.findings()
        gone = place.wait_gone(promised + beyond, reaper=row.reaper)
        result.beyond = round(max(0.0, (gone or time.time()) - promised), 3)
        if not result.leaks:
            result.leaks = ["it was gone later than promised"]
    else:
        result.leaks = place.findings()
    if place.settled_after is not None:
        result.seconds = place.settled_after
    elif gone is not None:
        result.seconds = round(max(0.0, gone - place.over_since()), 3)
    result.leaks += place.decoys_touched() + place.problems
    if plan.number % IDLE_EVERY == 0 and gone is not None and not place.others:
        result.leaks += _still_idle(place)
        # What comes back after it was gone is a leak, too.
        result.leaks += place.findings()


def _still_idle(place: Place) -> list[str]:
    until = time.monotonic() + IDLE_SECONDS
    while (found := judge.carriers(place.seen_mark())) and time.monotonic() < until:
        time.sleep(0.1)
    return [f"a watcher with nothing to watch stays: {seen}" for seen in found]
