"""Events: documented, told once, to Prefect only, without secrets, and never at a run's expense."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import psutil
import pytest
from integration_harness import eventually
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events.clients import AssertingEventsClient
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.events.schemas.events import Event
from prefect.events.worker import EventsWorker
from prefect.server.events.ordering import SEEN_EXPIRATION

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration import events
from mlinfra_prefect.integration.events import (
    NEWS,
    dataset_updated,
    drift_detected,
    tell_back,
    tell_gate,
    tell_lease,
    tell_lost,
    tell_records,
    tell_rollout,
    tell_training,
)
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord, VersionState
from mlinfra_prefect.model.event import EVENTS, Payload, read_payload, told
from mlinfra_prefect.model.lease import Client, JobNote, LeaseRecord, State
from mlinfra_prefect.model.probe import Step
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.model.receipt import Receipt, Search
from mlinfra_prefect.model.request import ServingRequest
from mlinfra_prefect.model.verdict import Check, Verdict
from mlinfra_prefect.testing.records import sample_artifact, sample_attempt, sample_endpoint, sample_lease

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
NOW = datetime.now(UTC)
RUN_ID = "0b6f8f1e-7f0a-4d0e-9a53-0f6f6c1d2b11"
OLD_ROLLOUT, NEW_ROLLOUT = "r0f3c5d7e9b1a2c4d6e8f-1", "r0f3c5d7e9b1a2c4d6e8f-2"
REFUSED = Verdict(
    kind="gate", ok=False, reason="auc 0.89 is below 0.905",
    checks=(Check(name="auc", ok=False, detail="low"), Check(name="loss", ok=True, detail="fine")),
)  # fmt: skip


@pytest.fixture(autouse=True)
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Event]]:
    """What is sent, instead of sending it; and a process that has told and warned of nothing yet."""
    monkeypatch.setattr(events, "NEWS", timedelta(days=1))  # the samples are as old as the test session
    EventsWorker.set_client_override(AssertingEventsClient)
    found = Sent()
    found.forget()
    events._warned.clear()
    yield found
    EventsWorker.set_client_override(None)
    found.forget()
    events._warned.clear()


class Sent(list):
    """Our events, complete when they are looked at."""

    @property
    def ours(self) -> list[Event]:
        EventsWorker.instance().wait_until_empty()
        clients = AssertingEventsClient.all
        return [
            event
            for client in clients
            for event in getattr(client, "events", ())
            if event.event.startswith("mlinfra-prefect.")
        ]

    def forget(self) -> None:
        """As another process: nothing was sent or told yet."""
        EventsWorker.instance().wait_until_empty()
        for client in AssertingEventsClient.all:
            client.events = []
        events._told.clear()

    @property
    def names(self) -> list[str]:
        return [event.event.removeprefix("mlinfra-prefect.") for event in self.ours]

    @property
    def one(self) -> Event:
        (found,) = self.ours
        return found


def receipt(kind: str = "lease", **changes: Any) -> Receipt:
    look = Search(what="processes of it", where="laptop", at=NOW)
    made = Receipt(
        kind=kind, id="l0f3c5d7e9b1a2c4d6e8f-1", ledger_id="7f0c", reason="its block ended", attempts=1,
        created=("1/a", "1/b"), destroyed=("1/a", "1/b"), searches=(look, look), requested_at=NOW,
        released_at=NOW, up_seconds=312.5, trained_seconds=288.0, idle_seconds=24.5, cost_usd=0.28,
    )  # fmt: skip
    return made.revised(**changes)


def lease(state: State = State.READY, **changes: Any) -> LeaseRecord:
    owner = Owner(user="ada", host="laptop", flow_run_id=RUN_ID, deployment="8a0f8f1e-7f0a-4d0e-9a53-0f6f6c1d2b11")
    more: dict[str, Any] = {"attempts": (sample_attempt(),), "ready_at": NOW + timedelta(seconds=2)}
    if state is State.RELEASED:
        more |= {"receipt": receipt(), "releasing_at": NOW, "released_at": NOW + timedelta(seconds=9)}
    return sample_lease(**{"state": state, "owner": owner, "created_at": NOW, **more, **changes})


def endpoint(state: State = State.READY, **changes: Any) -> EndpointRecord:
    (one,) = sample_endpoint().versions
    old = one.revised(
        state=VersionState.RETIRED, share=0, promoted_at=NOW, reason="version 2 came", rollout=OLD_ROLLOUT
    )
    new = one.revised(
        version=2, state=VersionState.SERVING, promoted_at=NOW + timedelta(seconds=1), rollout=NEW_ROLLOUT
    )
    more: dict[str, Any] = {"versions": (old, new), "ready_at": NOW}
    if state is State.RELEASED:
        more |= {"receipt": receipt("endpoint"), "released_at": NOW}
    return sample_endpoint(**{"state": state, **more, **changes})


def rollout(**changes: Any) -> RolloutRecord:
    made = RolloutRecord(
        id=NEW_ROLLOUT, ledger_id="7f0c", name="churn", environment="dev", platform="local",
        owner=sample_lease().owner, client=Client(kind="none"), created_at=NOW, renewed_until=NOW,
        endpoint=sample_endpoint().id, version=2, serving=ServingRequest(name="churn"), artifact=sample_artifact(),
        ports=(9001,), shares=(10, 50), until=NOW,
        steps=tuple(Step(share=share, began_at=NOW) for share in (0, 10, 50)),
    )  # fmt: skip
    return made.revised(**changes)


def retired_rollout() -> RolloutRecord:
    return rollout(
        id=OLD_ROLLOUT, version=1, steps=(), state=State.RELEASED, promoted_at=NOW, releasing_at=NOW, released_at=NOW
    )


def job(**changes: Any) -> JobNote:
    note = JobNote(
        job_id="j1", label="acme.churn:train", state="succeeded", started_at=NOW,
        finished_at=NOW + timedelta(seconds=288), artifact_id="a0f3c5d7e9b1a2c4d6e8f",
    )  # fmt: skip
    return note.revised(**changes)


def tell_everything() -> None:
    tell_lease(lease())
    tell_lease(lease(State.STUCK, reason="disk full", failures=3, retry_at=NOW))
    tell_lease(lease(State.RELEASED))
    tell_lost(lease(State.RELEASING), "it was released")
    tell_training(lease(jobs=(job(),)), "j1", sample_artifact())
    tell_gate(REFUSED, endpoint="churn", artifact=sample_artifact())
    tell_rollout(rollout(), endpoint())
    tell_back(endpoint(), 2, "worse than version 1")
    tell_records([endpoint(), endpoint(State.RELEASED), retired_rollout()])
    dataset_updated("churn", "s3://acme/churn/", version="1", rows=3)
    drift_detected("churn", metric="psi", value=0.3, threshold=0.2, key="today")


everything = flow(name="everything")(tell_everything)


# --- documented ------------------------------------------------------------------------------------------------------


def documented() -> dict[str, dict[str, Any]]:
    """Event to example, as the page shows them: a heading, then one JSON object."""
    found = re.findall(r"^### `(.+?)`\n(.*?)(?=^##|\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    examples = {}
    for name, text in found:
        (example,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
        examples[name] = json.loads(example)
    return examples


def test_every_event_is_documented_and_no_other() -> None:
    """The page and the payload classes name the same events."""
    assert sorted(documented()) == sorted(EVENTS)


@pytest.mark.parametrize("event", sorted(EVENTS))
def test_every_documented_example_is_what_is_sent(event: str) -> None:
    """It validates, has every field, and is the same when it is sent again."""
    example = documented()[event]
    assert read_payload(event, example).as_json() == example


def test_every_event_is_told_with_its_documented_fields(sent: Sent) -> None:
    """All of them are really sent by some call, and what is sent reads back as its record."""
    everything()
    assert set(sent.names) == {name.removeprefix("mlinfra-prefect.") for name in EVENTS}
    for event in sent.ours:
        assert read_payload(event.event, event.payload).as_json() == event.payload
        assert set(event.payload) == set(documented()[event.event])


@pytest.mark.parametrize("kind", EVENTS.values(), ids=lambda kind: kind.__name__)
def test_payloads_are_flat(kind: type[Payload]) -> None:
    """An automation's template reaches every field; only metrics and lists of names or shares are not scalars."""
    nested = {name for name, field in kind.model_fields.items() if {dict, tuple} & {_origin(field.annotation)}}
    assert nested <= {"metrics", "failed", "shares"}
    assert not [name for name, field in kind.model_fields.items() if isinstance(field.annotation, type)
                and issubclass(field.annotation, Payload)]  # fmt: skip


