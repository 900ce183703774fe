"""The line of teardown that Prefect's server holds: a run that was cancelled, crashed or went silent starts a release.

Hooks die with the process that would run them, and in a container the keeper may die with it, too. The server sees
the run's end from outside. It only *starts* a release: the flow `release`, on a worker that shares the home, looks
whether the client is dead, and does what the request says then. A live client is left alone, whatever Prefect calls its
run: the server says ``Cancelled`` 300 seconds after a worker died while the flow goes on (RELIABILITY 2.4), and no
heartbeat arrives either when only the network between them is gone.
"""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import UUID

from prefect.events import DeploymentEventTrigger, DeploymentTriggerTypes
from prefect.events.schemas.automations import Posture
from prefect.events.schemas.events import ResourceSpecification

from mlinfra_prefect.errors import InvalidInput, LeaseLost, MlinfraError, NotYetDestroyed
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.reap import Finding, Pass
from mlinfra_prefect.keeper.starting import have_kept
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.clients import look_at_client, stands_by_itself, why_gone
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.process import is_here
from mlinfra_prefect.model.lease import OPEN, State
from mlinfra_prefect.model.names import as_line

PREFIX = "mlinfra-prefect: "
"""Of the names of our automations, among everybody's."""
HEARTBEAT = "prefect.flow-run.heartbeat"
ENDED = ("prefect.flow-run.Cancelled", "prefect.flow-run.Crashed")
ANYTHING = "prefect.flow-run.*"
"""What a run owes after a heartbeat: the next one, or its end, whatever the state is called (`GateRefused`, …)."""
MISSED = 3
"""How many heartbeats must be missing: one may be lost."""
OWN_FLOWS = ("release", "reap")


def release_triggers(heartbeat_seconds: int | None) -> tuple[DeploymentTriggerTypes, ...]:
    """Return what starts ``release/for-run``. Of every flow on the server but our own two, which hold no leases.

    Without leaving those out, a release that crashes would start the next one, for ever.

    Args:
        heartbeat_seconds: between two heartbeats of a run (Prefect's ``flows.heartbeat_frequency``, 180); None: they
            are off, and nobody watches them.
    """
    run = "{{ event.resource.id | replace('prefect.flow-run.', '') }}"
    not_ours = [
        ResourceSpecification({"prefect.resource.role": "flow", "prefect.resource.name": f"!{name}"})
        for name in OWN_FLOWS
    ]
    ended = DeploymentEventTrigger(
        name=f"{PREFIX}release after a cancelled or crashed run",
        description="A flow run was cancelled or crashed: what it leased is released if its process is dead.",
        match={"prefect.resource.id": ANYTHING},
        match_related=not_ours,
        expect=set(ENDED),
        parameters={"flow_run_id": run, "reason": "{{ event.event }}"},
    )
    if heartbeat_seconds is None:
        return (ended,)
    silent = DeploymentEventTrigger(
        name=f"{PREFIX}release after a run without heartbeat",
        description=f"{MISSED} heartbeats of a run are missing: what it leased is released if its process is dead.",
        match={"prefect.resource.id": ANYTHING},
        match_related=not_ours,
        after={HEARTBEAT},
        expect={ANYTHING},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=MISSED * heartbeat_seconds),
        parameters={"flow_run_id": run, "reason": f"no heartbeat for {MISSED * heartbeat_seconds} seconds"},
    )
    return (ended, silent)


def release_run(context: Context, flow_run_id: str, *, settle_seconds: float, reason: str = "") -> Pass:
    """Have every lease and rollout of a flow run released whose client is dead, as its request says; wait for that.

    Idempotent; safe beside a live keeper and beside the reaper: the ledger decides. ``on_client_lost="keep"`` keeps.

    Args:
        context: where.
        flow_run_id: of the run, as Prefect writes it.
        settle_seconds: how long to wait until they are gone, over all of them; 0: only begin.
        reason: why, for the record.

    Raises:
        InvalidInput: that is no flow run's id.
    """
    try:
        run = str(UUID(flow_run_id))
    except ValueError:
        raise InvalidInput("flow_run_id", f"{flow_run_id!r} is not the id of a flow run") from None
    found: dict[str, list[Finding]] = {"released": [], "stuck": [], "skipped": []}
    going: list[str] = []
    for seen in context.ledger.records(states=OPEN):
        if seen.record.owner.flow_run_id != run:
            continue
        try:
            why = _left_alone(context, seen.record) if seen.record.live else None
            record = seen.record if why else _taken(context, seen.record)
        except MlinfraError as error:  # one bad record never stops the others (rule R9)
            found["stuck"].append(_finding(seen.record, str(error)))
            continue
        if why is not None or record.live:
            found["skipped"].append(_finding(record, why or f"kept as its request says: {record.reason}"))
        else:
            going.append(record.id)
    until = time.monotonic() + settle_seconds
    for record_id in going:
        where, why = _settled(context, record_id, until)
        found[where].append(Finding(id=record_id, reason=as_line(why if not reason else f"{why} ({reason})")))
    return Pass(**{where: tuple(each) for where, each in found.items()})


def _left_alone(context: Context, record: KeptRecord) -> str | None:
    """Why a live record is not this run's to release; None: its client is gone."""
    process = record.client.process
    if stands_by_itself(context, record):
        return "it serves on after the run that made it"
    if record.client.kind == "none" or process is None:
        return "it has no client, by design"
    if why_gone(record, context.ledger.now()) is not None or record.client.lost_at is not None:
        return None
    if is_here(process):
        return f"its client, pid {process.pid}, is alive"
    return f"its client is on {process.host}, where this worker cannot look"


def _taken(context: Context, record: KeptRecord) -> KeptRecord:
    """Have the loss of the client noticed, and a keeper at work."""
    try:
        record = look_at_client(context, record)
    except LeaseLost:  # its keeper was quicker
        record = context.record(record.id)
    if record.state is not State.RELEASED:
        have_kept(context, record)
    return record


def _settled(context: Context, record_id: str, until: float) -> tuple[str, str]:
    try:
        keeper.wait_released(context, record_id, timeout=max(0.0, until - time.monotonic()))
    except NotYetDestroyed as error:
        stuck = context.record(record_id).state is State.STUCK
        return ("stuck" if stuck else "skipped"), str(error)
    except MlinfraError as error:
        return "stuck", str(error)
    return "released", context.record(record_id).reason or "released"


def _finding(record: KeptRecord, why: str) -> Finding:
    return Finding(id=record.id, reason=as_line(why))


__all__ = ["release_run", "release_triggers"]
