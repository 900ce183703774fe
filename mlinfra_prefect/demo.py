"""``mlinfra-prefect demo``: the shipped flow here, or on an emulated AWS, and at its end the proof of what happened.

It needs no account, no Docker and nothing installed by hand. Unless told to keep the endpoint, it leaves no process
behind.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.keeper.desk import has_work, watcher_alive
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.environment_stacks import Wanted
from mlinfra_prefect.lifecycle.markdown import usd
from mlinfra_prefect.lifecycle.timeline import Span, timeline
from mlinfra_prefect.model.home import CACHE_VARIABLE, HOME_VARIABLE, Home
from mlinfra_prefect.model.receipt import Receipt

KEEP_MINUTES = 60
QUIET_SECONDS = 10.0
_STYLES = {"provision": "yellow", "train": "green", "release": "magenta", "deploy": "yellow", "serve": "cyan"}


def run_demo(*, keep: bool = False, emulated_aws: bool = False, as_json: bool = False) -> int:
    """Run the demo; returns an exit code.

    Args:
        keep: leave the endpoint serving for an hour.
        emulated_aws: train on an emulated AWS, in a home that is gone afterwards.
        as_json: print one JSON document instead of tables.
    """
    if not emulated_aws:
        return _run(keep=keep, as_json=as_json, platform="local", accelerator="cpu")
    if keep:
        raise InvalidInput("keep", "the home of this demo is gone afterwards", "Leave it out.")
    with _emulated(Console(stderr=as_json)):
        return _run(keep=False, as_json=as_json, platform="aws", accelerator="L4:1")


@contextmanager
def _emulated(console: Console) -> Iterator[None]:
    """An emulated AWS with an initialised environment, and a home of its own: its credentials are nobody's."""
    from mlinfra_prefect.lifecycle.making import make
    from mlinfra_prefect.lifecycle.proposal import propose
    from mlinfra_prefect.testing.aws.apart import emulated_apart

    # What can be made again is kept: providers and the server's environment are large.
    os.environ.setdefault(CACHE_VARIABLE, str(Home.from_environment().cache))
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]

    def told(line: str) -> None:
        console.print(f"  emulated AWS: {line}", style="dim", markup=False, highlight=False)

    try:
        with tempfile.TemporaryDirectory(prefix="mlinfra-demo-") as home, emulated_apart(told) as variables:
            os.environ |= {**variables, HOME_VARIABLE: home}
            context = Context()
            console.print(f"AWS is emulated at {variables['AWS_ENDPOINT_URL']}: its machines are processes here.")
            proposal = propose(context, Wanted("dev", (variables["AWS_REGION"],)))
            console.print(
                f"mlinfra-prefect init aws: {sum(proposal.creates.values())} resources, "
                f"{proposal.usd_per_month:.2f} USD a month while nothing is leased"
            )
            make(context, proposal, tell=lambda line: console.print(f"  {line}", style="dim"))
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(*, keep: bool, as_json: bool, platform: Literal["local", "aws"], accelerator: str) -> int:
    # Prefect reads these when it is imported; a demo has nothing to tell to anybody.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # Its temporary server starts cold here, while modules are compiled: Prefect's 20 s do not last on a busy machine.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
    context = Context()
    console = Console(stderr=as_json)
    endpoint = _free_name(context)
    first = not (context.home.cache / "environments").is_dir()
    console.print(f"[bold]mlinfra-prefect demo[/]  home {context.home.root}")
    if first:
        console.print("The first run installs the server's environment (KServe), which takes a minute.", style="dim")
    from mlinfra_prefect.flows.model_lifecycle import model_lifecycle

    report: dict[str, Any] | None = model_lifecycle(
        accelerator=accelerator, platform=platform, endpoint=endpoint, keep_minutes=KEEP_MINUTES if keep else 0
    )
    if report is None:
        console.print("The model was not good enough to be served: see the run's state. Everything is given back.")
        return 1
    records = [context.record(report["lease_id"]), context.record(report["endpoint_id"])]
    spans = timeline(records, now=context.ledger.now())
    receipts = [record.receipt for record in records if record.receipt is not None]
    if not keep:
        _wait_until_quiet(context.home)
    if as_json:
        told = {
            "report": report,
            "timeline": [span.model_dump(mode="json") | {"seconds": span.seconds} for span in spans],
            "receipts": [receipt.model_dump(mode="json") for receipt in receipts],
        }
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        _show(console, report, spans, receipts, keep=keep)
    return 0 if all(receipt.clean for receipt in receipts) else 1


