"""How the rows of a cloud are played: what its API does badly, and what happens to its machines, at a chosen moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.place import POINT_SECONDS, Place
from mlinfra_prefect.chaos.plan import Plan
from mlinfra_prefect.chaos.playing import EVERYTHING

EVERYBODY = (*EVERYTHING, "provider", "spawner")
"""Whoever could give something back, Terraform's provider included; the machines live on."""
LOOK_SECONDS = 0.25
STUCK_SECONDS = 900.0
"""Until a release that is refused for ever says so: three passes, of which each waits for Terraform's own retries."""
OPEN = ("TerminateInstances", "DeleteFleets")
"""How a machine is ended."""


def refused(place: Place, plan: Plan) -> None:
    """Creating is refused, slowed, or answered by nobody: bounded tries, an answer for the client, nothing left."""
    faults, operation = plan.options["faults"], plan.options["operation"]
    for name, arguments in faults:
        place.cloud.fault(name, **arguments)
    client = place.client("lease", seconds=plan.options["seconds"])
    _reached(place, operation)
    for strike in plan.strikes:
        place.strike(strike)
    client.wait(POINT_SECONDS * 4)


def unanswered(place: Place, plan: Plan) -> None:
    """A machine is made and nobody hears of it: the answer is held, or dropped, and somebody is killed meanwhile."""
    operation, how = plan.options["operation"], plan.options["how"]
    if how == "held":
        place.cloud.fault("slow", operation=operation, after=plan.options["hold"], times=1)
    else:
        place.cloud.fault("drop", operation=operation, executed=True, times=plan.options["times"])
    place.client("lease", seconds=plan.options["seconds"])
    if not until_so(place, lambda: place.cloud.seen(operation, "executed") > 0):
        return
    place.happened("aws", f"{operation} carried out, and its answer {how}")
    time.sleep(plan.options["later"])
    _hit(place, plan.options["victims"])


def zombie(place: Place, plan: Plan) -> None:
    """What Terraform asked for is carried out long after Terraform and its provider were killed."""
    operation = plan.options["operation"]
    place.cloud.fault("slow", operation=operation, before=plan.options["hold"], times=1)
    place.client("lease", seconds=plan.options["seconds"])
    if not until_so(place, lambda: place.cloud.seen(operation) > 0):
        return
    time.sleep(plan.options["later"])
    _hit(place, plan.options["victims"])
    # It happens whoever is alive by then, so what is promised begins there.
    until = time.time() + plan.options["hold"] + 10.0
    while not place.cloud.seen(operation, "executed") and time.time() < until:
        time.sleep(LOOK_SECONDS)
    place.struck.append({"role": "aws", "how": f"{operation} carried out late", "at": time.time()})


def never_ends(place: Place, plan: Plan) -> None:
    """Something cannot be ended, or looked at, for a while: that is `stuck`, never `released`; then it can."""
    client = place.client("lease", seconds=plan.options["seconds"])
    place.wait("ready")
    for name, arguments in plan.options["faults"]:
        place.cloud.fault(name, **arguments)
    if not place.happened("aws", plan.options["told"]):
        return
    if plan.options["kill"]:
        place.hit(place.victims("client"), "KILL")
    until = time.time() + STUCK_SECONDS
    while time.time() < until and "stuck" not in _states(place):
        if "released" in _states(place):
            place.problems.append(f"it says released, and {plan.options['told']}: {place.cloud.came()}")
            break
        if client.poll() is not None and not judge.left(place.home, mark=place.seen_mark()):
            place.reaper(settle=60.0).wait(120)  # nobody tries any more, so somebody comes
        time.sleep(LOOK_SECONDS)
    else:
        if "stuck" not in _states(place):
            place.problems.append(f"it is not stuck after {STUCK_SECONDS:.0f} s: {_states(place)}")
    if plan.options["alone"] and place.cloud.live():
        place.problems.append(f"one thing that cannot be ended kept others alive: {list(place.cloud.live().values())}")
    if not plan.options["alone"] and not place.cloud.came():
        place.problems.append("it was ended although that was refused")
    place.cloud.clear()
    place.struck.append({"role": "aws", "how": "healed", "at": time.time()})


def ended_late(place: Place, plan: Plan) -> None:
    """Ending is refused some times, or answered well and not done: another try ends it."""
    place.client("lease", seconds=plan.options["seconds"])
    place.wait("ready")
    for name, arguments in plan.options["faults"]:
        place.cloud.fault(name, **arguments)
    place.happened("aws", plan.options["told"])
    for strike in plan.strikes:
        place.strike(strike)


def hidden(place: Place, plan: Plan) -> None:
    """Machines are not shown by any Describe call for a while after their launch, and everybody is killed."""
    place.cloud.fault("late", seconds=plan.options["hold"])
    place.client("lease", seconds=plan.options["seconds"])
    if not until_so(place, lambda: bool(place.cloud.live())):
        return
    place.happened("aws", "the machine is not shown")
    time.sleep(plan.options["later"])
    _hit(place, plan.options["victims"])
    time.sleep(plan.options["hold"])
    place.struck.append({"role": "aws", "how": "the machine is shown", "at": time.time()})


def mailbox(place: Place, plan: Plan) -> None:
    """The bucket refuses requests of the node and of the client for a while: the training goes on and is kept."""
    client = place.client("lease", seconds=plan.options["training"])
    if not place.wait("job"):
        return
    time.sleep(plan.options["later"])
    for name, arguments in plan.options["faults"]:
        place.cloud.fault(name, **arguments)
    place.happened("s3", str(plan.options["faults"]))
    client.wait(POINT_SECONDS)
    if not place.said("trained"):
        place.problems.append(f"some refusals of the bucket ended a training: {place.said()[-1:]}")


