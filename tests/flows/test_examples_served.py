"""Examples 3 and 4 as their READMEs say: served, one waits for the night, the other for events, which start it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
SCHEDULED, EVENTS = "03-scheduled-retraining", "04-event-driven"
EVENT_SECONDS, AGAIN_SECONDS, RUN_SECONDS = 90.0, 20.0, 180.0
_spec = importlib.util.spec_from_file_location("served_prefect_place", HERE.parent / "browser" / "prefect_place.py")
assert _spec
assert _spec.loader
prefect_place = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = prefect_place
_spec.loader.exec_module(prefect_place)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place() -> Iterator[Any]:
    """A Prefect server, and copies of both examples, served. What they leave serving is given back."""
    root = Path(tempfile.mkdtemp(prefix="mle-"))
    here = prefect_place.Place(root)
    here.env |= {"PREFECT_RUNNER_POLL_FREQUENCY": "1", "MLINFRA_KEEPER_PLACE": "process"}
    left: list[str] = []
    try:
        here.start_server()
        for example, script in ((SCHEDULED, "retrain_digits.py"), (EVENTS, "learn_from_events.py")):
            shutil.copytree(EXAMPLES / example, root / example)
            here._start(example, str(root / example / script))
        yield here
    finally:
        for name in {record["name"] for record in here.records() if record["kind"] == "endpoint"}:
            here.does("-m", "mlinfra_prefect", "release", name)
        left = here.end()
        shutil.rmtree(root, ignore_errors=True)
    assert not left, f"left behind: {left}"


def served(place: Any, name: str) -> dict[str, Any]:
    place.wait(
        lambda: place.answer("GET", f"/deployments/name/{name}").is_success, prefect_place.START_SECONDS,
        f"{name} is not served",
    )  # fmt: skip
    return dict(place.deployment(name))


def run_because(place: Any, deployment: dict[str, Any], reason: str, tell: Callable[[], object]) -> dict[str, Any]:
    """Wait for the run whose parameter `reason` begins so; returns it, and fails when there are two.

    Prefect on SQLite drops an event now and then ("database is locked"), so it is told again, as an hourly job would.
    """
    found: list[dict[str, Any]] = []
    told = time.monotonic()

    def look() -> bool:
        nonlocal told
        if time.monotonic() > told + AGAIN_SECONDS:
            told = time.monotonic()
            tell()
        runs = [place.run(run) for run in place.runs(deployment["id"])]
        found[:] = [run for run in runs if run["parameters"]["reason"].startswith(reason)]
        return bool(found)

    place.wait(look, EVENT_SECONDS, f"no run of {deployment['name']} because of {reason!r}")
    (run,) = found
    return run


def test_the_nightly_one_is_scheduled_in_its_time_zone(place: Any) -> None:
    """`python retrain_digits.py`: a deployment with the schedule of the README, and the next nights planned."""
    deployment = served(place, "retrain-digits/nightly")
    (schedule,) = (each["schedule"] for each in deployment["schedules"])
    assert (schedule["cron"], schedule["timezone"]) == ("0 2 * * *", "Europe/Berlin")
    place.wait(lambda: len(place.runs(deployment["id"])) > 1, EVENT_SECONDS, "no night is planned")


def test_events_start_the_other_one_with_what_they_say(place: Any) -> None:
    """`python new_data.py` starts a run that trains on that file and serves; telling it again starts none."""
    deployment = served(place, "learn-from-events/on-events")
    project = place.root / EVENTS

    def new_data() -> None:
        assert "told" in place.does(str(project / "new_data.py"))

    def look_for_drift() -> None:
        assert "drift of digits-events, told" in place.does(str(project / "look_for_drift.py"))

    new_data()
    new_data()
    file = (project / "digits-2026-11-22.npz").resolve()
    run = run_because(place, deployment, "version 2026-11-22 of the data", new_data)
    assert run["parameters"]["data"] == file.as_uri()
    look_for_drift()
    drift = run_because(place, deployment, "drift: psi is 1.3", look_for_drift)
    for each in (run, drift):
        ended = place.over(each["id"], seconds=RUN_SECONDS)
        assert ended["state_type"] == "COMPLETED", f"{ended['state']}\n{place.logs()}"
    (endpoint,) = (record for record in place.records() if record["kind"] == "endpoint")
    assert (endpoint["name"], endpoint["state"]) == ("digits-events", "ready")
    assert [version["state"] for version in endpoint["versions"]] == ["retiring", "serving"]
    assert len(place.runs(deployment["id"])) == 2, "the same version of the same data was acted on twice"
