"""Events: what happens to leases, trainings and rollouts, told to Prefect so that automations can act on it.

They are told by flows, from what the ledger says, after it was done; the keeper does not know Prefect. So what a keeper
does alone is told by the next flow that looks. An event's id is made of the ledger's id, the record's and the
transition: telling the same again, from a retry or from another process, is the same event.

Telling returns at once (Prefect sends from a thread of its own), and never raises. Outside of a run nothing is told:
`emit_event` would start a server for it. Payloads are `model.event`, documented in ``docs/events.md``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from prefect.events import emit_event
from prefect.settings import get_current_settings

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.news import News, of_back, of_endpoint, of_gate, of_job, of_lease, of_loss, of_rollout
from mlinfra_prefect.integration.settings import settings
from mlinfra_prefect.model import event as payloads
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import EndpointRecord, KeptRecord, RolloutRecord
from mlinfra_prefect.model.event import PREFIX
from mlinfra_prefect.model.lease import LeaseRecord
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.verdict import Verdict

NEWS = timedelta(minutes=25)
"""What is older is told no more. Prefect's automations remember the ids of events for 30 minutes: later than that, the
same event told again, by another process, would be acted on again."""
_MOST_REMEMBERED = 10_000
_log = logging.getLogger("mlinfra_prefect")
_lock = threading.Lock()
_told: set[UUID] = set()
_warned = threading.Event()


# --- what flows tell -------------------------------------------------------------------------------------------------


def tell_lease(record: LeaseRecord) -> None:
    """Tell what is true of a lease now: that it is ready, stuck or released. Idempotent."""
    _tell(lambda: of_lease(record))


def tell_lost(record: LeaseRecord, reason: str) -> None:
    """Tell that a lease which was in use is not this flow's any more. Idempotent."""
    _tell(lambda: of_loss(record, reason))


def tell_training(record: LeaseRecord, job_id: str, artifact: ModelArtifact | None = None) -> None:
    """Tell that a job has ended, well or not; of one that has not, nothing. Idempotent.

    Args:
        record: the lease's, read after the job ended.
        job_id: the job's.
        artifact: the model that it left, for its metrics.
    """
    _tell(lambda: of_job(record, job_id, artifact))


def tell_gate(verdict: Verdict, *, endpoint: str | None = None, artifact: ModelArtifact | None = None) -> None:
    """Tell that a candidate was refused; of one that passed, nothing."""
    place = runs.here()
    run = place.flow_run_id or (str(place.task.task_run.id) if place.task else "")
    _tell(lambda: of_gate(verdict, run, endpoint, artifact))


def tell_rollout(rollout: RolloutRecord, endpoint: EndpointRecord) -> None:
    """Tell how far a rollout has come, from started to promoted, rolled back or retired. Idempotent: at each change."""
    _tell(lambda: of_rollout(rollout, endpoint))


def tell_back(endpoint: EndpointRecord, version: int, reason: str) -> None:
    """Tell that a version was rolled back, which may have been promoted before. Idempotent.

    Args:
        endpoint: as it stands afterwards.
        version: which was taken back.
        reason: why.
    """
    _tell(lambda: of_back(endpoint, version, reason))


def tell_records(records: Iterable[KeptRecord]) -> None:
    """Tell what is true of records now: leases, and endpoints with their rollouts. Idempotent.

    After whatever changed an endpoint, and for the reaper: what a keeper did alone is told here, if it is still news.

    Args:
        records: of a ledger; a rollout whose endpoint is not among them is left out.
    """
    _tell(lambda: _of_records(tuple(records)))


def _of_records(records: tuple[KeptRecord, ...]) -> Iterator[News]:
    endpoints = {record.id: record for record in records if isinstance(record, EndpointRecord)}
    for record in records:
        if isinstance(record, LeaseRecord):
            yield from of_lease(record)
        elif isinstance(record, EndpointRecord):
            yield from of_endpoint(record)
        elif record.endpoint in endpoints:
            yield from of_rollout(record, endpoints[record.endpoint])


# --- what users tell -------------------------------------------------------------------------------------------------


