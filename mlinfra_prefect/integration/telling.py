"""What a phase tells people and automations once it is done: artifacts and events, which are copies of the ledger.

Called after the work, never within it, and never a reason for it to fail (`artifacts`, `events`).
"""

from __future__ import annotations

from mlinfra_prefect.integration import artifacts, events, runs
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.names import rollout_base
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.verdict import Verdict


def planned(plan: Plan) -> None:
    """A plan was made."""
    artifacts.show_plan(plan)


def released(here: Context, receipt: Receipt) -> None:
    """A lease, a rollout or an endpoint is gone."""
    if not runs.in_run():
        return
    after = here.record(receipt.id)
    rollouts = rollouts_of(here, after) if isinstance(after, EndpointRecord) else []
    artifacts.show_receipt(receipt, after)
    artifacts.show_timeline(after, *rollouts)
    if isinstance(after, EndpointRecord):
        artifacts.show_endpoint(after)  # the page that still said that it serves
    events.tell_records([after, *rollouts])


def stuck(here: Context, record_id: str) -> None:
    """A release does not come to its end."""
    if runs.in_run():
        events.tell_records([here.record(record_id)])


def rolling(here: Context, rollout: RolloutRecord) -> None:
    """A rollout has taken a step."""
    if not runs.in_run():
        return
    endpoint = here.record(rollout.endpoint)
    if isinstance(endpoint, EndpointRecord):
        events.tell_rollout(rollout, endpoint)


def rolled(here: Context, rollout_id: str) -> None:
    """A rollout was promoted, waits for its promotion, or was rolled back."""
    if not runs.in_run():
        return
    rollout = here.record(rollout_id)
    if not isinstance(rollout, RolloutRecord):
        return
    endpoint = here.record(rollout.endpoint)
    if not isinstance(endpoint, EndpointRecord):
        return
    events.tell_rollout(rollout, endpoint)
    artifacts.show_rollout(rollout, endpoint)
    if endpoint.live and endpoint.current is not None:
        artifacts.show_endpoint(endpoint)
        events.tell_records([endpoint])


def served(here: Context, endpoint: EndpointRecord) -> None:
    """What an endpoint serves was changed."""
    if runs.in_run():
        artifacts.show_endpoint(endpoint)
        events.tell_records([endpoint, *rollouts_of(here, endpoint)])


def went_back(here: Context, endpoint: EndpointRecord, version: int, reason: str) -> None:
    """An endpoint serves the version before again."""
    if runs.in_run():
        events.tell_back(endpoint, version, reason)
        served(here, endpoint)


def judged(verdict: Verdict, subject: str) -> None:
    """A gate or a probe has decided."""
    artifacts.show_verdict(verdict, subject)
    if verdict.kind == "gate":
        events.tell_gate(verdict)


def rollouts_of(here: Context, endpoint: EndpointRecord) -> list[KeptRecord]:
    """The records of every rollout that an endpoint had."""
    return [seen.record for seen in here.ledger.rounds(rollout_base(endpoint.id))]
