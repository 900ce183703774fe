"""The rows of the fault matrix that lease on this machine with Terraform's built-in provider."""

from __future__ import annotations

import os
import shutil
import subprocess
from random import Random
from typing import Any

from mlinfra_prefect.chaos import playing, playing_prefect, playing_serving
from mlinfra_prefect.chaos.models import needs_models
from mlinfra_prefect.chaos.plan import Row
from mlinfra_prefect.chaos.playing import EVERYTHING

ASKING = ("after-announce", "after-record", "after-entrust", "after-release-mark")
PROVISIONING = ("after-take", "after-attempt", "before-apply", "after-apply", "before-ready", "before-card")
RELEASING = (
    "after-drain-mark", "before-stop-meter", "after-stop-meter", "before-destroy", "after-destroy", "between-sweeps",
    "before-receipt", "before-card:2",
)  # fmt: skip
OPERATION = PROVISIONING + RELEASING
ROLLING = (
    "after-candidate-record", "after-entrust", "before-share", "after-share", "before-share:2", "after-share:2",
    "before-promote", "after-promote", "before-retire", "after-leave", "before-stop-meter", "before-receipt",
)  # fmt: skip
REAPING = ("reap-began", "reap-after-lay", "reap-before-settle")
STOPS = ("STOP-CONT", "STOP-KILL")


def needs_root() -> str:
    """Why this machine has no small disk and no cgroup for a run."""
    return "" if os.geteuid() == 0 else "mounting and cgroups need root"


def needs_cgroup() -> str:
    """Why no cgroup can be made here."""
    place = playing.cgroup_root() / f"mlinfra-chaos-{os.getpid()}"
    try:
        place.mkdir()
        place.rmdir()
    except OSError as error:
        return f"no cgroup can be made here ({error.strerror})"
    return ""


def needs_mount() -> str:
    """Why no small disk can be mounted here."""
    return needs_root() or ("" if shutil.which("mount") else "there is no mount")


def needs_namespace() -> str:
    """Why no PID namespace can be made here."""
    if shutil.which("unshare") is None:
        return "there is no unshare"
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], check=False, capture_output=True)
    return "" if tried.returncode == 0 else "no PID namespace can be made here"


def _moments(chance: Random) -> dict[str, Any]:
    return {
        "kill_at": round(chance.uniform(0.0, 5.0), 3), "reaper_at": round(chance.uniform(0.0, 4.0), 3),
        "busy_for": round(chance.uniform(1.0, 5.0), 3), "full_for": round(chance.uniform(1.0, 5.0), 3),
        "reapers": chance.randint(2, 8), "keeper_too": chance.random() < 0.5,
        "clocks": chance.choice([[3600.0], [-3600.0], [3600.0, -3600.0]]),
        "broken": chance.choice(["truncated", "future"]),
        "victims": chance.choice([["client"], ["client", "keeper"], list(EVERYTHING)]),
    }  # fmt: skip


def of_prefect(chance: Random) -> dict[str, Any]:
    """Who of Prefect's processes is killed, and when."""
    groups = [["flow"], ["runner"], ["runner"], ["server"], ["flow", "runner"], ["runner", "server"],
              ["flow", "runner", "server", *EVERYTHING]]  # fmt: skip
    return {
        "worker": chance.random() < 0.5, "cancel": chance.random() < 0.25, "victims": chance.choice(groups),
        "kill_at": round(chance.uniform(0.0, 12.0), 3), "seconds": round(chance.uniform(1.0, 4.0), 3),
    }  # fmt: skip


