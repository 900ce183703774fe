"""The rows of the fault matrix that lease on AWS: Terraform's real provider, against an emulated account."""

from __future__ import annotations

import importlib.util
from functools import partial
from random import Random
from typing import Any

from mlinfra_prefect.chaos import playing, playing_cloud as cloud, playing_hosts, playing_late, playing_prefect
from mlinfra_prefect.chaos.cloud import HOME_REGION
from mlinfra_prefect.chaos.matrix import ASKING, OPERATION, REAPING, STOPS, of_prefect
from mlinfra_prefect.chaos.plan import Row
from mlinfra_prefect.chaos.playing_cloud import EVERYBODY

ON = "the AWS provider, and an emulator"
LIFE_SECONDS = 26.0
"""Of a lease with a real provider: random moments are spread over it."""
SETTLES_SECONDS = 120.0
"""A reaper leaves what is free, and goes with a machine, for so long after a release: it may be going already."""
GROUPS = (("client",), ("operation",), ("client", "keeper"), ("terraform", "provider"), EVERYBODY)


def needs_emulator() -> str:
    """Why no account can be emulated here."""
    absent = [name for name in ("boto3", "moto", "flask") if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'mlinfra_prefect[aws,emulator]'" if absent else ""


def _another_host() -> str:
    return needs_emulator() or playing_hosts.needs_another_host()


def _options(chance: Random, **more: Any) -> dict[str, Any]:
    market = "spot" if chance.random() < 0.3 else "on-demand"
    return {
        "request": {"market": market}, "victims": list(chance.choice(GROUPS)),
        "later": round(chance.uniform(0.0, 3.0), 3), "kill": chance.random() < 0.5,
        "training": round(chance.uniform(6.0, 9.0), 3), "hold": round(chance.uniform(8.0, 16.0), 3),
        "reapers": chance.randint(2, 4), "reaper_at": round(chance.uniform(0.0, 8.0), 3),
        "keeper_too": chance.random() < 0.5, **more,
    }  # fmt: skip


def _launching(chance: Random) -> dict[str, Any]:
    operation = chance.choice(["CreateFleet", "CreateFleet", "CreateLaunchTemplate"])
    choices: list[tuple[str, dict[str, Any]]] = [
        ("fail", {"operation": operation, "times": chance.randint(1, 4)}),
        ("fail", {"operation": operation, "times": 2, "executed": True}),
        ("throttle", {"operation": operation, "times": chance.randint(1, 6)}),
        ("fail", {"operation": operation, "status": 403, "code": "UnauthorizedOperation", "times": None}),
        ("drop", {"operation": operation, "executed": True, "times": chance.randint(1, 3)}),
        ("drop", {"operation": operation, "executed": False, "times": chance.randint(1, 3)}),
        ("profile_not_seen", {"times": chance.randint(1, 2)}),
    ]
    fault = chance.choice(choices)
    operation = "CreateFleet" if fault[0] == "profile_not_seen" else operation
    return _options(chance, faults=[fault], operation=operation)


def _for_ever(chance: Random) -> dict[str, Any]:
    fault = chance.choice([("throttle", {"times": None}), ("fail", {"times": None})])
    return _options(chance, faults=[(fault[0], {"operation": "CreateFleet", **fault[1]})], operation="CreateFleet")


def _without_capacity(chance: Random) -> dict[str, Any]:
    zones = chance.choice([[], ["*a"], ["*a", "*b"]])
    return _options(chance, faults=[("no_capacity", {"zones": zones})], operation="CreateFleet")


def _unanswered(chance: Random) -> dict[str, Any]:
    operation = chance.choice(["CreateFleet", "CreateFleet", "CreateLaunchTemplate"])
    return _options(chance, operation=operation, how=chance.choice(["held", "dropped"]), times=chance.randint(1, 3))


def _zombie(chance: Random) -> dict[str, Any]:
    more = chance.choice([(), ("operation",), ("operation", "keeper"), ("client", "keeper", "operation", "pass")])
    victims = ["terraform", "provider", "spawner", *more]
    return _options(chance, operation="CreateFleet", victims=victims, hold=round(chance.uniform(5.0, 40.0), 3))


def _late(chance: Random) -> dict[str, Any]:
    # The second attempt trains half a minute after the first one was killed.
    victims = chance.choice((("client",), ("client", "keeper"), EVERYBODY))
    return _options(chance, hold=round(chance.uniform(30.0, 75.0), 3), victims=list(victims))


def _flow(chance: Random) -> dict[str, Any]:
    # From when the run is asked for: its process starts, leases, trains and gives back.
    return {**of_prefect(chance), "kill_at": round(chance.uniform(0.0, 45.0), 3)}


def _host(chance: Random) -> dict[str, Any]:
    return _options(chance, trained=chance.random() < 0.6)


def _ending_refused(chance: Random) -> dict[str, Any]:
    times, lies = chance.randint(1, 4), chance.random() < 0.4
    faults: list[Any] = [("fail", {"operation": each, "times": times}) for each in cloud.OPEN]
    if lies:
        faults = [("terminate_lies", {"times": times})]
    how = "answered well, and not done" if lies else "refused"
    return _options(chance, faults=faults, told=f"ending is {how} {times} times")


def _never(chance: Random, what: str) -> dict[str, Any]:
    code = chance.choice([(500, "InternalError"), (403, "UnauthorizedOperation")])
    no = {"status": code[0], "code": code[1], "times": None}
    look = chance.choice(["DescribeInstances", "DescribeVolumes", "GetResources"])
    choices: dict[str, list[Any]] = {
        "end": [("fail", {"operation": each, **no}) for each in cloud.OPEN],
        "lie": [("terminate_lies", {})],
        "item": [("fail", {"operation": "DeleteLaunchTemplate", **no})],
        "look": [("fail", {"operation": look, **no})],
    }
    told = {
        "end": "a machine cannot be ended", "lie": "a machine stays although it is told to end",
        "item": "a launch template cannot be deleted", "look": "nobody can look",
    }[what]  # fmt: skip
    return _options(chance, faults=choices[what], told=told, alone=what in {"item", "look"})


def _mailbox(chance: Random) -> dict[str, Any]:
    fault = chance.choice(["fail", "throttle", "drop"])
    operation = chance.choice(["GetObject", "PutObject", "ListObjectsV2", "*Object*"])
    arguments: dict[str, Any] = {"operation": operation, "times": chance.randint(1, 8)}
    arguments |= {"service": "s3"} if fault == "throttle" else {}
    arguments |= {"executed": chance.random() < 0.5} if fault == "drop" else {}
    return _options(chance, faults=[(fault, arguments)])


def _node(chance: Random) -> dict[str, Any]:
    victim = chance.choice(["courier", "agent", "launcher", "training", "node"])
    return _options(chance, victim=victim, how=chance.choice(["KILL", "KILL", "STOP-CONT"]))


def _state(chance: Random) -> dict[str, Any]:
    return _options(chance, how=chance.choice(["deleted", "empty", "directory"]))


def _dead_man(chance: Random) -> dict[str, Any]:
    # Three or four minutes of the emulator's: until the deadline, and the two minutes' grace.
    return _options(chance, life=90.0, shutdown=45.0, victim=chance.choice(["", "courier", "agent"]))


_row = partial(Row, on=ON, platform="aws", needs=needs_emulator, life=LIFE_SECONDS, options=_options)

ROWS = (
    _row("aws-client-killed", "SIGKILL of the flow, anywhere: its keeper alone gives everything back", playing.lease,
         points=ASKING, weight=10),
    _row("aws-client-told-to-end", "SIGTERM once or twice, or SIGINT, to the flow", playing.lease,
         hows=("TERM", "TERM-TERM", "INT", "INT-KILL"), weight=4),
    _row("aws-client-stopped", "SIGSTOP of the flow; then it goes on, or is killed", playing.lease, hows=STOPS,
         weight=2),
    _row("aws-keeper-killed", "SIGKILL or SIGTERM of the keeper, anywhere", playing.lease, victims=(("keeper",),),
         hows=("KILL", "TERM"), reaper=True, weight=5),
    _row("aws-operation-killed", "SIGKILL of an operation, anywhere: the keeper starts the next one", playing.lease,
         victims=(("operation",),), points=OPERATION, weight=10),
    _row("aws-client-and-keeper", "SIGKILL of flow and keeper together: a reaper takes over", playing.lease,
         victims=(("client", "keeper"),), points=ASKING, together=("keeper",), reaper=True, weight=8),
    _row("aws-client-and-operation", "SIGKILL of flow and operation together", playing.lease,
         victims=(("operation", "client"),), points=OPERATION, together=("client",), weight=6),
    _row("aws-keeper-and-operation", "SIGKILL of keeper and operation together", playing.lease,
         victims=(("operation", "keeper"),), points=OPERATION, together=("keeper",), reaper=True, weight=6),
    _row("aws-everything", "flow, keeper, operation, Terraform and provider SIGKILLed together; then a reaper alone",
         playing.lease, victims=(EVERYBODY,), points=(*ASKING, *OPERATION), together=EVERYBODY, reaper=True,
         weight=14),
    _row("aws-reapers-race", "everything killed; then 2 to 4 reapers at once", playing.reapers_race,
         victims=(EVERYBODY,), reaper=True, weight=3),
    _row("aws-reaper-killed", "everything killed; the reaper that comes is killed, too", playing.reaper_killed,
         victims=(EVERYBODY,), points=REAPING, both=True, reaper=True, weight=3),
    _row("aws-terraform-killed", "SIGKILL of Terraform, its provider, or both, whatever they do", playing.lease,
         victims=(("terraform",), ("provider",), ("terraform", "provider"), ("terraform", "spawner")), weight=8),
    _row("aws-terraform-told-to-end", "somebody else's SIGINT or SIGTERM to Terraform, or SIGSTOP for a while",
         playing.lease, victims=(("terraform",),), hows=("INT", "TERM", *STOPS), weight=4),
    _row("aws-unanswered", "a machine is made and its answer held or dropped, and somebody, or everybody, is killed",
         cloud.unanswered, victims=(), options=_unanswered, reaper=True, weight=8),
    _row("aws-zombie", "Terraform and provider killed while CreateFleet is held: the machine appears afterwards, and a "
         "reaper ends it, the free part of it two minutes after the release", cloud.zombie, victims=(), reaper=True,
         options=_zombie, extra=SETTLES_SECONDS, weight=6),
    _row("aws-late-machine", "the same, and the machine appears beside the next attempt, which trains: the late one is "
         "ended and the live one is not; then somebody, or everybody, is killed", playing_late.late_machine, victims=(),
         reaper=True, options=_late, weight=3),
    _row("aws-launch-refused", "CreateFleet or CreateLaunchTemplate answers 500, 403, too often, or nothing",
         cloud.refused, victims=(), options=_launching, operation=True, weight=6),
    _row("aws-launch-refused-for-ever", "CreateFleet throttled, or 500, for ever: bounded by the operation's deadline",
         cloud.refused, victims=(), options=_for_ever, operation=True, weight=1),
    _row("aws-no-capacity", "no capacity in any zone, in the first, or in two of three", cloud.refused, victims=(),
         options=_without_capacity, weight=4),
    _row("aws-end-refused", "ending a machine is refused, or answered well and not done, some times",
         cloud.ended_late, options=_ending_refused, reaper=True, weight=5),
    _row("aws-never-ends", "ending is refused for ever: stuck, never released; then it is healed", cloud.never_ends,
         victims=(), reaper=True, options=partial(_never, what="end"), weight=2),
    _row("aws-end-lies", "ending is answered well and never done: stuck, never released; then it is healed",
         cloud.never_ends, victims=(), reaper=True, options=partial(_never, what="lie"), weight=2),
    _row("aws-one-stays", "one thing cannot be deleted: all others go, stuck, never released; then it is healed",
         cloud.never_ends, victims=(), reaper=True, options=partial(_never, what="item"), weight=2),
    _row("aws-blind", "nobody can look at what is left: stuck, never released; then it is healed", cloud.never_ends,
         victims=(), reaper=True, options=partial(_never, what="look"), weight=2),
    _row("aws-hidden", "a new machine is not shown for a while, and somebody, or everybody, is killed", cloud.hidden,
         victims=(), reaper=True, options=_options, extra=SETTLES_SECONDS, weight=4),
    _row("aws-mailbox", "the bucket refuses requests while it trains: the training goes on", cloud.mailbox,
         victims=(), options=_mailbox, weight=4),
    _row("aws-node-killed", "courier, agent, launcher or training killed, or stopped for a while, on the machine",
         cloud.on_the_node, victims=(), options=_node, ttl=True, weight=5),
    _row("aws-machine-ended", "somebody terminates the machine while it trains: the client is told",
         cloud.machine_ended, victims=(), ttl=True, weight=3),
    _row("aws-another-region", f"no capacity in {HOME_REGION}: another region, and somebody, or everybody, is killed",
         cloud.another_region, victims=(), reaper=True, regions=2, weight=2),
    _row("aws-state-lost", "Terraform's state deleted, emptied, or gone with its directory, before the release",
         cloud.state_lost, victims=(), reaper=True, options=_state, weight=4),
    _row("aws-two-ledgers", "everything killed in one home; another home's machine in the same account lives on",
         cloud.two_ledgers, victims=(EVERYBODY,), reaper=True, weight=3),
    _row("aws-home-lost", "the ledger in the state bucket; everything killed at any moment, and the home deleted: a "
         "reaper in another home gives all of it back", playing_hosts.home_lost, victims=(EVERYBODY,), reaper=True,
         weight=4),
    _row("aws-host-lost", "the same while it trains, or when it has trained and nobody has collected: the reaper is on "
         "another host, can prove nobody dead, and keeps what was trained", playing_hosts.host_lost, victims=(),
         reaper=True, ttl=True, needs=_another_host, options=_host, weight=2),
    _row("aws-prefect-killed", "under flow.serve or a worker: flow, runner, worker or server killed, or cancelled",
         playing_prefect.killed, victims=(), reaper=True, options=_flow, weight=2),
    _row("aws-dead-man", "keeper, flow, ledger, Terraform all gone and no reaper: the machine's own shutdown ends it",
         cloud.dead_man, victims=(), options=_dead_man, weight=2),
)  # fmt: skip