def _origin(annotation: Any) -> Any:
    return getattr(annotation, "__origin__", annotation) if get_args(annotation) else annotation


def test_a_payload_of_another_version_is_refused() -> None:
    """A reader never takes one schema for another."""
    example = documented()["mlinfra-prefect.dataset.updated"]
    for event, payload, field in (
        ("mlinfra-prefect.dataset.gone", example, "event"),
        ("mlinfra-prefect.dataset.updated", {**example, "schema": "x"}, "schema"),
        ("mlinfra-prefect.dataset.updated", {**example, "rows": -1}, "payload.rows"),
        ("mlinfra-prefect.dataset.updated", {**example, "more": 1}, "payload.more"),
    ):
        with pytest.raises(InvalidInput) as caught:
            read_payload(event, payload)
        assert caught.value.field == field


# --- what is told ----------------------------------------------------------------------------------------------------


def test_a_lease_tells_what_is_true_of_it(sent: Sent) -> None:
    """Numbers from the record and the receipt; when it happened; the run that asked for it, and its deployment."""
    flow(name="f")(lambda: tell_lease(lease(State.RELEASED)))()
    event = sent.one
    assert event.resource.id == f"mlinfra-prefect.lease.{sample_lease().id}"
    assert event.resource.name == "training"
    assert event.occurred == NOW + timedelta(seconds=9)
    assert event.payload | {"cost_usd": 0.28, "clean": True, "created": 2, "idle_seconds": 24.5} == event.payload
    related = {(each.role, each.id) for each in event.related}
    assert ("flow-run", f"prefect.flow-run.{RUN_ID}") in related
    assert ("deployment", "prefect.deployment.8a0f8f1e-7f0a-4d0e-9a53-0f6f6c1d2b11") in related