def dataset_updated(
    dataset: str, uri: str, *, version: str | None = None, rows: int | None = None, key: str | None = None
) -> UUID | None:
    """Tell Prefect that data to train on has changed, so that deployments which wait for it start.

    Args:
        dataset: its name: a-z, 0-9 and '-'.
        uri: where it lies; without credentials, because events are kept and shown.
        version: of the data, as you count. The same version of the same data is the same event.
        rows: how many.
        key: what makes this event this one, instead of the version.

    Returns:
        The event's id, or None where there is no Prefect to tell: outside of a run and without ``PREFECT_API_URL``, or
        with events switched off.

    Raises:
        InvalidInput: naming the argument; nothing was sent.
    """
    payload = parsed(payloads.DatasetUpdated, {"dataset": dataset, "uri": uri, "version": version, "rows": rows})
    try:
        place = urlsplit(uri)
    except ValueError:
        raise InvalidInput("uri", "is no URI", "Write it as s3://bucket/prefix/.") from None
    if place.username or place.password or place.query:
        raise InvalidInput("uri", "carries credentials or a query, which may be a signature", "Pass it without them.")
    one = key or version
    return _tell_now(News(payload, f"dataset.{dataset}", dataset, (dataset, uri, one) if one else (str(uuid4()),)))


def drift_detected(
    endpoint: str,
    *,
    metric: str,
    value: float,
    threshold: float | None = None,
    environment: str = "dev",
    key: str | None = None,
) -> UUID | None:
    """Tell Prefect that a served model sees other data than it was trained on. Returns as `dataset_updated` does.

    Args:
        endpoint: its name.
        metric: what was measured, such as ``psi``.
        value: what it was; finite.
        threshold: above which it is drift.
        environment: the endpoint's.
        key: what makes this event this one, such as the day that was looked at; without it each call is a new event.

    Raises:
        InvalidInput: naming the argument; nothing was sent.
    """
    values = {
        "endpoint": endpoint, "environment": environment, "metric": metric, "value": value, "threshold": threshold,
    }  # fmt: skip
    payload = parsed(payloads.DriftDetected, values)
    one = (environment, endpoint, metric, key) if key else (str(uuid4()),)
    return _tell_now(News(payload, f"endpoint.{environment}.{endpoint}", endpoint, one))


# --- telling ---------------------------------------------------------------------------------------------------------


def _tell(news: Callable[[], Iterator[News]]) -> None:
    if not runs.in_run():
        return
    try:
        if settings().events_enabled:
            oldest = datetime.now(UTC) - NEWS
            for each in news():
                if each.occurred is None or each.occurred > oldest:
                    _send(each)
    except Exception as problem:  # noqa: BLE001 (an event must never end a run, whatever is wrong with it)
        _warn(problem)


def _tell_now(news: News) -> UUID | None:
    if not runs.in_run() and not get_current_settings().api.url:
        _log.warning("%s was not sent: there is no Prefect to send it to. Set PREFECT_API_URL.", news.payload.event())
        return None
    try:
        return _send(news) if settings().events_enabled else None
    except Exception as problem:  # noqa: BLE001 (as above)
        _warn(problem)
        return None


def _send(news: News) -> UUID | None:
    event_id = news.id
    with _lock:
        if event_id in _told:
            return event_id
    sent = emit_event(
        news.payload.event(),
        resource={"prefect.resource.id": f"{PREFIX}.{news.about}", "prefect.resource.name": news.name},
        occurred=news.occurred or datetime.now(UTC),
        related=[{"prefect.resource.role": role, "prefect.resource.id": about} for role, about in news.related],
        payload=news.payload.as_json(),
        id=event_id,
    )
    if sent is None:
        return None
    with _lock:
        if len(_told) >= _MOST_REMEMBERED:
            _told.clear()  # the worst that follows is an event sent twice, which is one
        _told.add(event_id)
    return event_id


def _warn(problem: object) -> None:
    """Say it once in a process, and not through Prefect, which may be what is wrong."""
    if not _warned.is_set():
        _warned.set()
        _log.warning("Events are missing in Prefect; the run goes on, and the ledger has it all: %s", problem)
