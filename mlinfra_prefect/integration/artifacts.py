"""Artifacts: what a person finds in the Prefect UI beside a run. Copies for reading; the ledger is the record.

So none of them may ever harm a run: outside of one nothing happens, and where Prefect's API is away, slow or refuses,
the run goes on with one warning. They are made after what they tell of is done, never between a lease and its release.

Each has a key that stays the same over runs (`mlinfra-receipt-training`), so that the UI shows its history. All are
markdown: the UI draws mermaid in it, and pictures whose address holds the picture itself; an image artifact would show
that address, kilobytes of it, as text beneath the picture.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextvars import copy_context
from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate

from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.settings import settings
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle import ladder
from mlinfra_prefect.lifecycle.markdown import (
    endpoint_markdown,
    escaped,
    plan_markdown,
    receipt_markdown,
    rollout_markdown,
    timeline_markdown,
    verdict_markdown,
)
from mlinfra_prefect.lifecycle.timeline import timeline
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.verdict import Verdict

WAIT_SECONDS = 10.0
"""For the API, at most, for one artifact."""
_log = logging.getLogger("mlinfra_prefect")
_warned = threading.Event()


def show_plan(plan: Plan) -> UUID | None:
    """Show what will exist, what it costs and when it dies. Like all of these: returns the artifact's id, or None."""
    about = f"{plan.request.accelerator}: at most {plan.max_minutes} min, at most {plan.estimate_usd:.2f} USD"
    return _show("plan", plan.request.name, about, lambda: plan_markdown(plan))


def show_receipt(receipt: Receipt, record: KeptRecord) -> UUID | None:
    """Show the proof that something is gone, under the name of the record that it is of."""
    about = f"{'clean' if receipt.clean else 'NOT CLEAN'}: {receipt.kind} {receipt.id} is gone"

    def render() -> str:
        tried = ladder.table(record, receipt.released_at) if record.platform != "local" else ()
        return receipt_markdown(receipt, name=record.name, attempts=tried)

    return _show("receipt", _subject(record), about, render)


def show_endpoint(record: EndpointRecord) -> UUID | None:
    """Show the link to the stable URL, and what is served behind it."""
    return _show("endpoint", _subject(record), f"{record.name} at {record.url}", lambda: endpoint_markdown(record))


def show_rollout(record: RolloutRecord, endpoint: EndpointRecord) -> UUID | None:
    """Show what each step of a rollout found."""
    about = f"version {record.version} of {endpoint.name}"
    return _show("rollout", _subject(endpoint), about, lambda: rollout_markdown(record, endpoint=endpoint.name))


def show_timeline(record: KeptRecord, *more: KeptRecord) -> UUID | None:
    """Show how long each phase took, as a picture; of several records on one axis, under the first one's name."""
    records = (record, *more)
    names = {
        each.id: f"{each.name} v{each.version}" if isinstance(each, RolloutRecord) else each.name for each in records
    }
    title = ", ".join(f"{each.kind} {each.name}" for each in records)

    def render() -> str:
        return timeline_markdown(timeline(records, now=datetime.now(UTC)), title=title, names=names)

    return _show("timeline", _subject(record), f"How long each phase of {title} took", render)


def show_verdict(verdict: Verdict, subject: str) -> UUID | None:
    """Show every check of a gate or a probe.

    Args:
        verdict: what was decided.
        subject: whose candidate it is, such as the endpoint's name; part of the key.
    """
    return _show(verdict.kind, subject, str(verdict), lambda: verdict_markdown(verdict, subject=subject))


def artifact_key(kind: str, subject: str) -> str:
    """Return the key of an artifact: of any text, what Prefect takes as a key."""
    plain = "".join(each if each in "abcdefghijklmnopqrstuvwxyz0123456789" else "-" for each in subject.lower())
    return "-".join(part for part in ("mlinfra", kind, plain.strip("-")) if part)


def _subject(record: KeptRecord) -> str:
    # The same name in two environments is two endpoints, and so two histories.
    return record.name if isinstance(record, LeaseRecord) else f"{record.environment}-{record.name}"


def _show(kind: str, subject: str, about: str, render: Callable[[], str]) -> UUID | None:
    return harmless(lambda: created(artifact_key(kind, subject), about, render()))


def harmless(write: Callable[[], UUID | None]) -> UUID | None:
    """Have an artifact written inside of a run, in a bounded time; whatever is wrong with it is one warning."""
    if not runs.in_run():
        return None
    made: list[UUID] = []
    problems: list[Exception] = []

    def create() -> None:
        try:
            found = write() if settings().artifacts_enabled else None
            made.extend([found] if found is not None else [])
        except Exception as problem:  # noqa: BLE001 (a copy for reading must never end a run, whatever is wrong with it)
            problems.append(problem)

    # A thread, so that a hanging API costs seconds and not the minutes of all of Prefect's retries. With its context:
    # the run and Prefect's settings are context variables.
    thread = threading.Thread(target=copy_context().run, args=(create,), name="mlinfra-artifact", daemon=True)
    try:
        thread.start()
    except RuntimeError as problem:  # this process may have no more threads, or is at its end
        _warn(problem)
        return None
    thread.join(WAIT_SECONDS)
    if problems or thread.is_alive():
        _warn(problems[0] if problems else f"no answer in {WAIT_SECONDS:.0f} s")
    return made[0] if made else None


def created(key: str, about: str, markdown: str) -> UUID:
    """Create a markdown artifact of the run or task that this is called in; raises what Prefect's client does."""
    place = runs.here()
    task = place.task.task_run if place.task else None
    flow = place.flow.flow_run if place.flow else None
    wanted = ArtifactCreate(
        key=key, type="markdown", description=escaped(about), data=markdown,
        flow_run_id=flow.id if flow else task.flow_run_id if task else None, task_run_id=task.id if task else None,
    )  # fmt: skip
    # A client of its own: the run's is closed with the run, which does not wait for this thread.
    with get_client(httpx_settings={"timeout": WAIT_SECONDS}, sync_client=True) as client:
        return client.create_artifact(wanted).id


def _warn(problem: object) -> None:
    """Say it once in a process, and not through Prefect, which may be what is wrong."""
    if not _warned.is_set():
        _warned.set()
        _log.warning("Artifacts are missing in Prefect; the run goes on, and the ledger has it all: %s", problem)