@pytest.mark.parametrize("state", [State.REQUESTED, State.PROVISIONING, State.RELEASING])
def test_a_lease_on_its_way_tells_nothing(state: State, sent: Sent) -> None:
    """Ready, stuck and released are news; the steps between are not."""
    flow(name="f")(lambda: tell_lease(lease(state)))()
    assert sent.ours == []


def test_the_run_that_tells_is_related(sent: Sent) -> None:
    """Prefect adds it from the context; it is there once even when it is the one that asked."""

    @flow
    def run() -> str:
        mine = str(FlowRunContext.get().flow_run.id)
        tell_lease(lease(owner=Owner(user="ada", host="laptop", flow_run_id=mine)))
        return mine

    mine = run()
    assert [each.id for each in sent.one.related if each.role == "flow-run"] == [f"prefect.flow-run.{mine}"]


def test_a_training_tells_how_it_ended_and_only_then(sent: Sent) -> None:
    """Succeeded with the model and its metrics, failed without; one that runs, or that nobody knows, tells nothing."""
    failed = job(job_id="j2", state="failed", artifact_id=None)
    record = lease(jobs=(job(), failed, job(job_id="j3", finished_at=None)))

    @flow
    def run() -> None:
        for job_id, artifact in (("j1", sample_artifact()), ("j2", None), ("j3", None), ("j4", None)):
            tell_training(record, job_id, artifact)

    run()
    first, second = sent.ours
    assert (first.payload["outcome"], first.payload["metrics"], first.payload["seconds"]) == (
        "succeeded", {"auc": 0.91}, 288,
    )  # fmt: skip
    assert ("artifact", "mlinfra-prefect.artifact.a0f3c5d7e9b1a2c4d6e8f") in {(r.role, r.id) for r in first.related}
    assert (second.payload["outcome"], second.payload["artifact_id"], second.payload["metrics"]) == ("failed", None, {})


def test_a_gate_tells_only_refusals(sent: Sent) -> None:
    """With the checks that did not hold; about the endpoint when it is known."""
    passed = REFUSED.revised(ok=True)

    @flow
    def run() -> None:
        tell_gate(passed)
        tell_gate(REFUSED, endpoint="churn", artifact=sample_artifact(environment="prod"))
        tell_gate(REFUSED)

    run()
    known, unknown = sent.ours
    assert known.resource.id == "mlinfra-prefect.endpoint.prod.churn"
    assert known.payload["failed"] == ["auc"]
    assert unknown.resource.id.startswith("mlinfra-prefect.gate.")


