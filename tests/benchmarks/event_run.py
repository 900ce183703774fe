"""From an event to the run that it starts, beside the same run asked for through the API.

A real server, and an empty flow under `flow.serve` with a trigger on ``mlinfra-prefect.dataset.updated``. Whatever is
above asking through the API is the event's way: into the server's feed, past the automation, to a run. The rest is
Prefect's `serve`: it looks for runs every so often (10 s unless PREFECT_RUNNER_POLL_FREQUENCY says otherwise; here 1 s,
or its timer would be all that is measured) and starts a process, which imports Prefect.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect.settings import PREFECT_API_URL, temporary_settings

from mlinfra_prefect import dataset_updated
from tests.benchmarks.lines import Line, ratios
from tests.benchmarks.side_by_side import Effort
from tests.browser.prefect_place import START_SECONDS, Place

LOOKS_EVERY_SECONDS = 1
RUN_SECONDS = 120.0
NAME = "nothing/on-event"
QUESTION = "event told to run started, under serve"
SERVED = """
from prefect import flow
from prefect.events import DeploymentEventTrigger

@flow(name="nothing")
def nothing(data: str = "") -> None:
    pass

if __name__ == "__main__":
    nothing.serve("on-event", triggers=[DeploymentEventTrigger(
        expect={"mlinfra-prefect.dataset.updated"}, parameters={"data": "{{ event.payload.uri }}"},
    )])
"""


def events(effort: Effort) -> list[Line]:
    """Tell an event and ask through the API, in turns."""
    place = Place(Path(tempfile.mkdtemp(prefix="mlb-")))
    place.env["PREFECT_RUNNER_POLL_FREQUENCY"] = str(LOOKS_EVERY_SECONDS)
    told: list[dict[str, float]] = []
    asked: list[dict[str, float]] = []
    try:
        place.start_server()
        script = place.root / "served.py"
        script.write_text(SERVED)
        place._start("served", str(script))  # noqa: SLF001 (it has no other name for starting a process)
        place.wait(lambda: place.answer("GET", f"/deployments/name/{NAME}").is_success, START_SECONDS, "nothing served")
        deployment = place.deployment(NAME)["id"]
        with temporary_settings({PREFECT_API_URL: f"{place.url}/api"}):
            for number in effort.each():
                ways: list[tuple[list[dict[str, float]], Callable[[], Any]]] = [
                    (told, _tell),
                    (asked, lambda: place.posted(f"/deployments/{deployment}/create_flow_run", parameters={})),
                ]
                for found, start in ways if number % 2 == 0 else reversed(ways):
                    found.append(_started(place, deployment, start))
    finally:
        left = place.end()
        shutil.rmtree(place.root, ignore_errors=True)
    assert not left, f"left behind: {left}"
    values = tuple(each["started"] for each in told)
    made_of = (
        f"the run is made after {statistics.median(each['made'] for each in told):.3f} s; "
        f"serve looks every {LOOKS_EVERY_SECONDS} s"
    )
    return [
        Line(QUESTION, "s", values, made_of=made_of),
        ratios(
            f"{QUESTION} / the same run through the API", values, [each["started"] for each in asked], aim=None,
            names="event | API",
        ),
    ]  # fmt: skip


def _tell() -> None:
    dataset_updated("bench", f"s3://bench/{time.time_ns()}/")


def _started(place: Place, deployment: str, start: Callable[[], Any]) -> dict[str, float]:
    """Seconds from the start until there is a new run, and until it runs."""
    before = set(place.runs(deployment))
    began = time.time()
    start()
    new: set[str] = set()

    def there() -> bool:
        new.update(set(place.runs(deployment)) - before)
        return bool(new)

    place.wait(there, RUN_SECONDS, "no run is made")
    (run_id,) = new
    run = place.over(run_id, seconds=RUN_SECONDS)
    moments = {"made": run["created"], "started": run["start_time"]}
    return {name: datetime.fromisoformat(moment).timestamp() - began for name, moment in moments.items()}
