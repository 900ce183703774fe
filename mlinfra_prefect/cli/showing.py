"""``show``: everything that the ledger knows of one lease, endpoint or rollout."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from mlinfra_prefect.cli.columns import Table, cell
from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.receipts import addenda_facts, receipt_facts
from mlinfra_prefect.cli.screen import WIDE, Facts, Screen, clock, screen, span, state_cell
from mlinfra_prefect.ledger import KeptRecord, Transition
from mlinfra_prefect.lifecycle import addenda, ladder
from mlinfra_prefect.lifecycle.archiving import is_archived
from mlinfra_prefect.local.process import is_here, is_provably_dead
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.process import ProcessIdentity

_VERDICTS = {True: ("passed", "green"), False: ("failed", "red")}


def show(wanted: str, *, as_json: bool) -> int:
    """Print a record, its attempts, its history and its receipt."""
    context = opened()
    record = meant(context, wanted)
    history = context.ledger.history(record.id)
    since = addenda.of(context.home, record.id)
    if as_json:
        dumped = record.model_dump(mode="json")
        print(json.dumps({
            "record": dumped,
            "attempts": dumped["attempts"],
            "history": [line.model_dump(mode="json") for line in history],
            "receipt": dumped["receipt"],
            "addenda": [found.model_dump(mode="json") for found in since],
        }, indent=1))  # fmt: skip
        return DONE
    out = screen()
    _summary(out, record)
    if record.attempts:
        _section(out, "Attempts", _attempts(record))
    if isinstance(record, LeaseRecord) and record.jobs:
        _section(out, "Jobs", _jobs(record))
    if isinstance(record, EndpointRecord):
        _section(out, "Versions", _versions(record))
    if isinstance(record, RolloutRecord) and record.steps:
        _section(out, "Steps", _steps(record))
    _section(out, "History", _history(history, wide=out.width >= WIDE))
    if record.receipt is not None:
        _section(out, "Receipt", receipt_facts(record.receipt))
    if since:
        _section(out, "Since its release", addenda_facts(since))
    if record.state is State.RELEASED and is_archived(context.home.record_dir(record.id)):
        out.print()
        out.print(cell(f"State and record are kept in {context.home.record_dir(record.id)}.", "dim"))
    return DONE


def _section(out: Screen, title: str, what: Table) -> None:
    out.print()
    out.print(cell(title, "bold underline"))
    out.print(what)


def _summary(out: Screen, record: KeptRecord) -> None:
    told = Facts()
    told.fact(record.kind, record.id, "bold")
    told.add(cell("state", "dim"), state_cell(record.state))
    if record.reason:
        told.fact("because", record.reason, "red" if record.state is State.STUCK else "")
    told.fact("name", record.name)
    if isinstance(record, LeaseRecord):
        request = record.request
        told.fact("asked for", f"{request.accelerator}, {request.market}, {record.environment} on {record.platform}")
    else:
        if isinstance(record, RolloutRecord):
            told.fact("version", f"{record.version} of {record.endpoint}")
        told.fact("url", record.url if isinstance(record, EndpointRecord) else ", ".join(record.urls))
        told.fact("serves in", f"{record.environment} on {record.platform}")
    told.fact("owner", record.owner)
    told.fact("created", clock(record.created_at))
    told.fact("deadline" if isinstance(record, LeaseRecord) else "expires", clock(record.deadline) or "never")
    if isinstance(record, LeaseRecord) and record.keep_until is not None:
        told.fact("kept until", clock(record.keep_until))
    told.fact("client", _client(record))
    keeper = record.keeper
    if keeper is not None and record.state is not State.RELEASED:
        told.fact("keeper", f"{_process(keeper.process)}, place {keeper.place}, generation {record.generation}")
    out.print(told)


def _client(record: KeptRecord) -> str:
    client = record.client
    if client.process is None:
        return "none, by design"
    if client.lost_at is not None:
        return f"pid {client.process.pid} on {client.process.host}, gone since {clock(client.lost_at)}"
    return _process(client.process) + (f", ended {clock(client.ended_at)}" if client.ended_at else "")


def _process(process: ProcessIdentity) -> str:
    alive = "" if not is_here(process) else (" (gone)" if is_provably_dead(process) else " (alive)")
    return f"pid {process.pid} on {process.host}{alive}"


def _attempts(record: KeptRecord) -> Table:
    rented = record.platform != "local"
    more = ("BECAME", "USD", "OUTCOME") if rented else ()
    heads = ("#", "STATE", "OFFER", "UP", *more, "ENGINE", "RESOURCES")
    shown = Table(heads, whole=("#", "STATE", "UP", "USD"), folded=("OFFER", "OUTCOME") if rented else ())
    now = datetime.now(UTC)
    for each, row in zip(record.attempts, ladder.table(record, now), strict=True):
        up = ""
        if each.up_at is not None:
            up = span(((each.stopped_at or each.gone_at or now) - each.up_at).total_seconds())
        offer = row.tried if rented else f"{each.offer.type} in {each.offer.region}"
        told = (cell(row.became), cell(f"{row.cost_usd:.2f}"), cell(row.outcome)) if rented else ()
        shown.add(
            cell(each.number), state_cell(each.state), cell(offer), cell(up), *told,
            cell(each.engine), cell(", ".join(each.resources)),
        )  # fmt: skip
    return shown


def _jobs(record: LeaseRecord) -> Table:
    shown = Table(("JOB", "STATE", "TOOK", "ARTIFACT", "WHAT"), whole=("JOB", "STATE", "ARTIFACT"))
    for job in record.jobs:
        took = (
            f"{(job.finished_at - job.started_at).total_seconds():.1f}s" if job.started_at and job.finished_at else ""
        )
        shown.add(cell(job.job_id), state_cell(job.state), cell(took), cell(job.artifact_id), cell(job.label))
    return shown


def _versions(record: EndpointRecord) -> Table:
    shown = Table(("#", "SHARE", "STATE", "ARTIFACT", "SHA256"), whole=("#", "SHARE", "STATE", "ARTIFACT"))
    for each in record.versions:
        cells = (each.version, f"{each.share} %", each.state, each.artifact.id, each.sha256)
        shown.add(*map(cell, cells))
    return shown


def _steps(record: RolloutRecord) -> Table:
    shown = Table(("SHARE", "PROBE", "WHAT WAS FOUND"), whole=("SHARE", "PROBE"), folded=("WHAT WAS FOUND",))
    for each in record.steps:
        verdict = cell("is watched", "yellow") if each.ok is None else cell(*_VERDICTS[each.ok])
        shown.add(cell(f"{each.share} %"), verdict, cell(each.reason))
    return shown


def _history(history: list[Transition], *, wide: bool) -> Table:
    heads = ("TIME", "GEN", "STATE", "ACTOR") if wide else ("TIME", "STATE")
    shown = Table((*heads, "REASON"), whole=heads, folded=("REASON",))
    for line in history:
        cells = [cell(f"{line.time:%m-%d %H:%M:%S}"), state_cell(line.state), cell(line.reason)]
        if wide:
            cells[1:1] = [cell(line.generation)]
            cells[3:3] = [cell(line.actor)]
        shown.add(*cells)
    return shown