def test_a_rollout_tells_each_step_once_however_often_it_is_looked_at(sent: Sent) -> None:
    """Called at every change: started, each share that got requests, promoted; what it replaced is named."""
    old, new = endpoint().versions
    before = endpoint(versions=(old, new.revised(state=VersionState.CANARY, promoted_at=None)))

    @flow
    def run() -> None:
        for steps in range(4):
            tell_rollout(rollout(steps=rollout().steps[:steps]), before)
        for _ in range(3):
            tell_rollout(rollout(), endpoint())

    run()
    assert sent.names == ["rollout.started", "rollout.canary", "rollout.canary", "rollout.promoted"]
    assert [event.payload.get("share") for event in sent.ours] == [None, 10, 50, None]
    assert sent.ours[0].payload["current_version"] == 1
    assert sent.ours[-1].payload["replaced_version"] == 1
    assert {event.resource.id for event in sent.ours} == {"mlinfra-prefect.endpoint.dev.churn"}
    assert ("rollout", f"mlinfra-prefect.rollout.{NEW_ROLLOUT}") in {(r.role, r.id) for r in sent.ours[0].related}


def test_a_candidate_that_is_rolled_back_tells_it_once_and_why(sent: Sent) -> None:
    """From the wait for it, from the phase that asked for it, and from the reaper: the same event."""
    old, new = endpoint().versions
    failed = new.revised(state=VersionState.ROLLED_BACK, promoted_at=None, reason="the probe failed")
    serving = old.revised(state=VersionState.SERVING, share=100)
    after = endpoint(versions=(serving, failed))
    record = rollout(steps=(), state=State.RELEASING, releasing_at=NOW)

    @flow
    def run() -> None:
        for _ in range(2):
            tell_rollout(record, after)
            tell_back(after, 2, "the probe failed")
            events._told.clear()  # as another process
        tell_records([record, after])

    run()
    told_ = [event for event in sent.ours if event.event.endswith("rolled-back")]
    assert len({event.id for event in told_}) == 1
    assert (told_[0].payload["reason"], told_[0].payload["current_version"]) == ("the probe failed", 1)


def test_a_promoted_version_may_come_and_go_again(sent: Sent) -> None:
    """A rollback to the version before is a promotion of that one, and each time is news."""
    old, new = endpoint().versions

    @flow
    def run() -> None:
        for revision in (7, 9):
            back = old.revised(state=VersionState.SERVING, share=100, promoted_at=NOW + timedelta(seconds=revision))
            after = endpoint(versions=(back, new.revised(state=VersionState.RETIRING, share=0)), revision=revision)
            tell_back(after, 2, "asked for")
            tell_records([after, rollout(id=OLD_ROLLOUT, version=1, steps=())])

    run()
    assert [name for name in sent.names if "rollout" in name and "started" not in name] == [
        "rollout.rolled-back", "rollout.promoted"] * 2  # fmt: skip
    assert [event.payload.get("replaced_version") for event in sent.ours if "promoted" in event.event] == [2, 2]


def test_the_first_version_replaces_none(sent: Sent) -> None:
    """A first deployment is a rollout that is promoted, too."""
    first = endpoint(versions=(endpoint().versions[1].revised(version=1),))
    flow(name="f")(lambda: tell_rollout(rollout(version=1, steps=()), first))()
    assert [event.payload.get("replaced_version", "-") for event in sent.ours] == ["-", None]


def test_a_retired_version_is_told_when_its_servers_are_gone(sent: Sent) -> None:
    """Not when its retirement begins; whoever looks at the ledger then tells it."""
    going = retired_rollout().revised(state=State.RELEASING, released_at=None)
    flow(name="f")(lambda: tell_records([endpoint(), going]))()
    assert "version.retired" not in sent.names
    flow(name="f")(lambda: tell_records([endpoint(), retired_rollout(), lease(State.RELEASED)]))()
    (event,) = [event for event in sent.ours if event.event.endswith("version.retired")]
    assert (event.payload["version"], event.payload["reason"]) == (1, "version 2 came")
    assert "lease.released" in sent.names


def test_news_ends_before_automations_forget() -> None:
    """Telling an event again is harmless only while its id is remembered."""
    assert NEWS < SEEN_EXPIRATION


