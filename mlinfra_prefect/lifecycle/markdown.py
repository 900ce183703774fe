"""What people read in the Prefect UI, as markdown: plan, receipt, endpoint, timeline, verdict, rollout.

Pure: a record goes in, a page comes out. Names, reasons and addresses are other people's words, so each of them is
escaped on its way in: none can end a cell, become HTML, a link or a picture, or leave its place in a diagram.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from urllib.parse import quote, urlsplit

from mlinfra_prefect.lifecycle.ladder import Row
from mlinfra_prefect.lifecycle.picture import data_uri, duration, label, shortened, timeline_svg
from mlinfra_prefect.lifecycle.timeline import Span
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.offer import Offer, Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.verdict import Verdict

MOST_ROWS = 100
MOST_FILES = 20
MOST_NODES = 12
"""Of a diagram: more boxes are told as a number."""
RED = "\N{LARGE RED CIRCLE}"
"""Marks a page that calls for somebody."""
LONGEST_LABEL = 48
LONGEST_CELL = 300
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_MEANS_SOMETHING = re.compile(r"[&<>|`*_\[\]\\~!#$()]|(?<=http):|(?<=https):|(?<=www)\.", re.IGNORECASE)
_TOGETHER = "\N{NO-BREAK SPACE}"
_NOT_FOR_LABELS = re.compile(r"[^\w .,:/()+=%@'-]")
_URL_SAFE = ":/?@&=+,;%~._-"


def escaped(text: object, longest: int = LONGEST_CELL) -> str:
    """Return other people's text as it can stand in a cell or a sentence: one line, and nothing in it is markup."""
    line = _CONTROL.sub(" ", str(text)).strip()
    line = line if len(line) <= longest else f"{line[: longest - 1]}…"
    # Backslashes, not entities: Prefect's older UI shows entities as they are.
    return _MEANS_SOMETHING.sub(r"\\\g<0>", line)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table; every cell is escaped. What is over `MOST_ROWS` is told as a number."""
    listed = [[escaped(cell) for cell in row] for row in rows]
    lines = [heads, ["---"] * len(heads), *listed[:MOST_ROWS]]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text if len(listed) <= MOST_ROWS else f"{text}\n\nand {len(listed) - MOST_ROWS} more"


def usd(amount: float) -> str:
    """Return an amount of money; small ones keep their digits, so that something never reads as nothing."""
    return f"{amount:.2f} USD" if amount == 0 or amount >= 0.01 else f"{amount:.6f} USD"


def plan_markdown(plan: Plan, *, with_files: bool = True) -> str:
    """What will exist, what it costs at most, when it dies, and what travels; with the way from request to release.

    Args:
        plan: what is planned.
        with_files: name the files that travel; where room is short, their number is enough.
    """
    request, offer = plan.request, plan.offer
    size = f"{len(plan.code_files)} file(s), {_size(plan.code_bytes)}" if plan.code_files else "not known yet"
    dies = plan.made_at + timedelta(minutes=plan.max_minutes)
    files = ", ".join(escaped(each) for each in plan.code_files[:MOST_FILES])
    more = f", and {len(plan.code_files) - MOST_FILES} more" if len(plan.code_files) > MOST_FILES else ""
    return "\n".join((
        f"## Plan for {escaped(request.name)}", "",
        (f"**{escaped(request.accelerator)}** on {escaped(plan.platform)}, environment {escaped(request.environment)}: "
         f"{escaped(offer.type)} in {escaped(offer.region)}, {escaped(offer.market)}."), "",
        f"* **costs at most {usd(plan.estimate_usd)}**: {request.nodes} node(s) at {usd(offer.usd_per_hour)} an hour",
        (f"* **dies after {plan.max_minutes} min** at the latest, whatever happens: at {dies:%Y-%m-%d %H:%M} UTC if it "
         f"is asked for when it was planned ({plan.made_at:%Y-%m-%d %H:%M:%S} UTC)"),
        f"* made by {escaped(plan.engine)} from {escaped(plan.stack)}",
        f"* code that travels: {size}",
        "", "### What will exist", "",
        table(("address", "action"), [(each.address, each.action) for each in plan.resources]), "",
        "### Offers, in the order in which they are tried", "",
        table(*_ladder(plan)), "",
        *(f"* {escaped(remark)}" for remark in plan.remarks), *(("",) if plan.remarks else ()),
        "### The way of it", "",
        _diagram(plan), "",
        *(("### Files that travel", "", f"{files}{more}", "") if files and with_files else ()),
    ))  # fmt: skip


def stuck_markdown(listed: Sequence[tuple[str, str]], *, now: datetime) -> str:
    """What is stuck and why, in red; or that nothing is any more.

    Args:
        listed: id and reason of each.
        now: when that was seen.
    """
    seen = f"Seen by the reaper at {now:%Y-%m-%d %H:%M:%S} UTC."
    if not listed:
        return f"## Nothing is stuck any more\n\n{seen}"
    what = "What could not be released is tried again for ever. It may cost money: `mlinfra-prefect show ID` says more."
    return "\n".join((f"## {RED} {len(listed)} stuck", "", what, "", table(("id", "because"), listed), "", seen))


def receipt_markdown(receipt: Receipt, *, name: str = "", attempts: Sequence[Row] = ()) -> str:
    """The proof that it is gone: what was created and destroyed, what was searched and not found, what it cost.

    Args:
        receipt: the proof.
        name: of what is gone; its id when not given.
        attempts: what was tried, where that was more than this machine.
    """
    left = sorted(set(receipt.created) - set(receipt.destroyed))
    verdict = (
        "**Clean**: the last two looks found nothing." if receipt.clean and not left
        else "**NOT CLEAN**: something may be left; see the looks and the resources below."
    )  # fmt: skip
    gone = set(receipt.destroyed)
    ended = any(look.ended for look in receipt.searches)
    return "\n".join((
        f"## Receipt of {receipt.kind} {escaped(name or receipt.id)}", "",
        verdict, "",
        table(("what", "value"), (
            ("id", receipt.id),
            ("released because", receipt.reason),
            ("asked for", f"{receipt.requested_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("released", f"{receipt.released_at:%Y-%m-%d %H:%M:%S} UTC"),
            ("up", duration(receipt.up_seconds)),
            ("trained", duration(receipt.trained_seconds)),
            ("up and idle", duration(receipt.idle_seconds)),
            ("cost", usd(receipt.cost_usd)),
            ("attempts", receipt.attempts),
            ("resources", f"{len(gone)} of {len(receipt.created)} destroyed"),
        )), "",
        *(("### Attempts", "", table(("", "tried", "became", "why not", "USD"), [
            (row.number, row.tried, row.became, row.outcome, f"{row.cost_usd:.4f}") for row in attempts
        ]), "") if attempts else ()),
        "### Resources", "",
        table(("resource", "state"), [(each, "destroyed" if each in gone else "LEFT") for each in receipt.created]), "",
        "### Looks for what is left", "",
        table(("when (UTC)", "what was searched for", "where", "found", *(("ended by it",) if ended else ())), [
            (f"{look.at:%H:%M:%S}", look.what, look.where, ", ".join(look.found) or "nothing",
             *((", ".join(look.ended),) if ended else ()))
            for look in receipt.searches
        ]), "",
    ))  # fmt: skip


def endpoint_markdown(record: EndpointRecord) -> str:
    """The link to the stable address, and every version with its share of the requests."""
    serves = (
        f"serves until {record.expires_at:%Y-%m-%d %H:%M} UTC" if record.expires_at else "serves until it is released"
    )
    if not record.live:
        serves = f"gone since {record.released_at:%Y-%m-%d %H:%M:%S} UTC" if record.released_at else "being given back"
    rows = [
        (each.version, each.state, f"{each.share}{_TOGETHER}%", shortened(each.artifact.name, LONGEST_LABEL),
         _metrics(each.artifact.metrics), each.reason)
        for each in reversed(record.versions)
    ]  # fmt: skip
    made_of = [(each.version, each.artifact.id, each.sha256[:12]) for each in reversed(record.versions)]
    return "\n".join((
        f"## {_link(record.name, record.url)}", "",
        (f"Environment {escaped(record.environment)}, on {escaped(record.platform)}, {escaped(record.state)}, "
         f"{serves}{'' if record.serving.auth == 'token' else ', **unauthenticated**'}."), "",
        table(("version", "state", "share", "model", "metrics", "why"), rows), "",
        table(("version", "artifact", "sha256"), made_of), "",
    ))  # fmt: skip


def timeline_markdown(spans: Sequence[Span], *, title: str, names: Mapping[str, str] | None = None) -> str:
    """The timeline as a picture, and the same as a table for who does not see pictures."""
    rows = [
        (shortened(label(span, names or {}), LONGEST_LABEL), f"{span.began:%H:%M:%S}", f"{span.ended:%H:%M:%S}",
         duration(span.seconds).replace(" ", _TOGETHER))
        for span in spans
    ]  # fmt: skip
    picture = data_uri(timeline_svg(spans, title=title, names=names))
    return "\n".join((
        f"![{escaped(title)}]({picture})", "",
        table(("what", "from (UTC)", "to (UTC)", "took"), rows), "",
    ))  # fmt: skip


def verdict_markdown(verdict: Verdict, *, subject: str = "") -> str:
    """Whether it passed, why, and every check with the numbers that it compared."""
    about = f" of {escaped(subject)}" if subject else ""
    said = "passed" if verdict.ok else {"gate": "refused", "probe": "failed"}[verdict.kind]
    rows = [
        ("passed" if each.ok else "FAILED", each.name, _number(each.candidate), _number(each.current),
         _number(each.threshold), each.detail)
        for each in verdict.checks
    ]  # fmt: skip
    return "\n".join((
        f"## {verdict.kind.capitalize()}{about}: {said}", "",
        f"Because: {escaped(verdict.reason)}", "",
        table(("", "check", "candidate", "current", "threshold", "detail"), rows), "",
    ))  # fmt: skip


def rollout_markdown(record: RolloutRecord, *, endpoint: str) -> str:
    """Every share that a candidate was given, what it did meanwhile, and what was decided."""
    said = {None: "being watched", True: "passed", False: "FAILED"}
    rows = [
        (f"{step.share}{_TOGETHER}%", f"{step.began_at:%H:%M:%S}", said[step.ok], step.requests, step.errors,
         "" if step.p95_ms is None else f"{step.p95_ms:.1f}", _number(step.agreement), step.reason)
        for step in record.steps
    ]  # fmt: skip
    heads = ("share", "from (UTC)", "verdict", "requests", "errors", "p95 (ms)", "agreement", "what was found")
    end = "promoted" if record.promoted_at else escaped(record.reason or record.state)
    return "\n".join((
        f"## Rollout of {escaped(endpoint)}, version {record.version}: {end}", "",
        f"Model {escaped(record.artifact.name)}, {escaped(record.artifact.id)}", "",
        table(heads, rows), "",
    ))  # fmt: skip


def _ladder(plan: Plan) -> tuple[Sequence[str], list[Sequence[object]]]:
    """Heads and rows: of what a cloud rents also its memory, and what the quota leaves."""
    rented = any(offer.vcpus for offer in plan.offers)

    def more(offer: Offer) -> tuple[object, ...]:
        left = "" if offer.quota_headroom is None else offer.quota_headroom
        return (offer.gpu_memory_gib or "", left) if rented else ()

    heads = ("", "type", "region", "zones", "market", "USD/h", "GPUs",
             *(("GiB/GPU", "vCPUs left") if rented else ()), "why not")  # fmt: skip
    rows: list[Sequence[object]] = [
        ("taken first" if offer == plan.offer else "", offer.type, offer.region, ", ".join(offer.zones) or "any",
         offer.market, f"{offer.usd_per_hour:.2f}", offer.gpus, *more(offer), offer.skipped or "")
        for offer in plan.offers
    ]  # fmt: skip
    return heads, rows


def _diagram(plan: Plan) -> str:
    boxes = [
        f'    r{number}["{_label(each.address)}"]' for number, each in enumerate(plan.resources[:MOST_NODES], start=1)
    ]
    if len(plan.resources) > MOST_NODES:
        boxes.append(f'    more["and {len(plan.resources) - MOST_NODES} more"]')
    stack = boxes or ['    r1["nothing to create"]']
    price = f"{plan.offer.usd_per_hour:.2f} USD/h"
    return "\n".join((
        "```mermaid", "flowchart LR",
        f'  request["request: {_label(plan.request.accelerator)}"] --> offer',
        f'  offer["offer: {_label(plan.offer.type)}, {price}"] --> stack',
        f'  subgraph stack["stack: {_label(plan.stack)}"]', *stack, "  end",
        f'  stack --> node["{plan.request.nodes} node(s), {plan.offer.gpus} GPU(s) each"]',
        '  node --> training["training"]',
        f'  training --> release["release, after {plan.max_minutes} min at the latest"]',
        "```",
    ))  # fmt: skip


def _label(text: object) -> str:
    # Between quotes; all that could end them, be markup, or be one of the language's own codes becomes a question mark.
    return shortened(_NOT_FOR_LABELS.sub("?", str(text)), LONGEST_LABEL)


def _link(text: str, url: str) -> str:
    if urlsplit(url).scheme not in {"http", "https"}:
        return f"{escaped(text)} ({escaped(url)})"
    return f"[{escaped(text)}]({quote(url, safe=_URL_SAFE)}) at {escaped(url)}"


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:.4g}" for name, value in metrics.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _size(count: int) -> str:
    return f"{count} bytes" if count < 10_000 else f"{count / 1024:.0f} KiB"