ROWS = (
    Row("client-killed", "SIGKILL of the flow, anywhere: its keeper alone gives everything back", playing.lease,
        points=ASKING, weight=14),
    Row("client-told-to-end", "SIGTERM once or twice, or SIGINT, to the flow", playing.lease,
        hows=("TERM", "TERM-TERM", "INT", "INT-KILL", "TERM-KILL"), weight=10),
    Row("client-stopped", "SIGSTOP of the flow; then it goes on, or is killed", playing.lease, hows=STOPS, weight=5),
    Row("keeper-killed", "SIGKILL or SIGTERM of the keeper: its client, or the next operation, replaces it",
        playing.lease, victims=(("keeper",),), hows=("KILL", "TERM"), reaper=True, weight=8),
    Row("keeper-stopped", "SIGSTOP of the keeper; then it goes on, or is killed", playing.lease,
        victims=(("keeper",),), hows=STOPS, reaper=True, weight=4),
    Row("operation-killed", "SIGKILL of an operation, anywhere: the keeper starts the next one", playing.lease,
        victims=(("operation",),), points=OPERATION, weight=14),
    Row("operation-stopped", "SIGSTOP or SIGTERM of an operation", playing.lease,
        victims=(("operation",),), hows=(*STOPS, "TERM", "INT"), weight=5),
    Row("terraform-killed", "SIGKILL of Terraform, whatever it does", playing.lease,
        victims=(("terraform",), ("terraform", "spawner")), life=3.0, weight=8),
    Row("terraform-told-to-end", "somebody else's SIGINT or SIGTERM to Terraform, or SIGSTOP for a while",
        playing.lease, victims=(("terraform",),), hows=("INT", "TERM", *STOPS), life=3.0, weight=6),
    Row("node-killed", "SIGKILL of the agent, its launcher or the training", playing.lease,
        victims=(("node",), ("work",), ("agent",), ("launcher",)), weight=6),
    Row("node-stopped", "SIGSTOP of the agent or the training; then it goes on, or is killed", playing.lease,
        victims=(("agent",), ("work",), ("launcher",)), hows=STOPS, weight=4),
    Row("client-and-keeper", "SIGKILL of flow and keeper together: a reaper takes over", playing.lease,
        victims=(("client", "keeper"),), points=ASKING, together=("keeper",), reaper=True, weight=10),
    Row("client-and-operation", "SIGKILL of flow and operation together", playing.lease,
        victims=(("operation", "client"),), points=OPERATION, together=("client",), weight=8),
    Row("keeper-and-operation", "SIGKILL of keeper and operation together", playing.lease,
        victims=(("operation", "keeper"),), points=OPERATION, together=("keeper",), reaper=True, weight=8),
    Row("operation-and-terraform", "SIGKILL of an operation and its Terraform together", playing.lease,
        victims=(("terraform", "operation"),), life=3.0, weight=6),
    Row("client-and-node", "SIGKILL of flow and node together", playing.lease,
        victims=(("client", "node", "work"),), weight=4),
    Row("everything", "flow, keeper, operation and Terraform SIGKILLed together; then a reaper", playing.lease,
        victims=(EVERYTHING,), points=(*ASKING, *OPERATION), together=EVERYTHING, reaper=True, weight=16),
    Row("reaper-killed", "everything killed; the reaper that comes is killed, too, at any step", playing.reaper_killed,
        victims=(EVERYTHING,), reaper=True, options=_moments, weight=5),
    Row("reaper-killed-at-a-step", "everything killed; the reaper is killed at a named step",
        playing.reaper_killed, victims=(EVERYTHING,), points=REAPING, both=True, reaper=True, options=_moments,
        weight=4),
    Row("reapers-race", "everything killed; then 2 to 8 reapers at once", playing.reapers_race,
        victims=(EVERYTHING,), reaper=True, options=_moments, weight=4),
    Row("reaper-beside-owner", "reapers beside a live flow, with clocks that are an hour wrong: nothing is lost",
        playing.reaper_beside_owner, victims=(), options=_moments, weight=4),
    Row("double-run", "two runs of one key; the one that holds it is killed", playing.double, victims=(),
        options=_moments, weight=5),
    Row("two-ledgers", "everything killed in one home; the node of another home lives on", playing.two_ledgers,
        victims=(EVERYTHING,), reaper=True, options=_moments, weight=3),
    Row("store-busy", "another program locks the ledger while the flow, or everything, is killed", playing.store_busy,
        victims=(), reaper=True, options=_moments, weight=5),
    Row("store-broken", "truncated and future records beside the live one, and everything killed",
        playing.store_broken, victims=(EVERYTHING,), reaper=True, options=_moments, weight=4),
    Row("disk-full", "the home's disk is full for a while, and the flow is killed", playing.disk_full, victims=(),
        reaper=True, needs=needs_mount, options=_moments, weight=4),
    Row("session-killed", "the flow's session is killed whole", playing.session_killed, victims=(), options=_moments,
        weight=3),
    Row("cgroup-killed", "the flow's cgroup is killed whole, its keeper in it", playing.cgroup_killed, victims=(),
        reaper=True, needs=needs_cgroup, options=_moments, weight=4),
    Row("namespace-killed", "the flow's PID namespace (a container) is killed whole", playing.namespace_killed,
        victims=(), reaper=True, ttl=True, needs=needs_namespace, options=_moments, weight=4),
    Row("rollout-killed", "flow, keeper or operation killed at any step of a rollout, under load: no request fails",
        playing_serving.rollout, victims=(("client",), ("keeper",), ("operation",), ("client", "keeper"), EVERYTHING),
        points=ROLLING, reaper=True, life=10.0, serves=True, needs=needs_models, weight=4),
    Row("rollout-killed-with-keeper", "the same at the named steps, keeper and flow killed in the same moment",
        playing_serving.rollout, victims=(EVERYTHING,), points=ROLLING, together=("keeper", "client"), reaper=True,
        life=10.0, serves=True, needs=needs_models, weight=2),
    Row("deploy-killed", "flow, keeper or operation killed at any step of an endpoint's first deployment",
        playing_serving.first, victims=(("client",), ("keeper",), ("operation",), ("client", "keeper"), EVERYTHING),
        points=("after-router-record", *ROLLING), reaper=True, life=8.0, serves=True, needs=needs_models, weight=4),
    Row("server-killed", "a model server, the router or an agent of an endpoint killed: it answers again",
        playing_serving.server_killed, victims=(), reaper=True, serves=True, needs=needs_models,
        options=lambda chance: {"victim": chance.choice(["server", "router", "node"])}, weight=2),
    Row("prefect-killed", "under flow.serve or a process worker: flow, runner, worker or server killed, or cancelled",
        playing_prefect.killed, victims=(), reaper=True, options=of_prefect, weight=6),
    Row("fifty-at-once", "50 leases reach their deadlines in the same moment", playing.all_at_once, victims=(),
        options=lambda chance: {"count": 50, "life": round(chance.uniform(20.0, 60.0), 3)}, weight=1),
    Row("dead-man", "keeper, flow, ledger and Terraform all gone: the node ends itself at its deadline",
        playing.dead_man, victims=(), options=lambda chance: {"life": round(chance.uniform(15.0, 25.0), 3)}, weight=1),
)  # fmt: skip