def test_what_is_old_is_no_news(sent: Sent) -> None:
    """Automations forget ids after half an hour: what any flow could have told before is not told again."""
    old = NOW - timedelta(days=2)

    @flow
    def run() -> None:
        tell_records([lease(State.RELEASED, released_at=old), lease(ready_at=old), endpoint(ready_at=old)])
        tell_training(lease(jobs=(job(started_at=old, finished_at=old),)), "j1")

    run()
    assert sent.ours == []


# --- once ------------------------------------------------------------------------------------------------------------


def test_the_same_news_has_the_same_id_in_every_process(sent: Sent) -> None:
    """Ids depend on ledger, record and transition: not on the run, the time or the process that tells."""
    everything()
    first = {event.id: event.event for event in sent.ours if "gate" not in event.event}
    sent.forget()
    everything()
    assert {event.id: event.event for event in sent.ours if "gate" not in event.event} == first
    assert len({event.id for event in sent.ours}) == len(sent.ours)
    sent.forget()
    flow(name="f")(lambda: tell_lease(lease(ledger_id="another")))()
    assert sent.one.id not in first


def test_a_lease_that_gets_ready_again_tells_it_again(sent: Sent) -> None:
    """Each attempt's ready, and each failed pass, is news of its own."""

    @flow
    def run() -> None:
        tell_lease(lease())
        tell_lease(lease(attempts=(sample_attempt(), sample_attempt(2))))
        for failures in (1, 2, 2):
            tell_lease(lease(State.STUCK, failures=failures))

    run()
    assert sent.names == ["lease.ready"] * 2 + ["lease.stuck"] * 2


def test_a_server_keeps_what_is_sent_twice_once(sent: Sent) -> None:
    """End to end, with a real server: two tasks tell the same release, as a retry would."""
    EventsWorker.set_client_override(None)

    @task
    def one(record: LeaseRecord) -> None:
        events._told.clear()
        tell_lease(record)

    @flow
    def run() -> str:
        mine = str(FlowRunContext.get().flow_run.id)
        record = lease(State.RELEASED, ledger_id=mine, released_at=NOW)
        for each in (record, record, lease(State.STUCK, ledger_id=mine, owner=record.owner)):
            one(each)
        return mine

    mine = run()
    EventsWorker.instance().wait_until_empty()

    def kept(name: str) -> list[dict[str, Any]]:
        wanted = EventFilter(event=EventNameFilter(name=[f"mlinfra-prefect.lease.{name}"]))
        with get_client(sync_client=True) as client:
            page = client._client.post("/events/filter", json={"filter": wanted.model_dump(mode="json")}).json()
        return [each for each in page["events"] if f"prefect.flow-run.{mine}" in json.dumps(each)]

    assert eventually(lambda: kept("stuck"))  # it was sent after both others
    (event,) = kept("released")
    assert event["payload"]["reason"] == "its block ended"


# --- yours to emit ---------------------------------------------------------------------------------------------------


