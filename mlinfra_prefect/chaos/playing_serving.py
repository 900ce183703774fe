"""How the serving rows are played: under load, struck anywhere between the candidate and the retirement."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.asking import Asker, ask
from mlinfra_prefect.chaos.place import POINT_SECONDS, Place
from mlinfra_prefect.chaos.plan import REAPER_INTERVAL_SECONDS, Plan

SETTLE_SECONDS = 100.0
GONE = {"retired", "rolled-back"}


def rollout(place: Place, plan: Plan) -> None:
    """A second version is rolled out under load and everything is struck: no request fails, one version serves."""
    first = _standing(place)
    if first is None:
        return
    asker = Asker(first["url"], _token(place, first))
    try:
        client = place.client("serve", model=str(place.setting.models[1]), canary=[30, 70])
        place.wait("began", count=2)
        place.moment = time.time()
        for strike in plan.strikes:
            place.strike(strike)
        _until_settled(place, first["id"], client)
    finally:
        asker.close()
    if asker.failed or not asker.asked:
        place.problems.append(f"{len(asker.failed)} of {asker.asked} requests failed: {asker.failed[:3]}")
    _give_back(place)


def first(place: Place, plan: Plan) -> None:
    """The very first deployment is struck: what it made stands or is gone as a whole, and goes when given back."""
    client = place.client("serve", model=str(place.setting.models[0]))
    place.wait("began")
    place.moment = time.time()
    for strike in plan.strikes:
        place.strike(strike)
    until = time.time() + POINT_SECONDS
    while client.poll() is None and time.time() < until:
        time.sleep(0.1)
    # Between the last fault and the giving back a reaper looks: it takes over, or finishes, what was begun.
    place.reaper(settle=20.0)
    _give_back(place)


def server_killed(place: Place, plan: Plan) -> None:
    """A server, the router or their agent is killed: it answers again, and goes when it is given back."""
    first = _standing(place)
    if first is None:
        return
    found = place.victims(plan.options["victim"])
    place.hit(found[:1], "KILL")
    url, until = f"{first['url']}/v2/models/digits/infer", time.time() + SETTLE_SECONDS
    token = _token(place, first)
    place.reaper()
    answered = 0
    alone = plan.options["victim"] == "node"  # without its agent nobody starts it again; giving back is what counts
    while answered < 3 and time.time() < until and not alone:
        answered = 0 if ask(url, token) else answered + 1
        time.sleep(0.1)
    if answered:
        place.settled_after = round(max(0.0, time.time() - place.struck[-1]["at"]), 3) if place.struck else None
    elif not alone:
        place.problems.append(f"it does not answer any more: {ask(url, token)}")
    _give_back(place)


def _standing(place: Place) -> dict[str, Any] | None:
    """Deploy the first version with a client that ends; nothing is struck before it stands."""
    client = place.client("serve", points=False, model=str(place.setting.models[0]))
    client.wait(180)
    said = place.said("deployed")
    if not said:
        place.problems.append(f"the first version never stood: {place.said()[-1:]}")
        return None
    return said[0]


def _token(place: Place, endpoint: dict[str, Any]) -> str:
    """The endpoint's token, from the file that is its owner's alone."""
    path: Path = place.home / "work" / endpoint["id"] / "token"
    return path.read_text(encoding="ascii").strip()


def _until_settled(place: Place, endpoint: str, client: Any) -> None:
    """One version serves everything, every other one is gone, servers included: with a reaper that comes at times."""
    until = time.time() + SETTLE_SECONDS
    next_pass = place.over_since() + REAPER_INTERVAL_SECONDS
    last = time.time() + POINT_SECONDS
    while time.time() < until:
        # A client that lives rolls out for as long as that takes; what is promised begins at the last fault.
        if client.poll() is None and time.time() < last:
            until = time.time() + SETTLE_SECONDS
        until = max(until, place.over_since() + SETTLE_SECONDS)
        if client.poll() is not None and _settled(place, endpoint):
            place.settled_after = round(max(0.0, time.time() - place.over_since()), 3)
            return
        if time.time() >= next_pass and all(each.poll() is not None for each in place.reapers):
            place.reaper(settle=20.0)
            next_pass = time.time() + REAPER_INTERVAL_SECONDS
        time.sleep(0.1)
    place.problems.append(f"it did not settle: {judge.records(place.home).get(endpoint, {}).get('versions')}")


def _settled(place: Place, endpoint: str) -> bool:
    records = judge.records(place.home)
    versions = records[endpoint]["versions"]
    states = [each["state"] for each in versions]
    if states.count("serving") != 1 or set(states) - {"serving", *GONE}:
        return False
    rollouts = {each["rollout"] for each in versions if each["state"] in GONE}
    going = [each for each in records.values() if each["kind"] == "rollout" and each["state"] != "released"]
    return all(records[each]["state"] == "released" for each in rollouts) and len(going) == 1


def _give_back(place: Place) -> None:
    for reaper in place.reapers:
        reaper.wait(60)
    place.client("give-back", points=False)