def _free_name(context: Context) -> str:
    """The endpoint's name: an earlier demo may have kept its own."""
    for number in range(1, 100):
        name = "digits" if number == 1 else f"digits-{number}"
        if context.ledger.holder(f"endpoint:dev:{name}") is None:
            return name
    return f"digits-{int(time.time())}"


def _wait_until_quiet(home: Home) -> None:
    """The keeper goes when nothing is left to keep: wait for it, so that nothing is left behind."""
    until = time.monotonic() + QUIET_SECONDS
    while not has_work(home) and watcher_alive(home) and time.monotonic() < until:
        time.sleep(0.05)


def _show(
    console: Console, report: dict[str, Any], spans: tuple[Span, ...], receipts: list[Receipt], *, keep: bool
) -> None:
    console.print()
    console.print(Panel(_bars(spans, max(20, min(console.width, 120) - 44)), title="timeline", title_align="left"))
    for receipt in receipts:
        console.print(
            Panel(receipt_table(receipt), title=f"receipt of {receipt.kind} {receipt.id}", title_align="left")
        )
    lease = next((receipt for receipt in receipts if receipt.kind == "lease"), None)
    console.print(
        f"accuracy [bold green]{100 * report['served_accuracy']:.1f} %[/] on {report['asked']} held-out digits, "
        f"as asked of the endpoint over HTTP (on the node: {100 * report['scores']['accuracy']:.1f} %)"
    )
    if lease is not None:
        console.print(
            f"the node was up {lease.up_seconds:.1f} s, trained {lease.trained_seconds:.1f} s; "
            f"paid but not training: [bold]{lease.idle_seconds:.1f} s[/]"
        )
    console.print(f"artifact {report['artifact_id']}  sha256 {report['artifact_sha256'][:16]}…")
    if keep:
        console.print(
            f"kept: {report['url']} for {KEEP_MINUTES} minutes; "
            f"its token: mlinfra-prefect endpoints --token {report['endpoint_id']}; "
            f"give it back: mlinfra-prefect release {report['endpoint_id']}"
        )


def _bars(spans: tuple[Span, ...], width: int) -> Table:
    began, ended = min(span.began for span in spans), max(span.ended for span in spans)
    whole = max((ended - began).total_seconds(), 1e-9)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    for span in spans:
        start = int((span.began - began).total_seconds() / whole * width)
        length = max(1, round(span.seconds / whole * width))
        bar = Text(
            " " * min(start, width - 1) + "█" * min(length, width - min(start, width - 1)), style=_STYLES[span.what]
        )
        name = span.detail.rpartition(":")[2] or span.what
        table.add_row(f"{span.what} {name}" if name != span.what else span.what, f"{span.seconds:.1f} s", bar)
    return table


def receipt_table(receipt: Receipt) -> Table:
    """A receipt for people."""
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("reason", receipt.reason)
    table.add_row("created", ", ".join(receipt.created) or "nothing")
    table.add_row("destroyed", ", ".join(receipt.destroyed) or "nothing")
    for search in receipt.searches:
        found = ", ".join(search.found) or "nothing"
        table.add_row("searched", f"{search.what} on {search.where} at {search.at:%H:%M:%S}: found {found}")
    table.add_row("up", f"{receipt.up_seconds:.1f} s, idle {receipt.idle_seconds:.1f} s")
    table.add_row("cost", usd(receipt.cost_usd))
    return table