def test_the_same_version_of_the_same_data_is_the_same_event(sent: Sent) -> None:
    """An import that runs again starts nothing again; without a version or key each call is news."""

    @flow
    def run() -> list[UUID | None]:
        return [
            dataset_updated("churn", "s3://a/b", version="1/2"), dataset_updated("churn", "s3://a/b", version="1/2"),
            dataset_updated("churn", "s3://a/b/1", version="2"), dataset_updated("churn", "s3://a/b"),
            dataset_updated("churn", "s3://a/b"),
            drift_detected("churn", metric="psi", value=1, key="today"),
            drift_detected("churn", metric="psi", value=2, key="today"),
            drift_detected("churn", metric="psi", value=1),
        ]  # fmt: skip

    made = run()
    assert all(isinstance(each, UUID) for each in made)
    assert made[0] == made[1]
    assert made[5] == made[6]
    assert len(set(made)) == len(made) - 2
    assert {event.resource.id for event in sent.ours} == {
        "mlinfra-prefect.dataset.churn", "mlinfra-prefect.endpoint.dev.churn",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: dataset_updated("Churn!", "s3://a"), "dataset"),
        (lambda: dataset_updated("churn", "https://me:secret@host/x"), "uri"),
        (lambda: dataset_updated("churn", "https://host/x?X-Amz-Signature=abc"), "uri"),
        (lambda: dataset_updated("churn", "s3://a\nb"), "uri"),
        (lambda: dataset_updated("churn", "http://[broken"), "uri"),
        (lambda: dataset_updated("churn", "s3://a", rows=-1), "rows"),
        (lambda: drift_detected("Churn!", metric="psi", value=1), "endpoint"),
        (lambda: drift_detected("churn", metric="psi", value=math.nan), "value"),
        (lambda: drift_detected("churn", metric="psi", value="much"), "value"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_is_sent(call: Any, field: str, sent: Sent) -> None:
    """Inside of a run and outside; a secret that was passed by mistake is not shown."""
    for run in (call, flow(name="f")(call)):
        with pytest.raises(InvalidInput) as caught:
            run()
        assert caught.value.field == field
        assert "secret" not in str(caught.value)
        assert "abc" not in str(caught.value)
    assert sent.ours == []


def test_outside_of_a_run_yours_are_sent_where_an_api_is_set_and_ours_are_not(sent: Sent) -> None:
    """A cron job may tell of new data; leases outside of runs are nobody's news in Prefect."""
    tell_lease(lease())
    assert dataset_updated("churn", "s3://a") is not None
    assert sent.names == ["dataset.updated"]


ALONE = """
import json, sys, time
from mlinfra_prefect.integration import events
from mlinfra_prefect.testing.records import sample_lease
begin = time.monotonic()
events.tell_lease(sample_lease())
made = events.dataset_updated("churn", "s3://a")
seconds = time.monotonic() - begin
import psutil
started = [child.name() for child in psutil.Process().children(recursive=True)]
print(json.dumps({"seconds": seconds, "made": made, "started": started}))
"""


def test_without_a_run_and_an_api_no_server_is_started(tmp_path: Path) -> None:
    """`emit_event` by itself would start one, for seconds; here it is one warning, at once."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True,
        env={**env, "PREFECT_HOME": str(tmp_path)},
    )  # fmt: skip
    told_ = json.loads(done.stdout)
    assert told_["started"] == []
    assert told_["made"] is None
    assert told_["seconds"] < 3.0
    assert "PREFECT_API_URL" in done.stderr


# --- never in the way ------------------------------------------------------------------------------------------------


def test_in_every_kind_of_run(sent: Sent) -> None:
    """Async flows and tasks, and the threads of a task runner."""

    @task
    def in_task(number: int) -> None:
        tell_lease(lease(State.STUCK, failures=number))

    @flow
    async def run() -> None:
        tell_lease(lease())
        in_task.submit(1).wait()
        await asyncio.to_thread(in_task, 2)

    asyncio.run(run())
    assert sorted(sent.names) == ["lease.ready", "lease.stuck", "lease.stuck"]


@pytest.mark.parametrize("trouble", ["emit_event raises", "a record is odd", "the settings are wrong"])
def test_trouble_with_events_never_ends_a_run(
    trouble: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It completes, and says once, not through Prefect, that events are missing."""
    odd: Any = lease()

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("no events today")

    @flow
    def run() -> str:
        nonlocal odd
        if trouble == "emit_event raises":
            monkeypatch.setattr(events, "emit_event", refused)
        elif trouble == "a record is odd":
            odd = object()
        else:
            monkeypatch.setenv("PREFECT_INTEGRATIONS_MLINFRA_EVENTS_ENABLED", "perhaps")
        for _ in range(3):
            tell_lease(odd)
        return "done"

    with caplog.at_level(logging.WARNING, "mlinfra_prefect"):
        assert run() == "done"
    (warning,) = [each for each in caplog.records if each.name == "mlinfra_prefect"]
    assert "Events are missing" in warning.getMessage()


def test_switched_off_nothing_is_told(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """`PREFECT_INTEGRATIONS_MLINFRA_EVENTS_ENABLED=false`; yours say so by returning None."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_MLINFRA_EVENTS_ENABLED", "false")

    @flow
    def run() -> UUID | None:
        tell_lease(lease())
        return dataset_updated("churn", "s3://a")

    assert run() is None
    assert sent.ours == []


def test_telling_does_not_wait(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sending happens in a thread of Prefect's: a client that is slow costs the run nothing."""

    emit = AssertingEventsClient._emit

    async def slowly(client: AssertingEventsClient, event: Event) -> None:
        await asyncio.sleep(0.1)
        await emit(client, event)

    monkeypatch.setattr(AssertingEventsClient, "_emit", slowly)
    seconds: list[float] = []

    @flow
    def run() -> None:
        begin = time.monotonic()
        for failures in range(20):
            tell_lease(lease(State.STUCK, failures=failures))
        seconds.append(time.monotonic() - begin)

    run()
    assert seconds[0] < 1.5  # twenty of them take two
    assert len(sent.ours) == 20


# --- no secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "kept", "gone"),
    [
        ("fetch https://me:hunter2@host/x?sig=abc failed", ["fetch", "host/x", "failed"], ["hunter2", "abc"]),
        ("PASSWORD=hunter2, retrying", ["PASSWORD", "retrying"], ["hunter2"]),
        ('{"api_key": "hunter2"}', ["api_key"], ["hunter2"]),
        ("Authorization: Bearer hunter2", ["Authorization"], ["hunter2"]),
        ("aws_secret_access_key = hunter2", ["aws_secret_access_key"], ["hunter2"]),
        ("key AKIAIOSFODNN7EXAMPLE denied", ["denied"], ["AKIAIOSFODNN7EXAMPLE"]),
        ("hf_abcdefghijklmnopqrstuv was refused", ["was refused"], ["hf_abcdefghijklmnop"]),
        ("no space in /home/ada/.mlinfra-prefect/work/l1/terraform", ["no space in", "terraform"], ["ada", "/home"]),
        ("line one\nline two", ["line one line two"], ["\n"]),
        ("x" * 600, ["x" * 100], ["x" * 300]),
        ("its block ended", ["its block ended"], []),
        ("12 % of 40/50 requests failed, version 2/3", ["12 % of 40/50 requests failed, version 2/3"], []),
    ],
)
def test_reasons_are_one_line_without_credentials_and_places(reason: str, kept: list[str], gone: list[str]) -> None:
    """What leaves the machine keeps its sense, and loses what the usual shapes of secrets and paths give away."""
    line = told(reason)
    assert all(part in line for part in kept), line
    assert not any(part in line for part in gone), line


def test_free_text_of_others_is_scrubbed_wherever_it_is_sent(sent: Sent) -> None:
    """Reasons, labels of commands, names of checks: none goes out as it came."""
    bad = "TOKEN=hunter2 in /home/ada/x"
    verdict = Verdict(kind="gate", ok=False, reason=bad, checks=(Check(name=bad, ok=False, detail=bad),))
    gone = endpoint().versions[0].revised(reason=bad)
    back = endpoint().versions[1].revised(state=VersionState.ROLLED_BACK, reason=bad)

    @flow
    def run() -> None:
        tell_lease(lease(State.STUCK, reason=bad))
        tell_lease(lease(State.RELEASED, receipt=receipt(reason=bad)))
        tell_lost(lease(), bad)
        tell_training(lease(jobs=(job(label=bad),)), "j1")
        tell_gate(verdict)
        tell_rollout(rollout(), endpoint(versions=(gone, back)))
        tell_back(endpoint(), 2, bad)
        released = endpoint(State.RELEASED, versions=(gone,), receipt=receipt("endpoint", reason=bad))
        tell_records([released, retired_rollout()])

    run()
    text = json.dumps([event.payload for event in sent.ours])
    assert {"rollout.rolled-back", "version.retired", "endpoint.released", "gate.refused"} < set(sent.names)
    assert "hunter2" not in text
    assert "/home" not in text


def test_no_payload_has_a_place_of_the_machine(sent: Sent) -> None:
    """Records know directories and hosts; events do not."""
    everything()
    text = json.dumps([event.payload for event in sent.ours])
    assert "/home" not in text
    assert "laptop" not in text


def servers() -> set[int]:
    """The Prefect servers below this process; other files of the same worker may have some, too."""
    found = psutil.Process().children(recursive=True)
    return {child.pid for child in found if "uvicorn" in " ".join(child.cmdline())}


@pytest.fixture(scope="module", autouse=True)
def servers_before(prefect_server: None) -> set[int]:
    """Those that were there before the first test of this file."""
    return servers()


def test_this_process_started_no_server_of_its_own(servers_before: set[int]) -> None:
    """All of the above used the harness's one server."""
    assert servers() <= servers_before
