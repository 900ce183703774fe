"""``show``: everything that the ledger knows of one lease or endpoint."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE
from mlinfra_prefect.cli.receipts import receipt_facts
from mlinfra_prefect.cli.screen import WIDE, cell, clock, facts, plain, screen, span, state_text, table
from mlinfra_prefect.keeper.desk import is_provably_dead
from mlinfra_prefect.ledger import KeptRecord, Transition
from mlinfra_prefect.local.process import is_here
from mlinfra_prefect.model.lease import EndpointRecord, LeaseRecord, State
from mlinfra_prefect.model.process import ProcessIdentity


def show(wanted: str, *, as_json: bool) -> int:
    """Print a record, its attempts, its history and its receipt."""
    context = opened()
    record = meant(context, wanted)
    history = context.ledger.history(record.id)
    if as_json:
        dumped = record.model_dump(mode="json")
        print(json.dumps({
            "record": dumped,
            "attempts": dumped["attempts"],
            "history": [line.model_dump(mode="json") for line in history],
            "receipt": dumped["receipt"],
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
    _section(out, "History", _history(history, wide=out.width >= WIDE))
    if record.receipt is not None:
        _section(out, "Receipt", receipt_facts(record.receipt))
    return DONE


def _section(out: Console, title: str, what: Table) -> None:
    out.print()
    out.print(title, style="bold underline")
    out.print(what)


def _summary(out: Console, record: KeptRecord) -> None:
    told = facts()
    told.add_row(record.kind, plain(record.id, style="bold"))
    told.add_row("state", state_text(record.state))
    if record.reason:
        told.add_row("because", plain(record.reason, style="red" if record.state is State.STUCK else ""))
    told.add_row("name", plain(record.name))
    if isinstance(record, LeaseRecord):
        request = record.request
        told.add_row(
            "asked for", plain(f"{request.accelerator}, {request.market}, {record.environment} on {record.platform}")
        )
    else:
        told.add_row("url", plain(record.url))
        told.add_row("serves in", plain(f"{record.environment} on {record.platform}"))
    told.add_row("owner", plain(record.owner))
    told.add_row("created", plain(clock(record.created_at)))
    told.add_row("deadline" if isinstance(record, LeaseRecord) else "expires", plain(clock(record.deadline) or "never"))
    told.add_row("client", plain(_client(record)))
    keeper = record.keeper
    if keeper is not None and record.state is not State.RELEASED:
        told.add_row(
            "keeper", plain(f"{_process(keeper.process)}, place {keeper.place}, generation {record.generation}")
        )
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
    shown = table("#", "STATE", "OFFER", "UP", "ENGINE", "RESOURCES", whole=("#", "STATE", "UP"))
    for each in record.attempts:
        up = ""
        if each.up_at is not None:
            up = span(((each.gone_at or datetime.now(UTC)) - each.up_at).total_seconds())
        shown.add_row(
            cell(each.number), state_text(each.state), cell(f"{each.offer.type} in {each.offer.region}"),
            cell(up), cell(each.engine), cell(", ".join(each.resources)),
        )  # fmt: skip
    return shown


def _jobs(record: LeaseRecord) -> Table:
    shown = table("JOB", "STATE", "TOOK", "ARTIFACT", "WHAT", whole=("JOB", "STATE", "ARTIFACT"))
    for job in record.jobs:
        took = (
            f"{(job.finished_at - job.started_at).total_seconds():.1f}s" if job.started_at and job.finished_at else ""
        )
        shown.add_row(cell(job.job_id), state_text(job.state), cell(took), cell(job.artifact_id), cell(job.label))
    return shown


def _versions(record: EndpointRecord) -> Table:
    shown = table("#", "SHARE", "STATE", "ARTIFACT", "SHA256", whole=("#", "SHARE", "STATE", "ARTIFACT"))
    for each in record.versions:
        cells = (each.version, f"{each.share} %", each.state, each.artifact.id, each.sha256)
        shown.add_row(*map(cell, cells))
    return shown


def _history(history: list[Transition], *, wide: bool) -> Table:
    heads = ("TIME", "GEN", "STATE", "ACTOR") if wide else ("TIME", "STATE")
    shown = table(*heads, "REASON", whole=heads, folded=("REASON",))
    for line in history:
        cells = [cell(f"{line.time:%m-%d %H:%M:%S}"), state_text(line.state), plain(line.reason)]
        if wide:
            cells[1:1] = [cell(line.generation)]
            cells[3:3] = [cell(line.actor)]
        shown.add_row(*cells)
    return shown
