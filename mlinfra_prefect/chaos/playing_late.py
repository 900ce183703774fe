"""How the row is played in which a machine appears late, beside the live attempt of the same lease."""

from __future__ import annotations

import time

from mlinfra_prefect.chaos.place import POINT_SECONDS, Place
from mlinfra_prefect.chaos.plan import Plan
from mlinfra_prefect.chaos.playing_cloud import LOOK_SECONDS, until_so

LAUNCH = "CreateFleet"
BESIDE_SECONDS = 150.0
"""How long a late machine may live beside the live one: a minute to the next look, half of one to the renewal that has
it made, and what a busy machine takes."""
TRAINING_SECONDS = 900.0
"""It is struck before that."""


def late_machine(place: Place, plan: Plan) -> None:
    """The first attempt's launch is carried out when the second one trains: the late machine goes, the live one stays.

    Counted by the account: every instance of the run, in all regions, tagged or not.
    """
    place.cloud.fault("slow", operation=LAUNCH, before=plan.options["hold"], times=1)
    place.client("lease", seconds=TRAINING_SECONDS)
    if not until_so(place, lambda: place.cloud.seen(LAUNCH) > 0):
        return
    time.sleep(plan.options["later"])
    place.hit([seen for role in ("terraform", "provider", "spawner") for seen in place.victims(role)], "KILL")
    carried_out = time.time() + plan.options["hold"] + 30.0
    if not place.wait("job", POINT_SECONDS):
        return
    ever = set(place.cloud.live())
    while place.cloud.seen(LAUNCH, "executed") < 2 and time.time() < carried_out:
        time.sleep(LOOK_SECONDS)
    if place.happened("aws", f"{LAUNCH} of the first attempt carried out"):
        until = time.time() + BESIDE_SECONDS
        while time.time() < until and (len(ever) < 2 or len(place.cloud.live()) > 1):
            ever |= set(place.cloud.live())
            time.sleep(LOOK_SECONDS)
        _judge(place, ever)
    place.hit([seen for role in plan.options["victims"] for seen in place.victims(role)], "KILL")


def _judge(place: Place, ever: set[str]) -> None:
    live = place.cloud.live()
    if len(ever) < 2:  # it would prove nothing
        place.problems.append(f"no late machine was ever there: {sorted(ever)}")
    if len(live) > 1:
        place.problems.append(f"{len(live)} machines run for one lease: {[str(each) for each in live.values()]}")
    if not live or place.said("over"):
        place.problems.append(f"the live attempt was ended with the late one: {place.said()[-1:]}")
