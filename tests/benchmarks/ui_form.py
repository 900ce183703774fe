"""The form in Prefect's UI: how long after *Submit* a run starts, beside an empty flow that is started the same way.

A real server, a real worker and a real browser; what is clicked is what a person clicks. Whatever is above the empty
flow is ours: importing the package and the flow. The rest is Prefect's: a worker asks for work every so often (10 s
unless PREFECT_WORKER_QUERY_SECONDS says otherwise; here 1 s, or its timer would be all that is measured) and starts a
process, which imports Prefect.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import datetime
from pathlib import Path

from tests.benchmarks.lines import Line, ratios
from tests.benchmarks.side_by_side import Effort
from tests.browser import prefect_screen
from tests.browser.prefect_place import POOL, Place, prefect_place

ASKS_EVERY_SECONDS = 1.0
RUN_SECONDS = 120.0
OURS = "model-lifecycle/on-demand"
EMPTY = "nothing/by-hand"
QUESTION = "UI form submitted to run started"
EMPTY_FLOW = """
from prefect import flow

@flow(name="nothing")
def nothing(accelerator: str = "cpu") -> None:
    pass

if __name__ == "__main__":
    nothing.from_source({here!r}, "empty_flow.py:nothing").deploy(
        "by-hand", work_pool_name={pool!r}, print_next_steps=False
    )
"""


def form(effort: Effort) -> list[Line]:
    """Submit forms in turns; nothing where there is no Chromium."""
    if why := prefect_screen.missing():
        sys.stderr.write(f"form: not measured, {why}\n")
        return []
    found: dict[str, list[float]] = {OURS: [], EMPTY: []}
    with (
        tempfile.TemporaryDirectory(prefix="mlb-") as folder,
        prefect_screen.browser() as window,
        prefect_place(asks_every=ASKS_EVERY_SECONDS) as place,
    ):
        script = Path(folder) / "empty_flow.py"
        script.write_text(EMPTY_FLOW.format(here=folder, pool=POOL))
        place.does(str(script))
        screen = prefect_screen.Screen(window, place.url, Path(folder))
        for number in effort.each():
            for name in (OURS, EMPTY) if number % 2 == 0 else (EMPTY, OURS):
                found[name].append(_started(place, screen, name))
        screen.close()
    values = tuple(found[OURS])
    return [
        Line(QUESTION, "s", values, made_of=f"the worker asks every {ASKS_EVERY_SECONDS:.0f} s"),
        ratios(f"{QUESTION} / the same with an empty flow", values, found[EMPTY], aim=None, names="ours | empty"),
    ]


def _started(place: Place, screen: prefect_screen.Screen, name: str) -> float:
    """Seconds between the click and the start of the run."""
    screen.open_form(place.deployment(name)["id"])
    # It starts, and then fails before anything is created: the start is what is measured.
    screen.fill(accelerator="none-of-that-name")
    run_id, clicked = screen.submit()
    run = place.over(run_id, seconds=RUN_SECONDS)
    return datetime.fromisoformat(run["start_time"]).timestamp() - clicked