def on_the_node(place: Place, plan: Plan) -> None:
    """Something on the machine is killed while it trains."""
    place.client("lease", seconds=plan.options["training"])
    if not place.wait("job"):
        return
    time.sleep(plan.options["later"])
    until = time.time() + 10.0
    while not place.victims(plan.options["victim"]) and place.goes_on() and time.time() < until:
        time.sleep(LOOK_SECONDS / 5)
    place.hit(place.victims(plan.options["victim"]), plan.options["how"])


def machine_ended(place: Place, plan: Plan) -> None:
    """Somebody else terminates the machine while it trains: the client is told, and nothing is left."""
    client = place.client("lease", seconds=60.0)
    if not place.wait("job"):
        return
    time.sleep(plan.options["later"])
    for each in place.cloud.live().values():
        place.cloud.ec2(each.region, "TerminateInstances", **{"InstanceId.1": each.id})
        place.happened("machine", "terminated by somebody")
    client.wait(POINT_SECONDS)
    if not place.said("failed"):
        place.problems.append(f"the client was not told that its machine ended: {place.said()[-1:]}")


def another_region(place: Place, plan: Plan) -> None:
    """The home region has no capacity: another one is used, and everything there is found again."""
    place.cloud.fault("no_capacity", regions=[place.cloud.regions[0]])
    place.client("lease", seconds=plan.options["seconds"])
    until_so(place, lambda: bool(place.cloud.live()))
    if place.happened("aws", f"no capacity in {place.cloud.regions[0]}"):
        time.sleep(plan.options["later"])
        _hit(place, plan.options["victims"])


def state_lost(place: Place, plan: Plan) -> None:
    """The attempt's Terraform state is deleted, emptied, or gone with its directory, before its release."""
    place.client("lease", seconds=plan.options["training"])
    place.wait("ready")
    found = list(place.home.glob("work/*/*/terraform"))
    if not found or not place.happened("state", plan.options["how"]):
        return
    for directory in found:
        _lose(directory, plan.options["how"])
    if plan.options["kill"]:
        time.sleep(plan.options["later"])
        _hit(place, plan.options["victims"])


def dead_man(place: Place, plan: Plan) -> None:
    """Keeper, client, ledger and Terraform are all gone, and no reaper comes: the machine's own `shutdown` ends it."""
    place.client("lease", seconds=600.0, life_seconds=plan.options["life"])
    if not place.wait("job"):
        return
    machines = place.cloud.live()
    _hit(place, EVERYBODY)
    for seen in place.victims(plan.options["victim"]) if plan.options["victim"] else ():
        place.hit([seen], "STOP")  # what would end the machine of its own accord
    place.ledger_lost = True
    for path in (*place.home.glob("ledger.sqlite*"), *place.home.glob("work/*/*/terraform/**/*"),
                 *place.home.glob("keeper/cards/*")):  # fmt: skip
        if path.is_file() or path.is_symlink():
            path.unlink()
    if not machines:
        place.problems.append("there was no machine to end itself")
    place.wanted_until = time.time() + plan.options["shutdown"]
    while time.time() < place.wanted_until + 30.0 and place.cloud.live():
        time.sleep(LOOK_SECONDS)
    place.problems += [f"lives past its dead-man: {each}" for each in place.cloud.live().values()]
    # What costs nothing and nobody knows of any more is swept by another ledger's reaper, minutes after its deadline.
    place.cloud.remove_what_is_free()


def two_ledgers(place: Place, plan: Plan) -> None:
    """Another home's machine in the same account lives through everything here, with both reapers at work."""
    before = place.cloud.remembered()
    with Place(place.setting, plan, place.cloud).borrowed() as other:
        other.client("up", points=False).wait(POINT_SECONDS)
        if not place.cloud.live():
            place.problems.append(f"the other home has no machine: {other.said()[-1:]}")
        place.cloud.begin()  # from now on the other home's things are somebody else's
        place.client("lease", seconds=plan.options["seconds"])
        for strike in plan.strikes:
            place.strike(strike)
        until = place.over_since() + 185.0
        while time.time() < until and not place.is_gone():
            for each in (place, other):
                if all(reaper.poll() is not None for reaper in each.reapers):
                    each.reaper(settle=30.0)
            time.sleep(1.0)
        for reaper in (*place.reapers, *other.reapers):
            reaper.wait(120)
        if place.is_gone():
            place.settled_after = round(max(0.0, time.time() - place.over_since()), 3)
        place.problems += place.findings()
        place.cloud.restore(before)
        other.client("give-back", points=False)
        if other.wait_gone(time.time() + 185.0, reaper=False) is None:
            place.problems += [f"the other ledger: {each}" for each in other.findings()]


def _hit(place: Place, roles: Any) -> None:
    place.hit([seen for role in roles for seen in place.victims(role)], "KILL")


def _states(place: Place) -> set[str]:
    return {str(each.get("state")) for each in judge.records(place.home).values()}


def until_so(place: Place, what: Callable[[], bool], seconds: float = POINT_SECONDS) -> bool:
    """Wait until it is so; False where nothing goes on any more, or it never is."""
    place.wait("began")
    until = time.time() + seconds
    while not what():
        if time.time() > until or not place.goes_on():
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _reached(place: Place, operation: str) -> None:
    if until_so(place, lambda: place.cloud.seen(operation) > 0):
        place.happened("aws", f"{operation} refused")


def _lose(directory: Path, how: str) -> None:
    if how == "directory":
        shutil.rmtree(directory, ignore_errors=True)
        return
    for state in directory.glob("*.tfstate*"):
        if how == "empty":
            state.write_bytes(b"")
        else:
            state.unlink()
