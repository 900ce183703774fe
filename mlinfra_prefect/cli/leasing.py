"""``up`` and ``release``: a lease that no process owns, and giving back whatever there is."""

from __future__ import annotations

import getpass
import json
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from mlinfra_prefect.cli.columns import cell
from mlinfra_prefect.cli.opening import meant, opened
from mlinfra_prefect.cli.outcome import DONE, complain
from mlinfra_prefect.cli.receipts import receipt_facts
from mlinfra_prefect.cli.screen import Facts, clock, screen, span
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.place import place_of
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import Key, ask
from mlinfra_prefect.lifecycle.request_file import as_request
from mlinfra_prefect.model.lease import Client, LeaseRecord, State
from mlinfra_prefect.model.names import minted
from mlinfra_prefect.model.process import Owner

RELEASE_WAIT_SECONDS = 900.0


def up(given: str, overrides: Mapping[str, Any], *, wait: bool, as_json: bool) -> int:
    """Provision a lease without a client and say how to use it. Interrupted while it waits, it gives the lease back."""
    context = opened()
    request = as_request(given, overrides)
    # A new key each time: two calls of `up` are two leases.
    key = Key(run=minted(), name=request.name, task_key="up")
    # From the moment at which the record is durable somebody must give it back: no interrupt between that and `try`.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        asked = ask(
            context, request, key=key, owner=_me(), client=Client(kind="none"),
            announce=partial(keeper.announce, context), withdraw=partial(keeper.withdraw, context),
        ).record  # fmt: skip
    except BaseException:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        raise
    record: KeptRecord = asked
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        keeper.entrust(context, asked)
        if wait:
            with _busy(f"{asked.id}: provisioning {asked.request.accelerator} on {asked.platform}"):
                record = keeper.wait_ready(context, asked.id, tell=partial(complain, word=asked.id))
    except KeyboardInterrupt:
        complain(f"giving {asked.id} back; a second Ctrl-C leaves that to the keeper", word="interrupted")
        keeper.release(context, asked.id, reason="interrupted while it was provisioned", drain=False)
        keeper.wait_released(context, asked.id, timeout=RELEASE_WAIT_SECONDS)
        raise
    assert isinstance(record, LeaseRecord)
    if as_json:
        kept = {"id", "state", "name", "platform", "environment", "created_at", "ready_at", "deadline"}
        print(json.dumps({"kind": "lease", **record.model_dump(mode="json", include=kept)}, indent=1))
    else:
        _say_how_to_use(context, record)
    return DONE


def release(wanted: str, *, wait: bool, as_json: bool) -> int:
    """Give a record back; a safe no-op when it is gone."""
    context = opened()
    record = meant(context, wanted)
    already = record.state is State.RELEASED
    if not already:
        # Beginning comes before anything that can be interrupted: from here on the keeper does it alone.
        record = keeper.release(context, record.id, reason=f"released by {_me()}", drain=True)
        if wait:
            record = _wait_released(context, record)
    if as_json:
        told = {"kind": record.kind, "id": record.id, "state": str(record.state), "already_released": already}
        print(json.dumps({**told, "receipt": record.receipt and record.receipt.model_dump(mode="json")}, indent=1))
        return DONE
    out = screen()
    if record.receipt is None:
        out.print(f"{record.kind} {record.id} is being released; `mlinfra-prefect show {record.id}` has its receipt.")
        return DONE
    if already:
        out.print(f"{record.kind} {record.id} was released already; nothing was done.")
    out.print(receipt_facts(record.receipt))
    return DONE


def _wait_released(context: Context, record: KeptRecord) -> KeptRecord:
    try:
        with _busy(f"{record.id}: releasing"):
            keeper.wait_released(context, record.id, timeout=RELEASE_WAIT_SECONDS)
    except KeyboardInterrupt:
        complain(f"the keeper goes on releasing {record.id}", word="interrupted")
        raise
    return context.record(record.id)


def _me() -> Owner:
    return Owner(user=getpass.getuser(), host=socket.gethostname())


def _say_how_to_use(context: Context, record: LeaseRecord) -> None:
    out = screen()
    life = (record.deadline - context.ledger.now()).total_seconds()
    if record.ready_at is None:
        out.print(f"lease {record.id} is {record.state}: the keeper provisions it.")
    else:
        took = (record.ready_at - record.created_at).total_seconds()
        out.print(cell(f"lease {record.id} is ready after {took:.2f} s.", "bold"))
    out.print(
        f"Nobody owns it: it lives until it is released, at the latest {clock(record.deadline)} (in {span(life)})."
    )
    if place_of(context, record.environment) == "foreground" and record.platform == "local":
        out.print("This is a container: the lease ends with it.")
    elif place_of(context, record.environment) == "foreground":
        out.print("This is a container: its keeper ends with it, and then a reaper or its deadline gives it back.")
    told = Facts()
    told.fact("in Python", f'with attach("{record.id}") as infra: infra.run(function)')
    told.fact("a command", f"mlinfra-prefect exec {record.id} -- COMMAND")
    told.fact("its logs", f"mlinfra-prefect logs -f {record.id}")
    told.fact("give back", f"mlinfra-prefect release {record.id}")
    out.print(told)


@contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show on a terminal that something goes on; into a pipe nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield
