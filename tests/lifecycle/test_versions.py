"""What an endpoint serves is one compare-and-swap: who may decide what, and that a refused decision changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from mlinfra_prefect.errors import (
    EndpointExists,
    EndpointNotReady,
    LeaseLost,
    MlinfraError,
    NotFound,
    RolledBack,
    RolloutHeld,
    VersionServes,
)
from mlinfra_prefect.keeper import rollouts
from mlinfra_prefect.ledger import revise
from mlinfra_prefect.lifecycle import versions
from mlinfra_prefect.lifecycle.clients import look_at_client
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import TTL_SECONDS
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.model.process import Owner
from mlinfra_prefect.testing.records import path_to, sample_endpoint, sample_rollout

ENDPOINT = sample_endpoint().id
NOBODY = Client(kind="none")
Enter = Callable[..., RolloutRecord]


@pytest.fixture
def stood(context: Context) -> Enter:
    """Writes an endpoint, and brings versions onto it in the order of their numbers."""
    shape = {"ledger_id": context.ledger.ledger_id, "client": NOBODY, "keeper": None}
    context.ledger.create(sample_endpoint(versions=(), **shape), actor="test", reason="", holds=("endpoint:dev:churn",))

    def bring(
        version: int, *, promoted: bool = False, state: State = State.READY, client: Client = NOBODY
    ) -> RolloutRecord:
        asked = sample_rollout(version=version, **{**shape, "client": client})
        seen = context.ledger.create(asked, actor="test", reason="asked for")
        record = seen.record
        assert isinstance(record, RolloutRecord)
        versions.enter(context, record)
        for step in path_to(state):
            seen = context.ledger.replace(seen, seen.record.revised(state=step), actor="test", reason="on")
        if promoted:
            versions.promote(context, ENDPOINT, version)
        return record

    return bring


def states(context: Context) -> dict[int, tuple[str, int]]:
    return {each.version: (each.state.value, each.share) for each in endpoint(context).versions}


def endpoint(context: Context) -> EndpointRecord:
    return context.endpoint(ENDPOINT)


def test_a_version_gets_its_requests_step_by_step_and_then_all(context: Context, stood: Enter) -> None:
    """Named before it is deployed; each share is one revision of the routes; promotion retires the one before."""
    stood(1, promoted=True)
    second = stood(2)
    assert states(context) == {1: ("serving", 100), 2: ("deploying", 0)}
    revision = endpoint(context).revision
    versions.give_share(context, second, 10)
    assert states(context) == {1: ("serving", 90), 2: ("canary", 10)}
    versions.give_share(context, second, 50)
    after = versions.promote(context, ENDPOINT, 2, reason="it passed")
    assert states(context) == {1: ("retiring", 0), 2: ("serving", 100)}
    assert after.revision == revision + 3
    old, new = after.versions
    assert old.retire_at == new.promoted_at + timedelta(seconds=after.serving.retire_seconds)
    assert old.reason == "version 2 came"
    assert [line.reason for line in context.ledger.history(ENDPOINT)][-3:] == [
        "version 2: canary, 10 %", "version 2: canary, 50 %", "version 2: promoted: it passed",
    ]  # fmt: skip


def test_every_decision_can_be_repeated_and_then_changes_nothing(context: Context, stood: Enter) -> None:
    """Who decided may be killed right after it: the next one decides the same again."""
    stood(1, promoted=True)
    second = stood(2)
    for decide in (
        lambda: versions.enter(context, second),
        lambda: versions.give_share(context, second, 10),
        lambda: versions.promote(context, ENDPOINT, 2),
        lambda: versions.retire_now(context, ENDPOINT, 1, reason="tested"),
    ):
        decide()
        first = endpoint(context)
        decide()
        assert endpoint(context) == first


def test_a_rollback_gives_the_share_back_and_is_final(context: Context, stood: Enter) -> None:
    """The current version gets everything; the rollout that goes cannot be given a share nor be promoted any more."""
    stood(1, promoted=True)
    second = stood(2)
    versions.give_share(context, second, 60)
    versions.leave(context, second, "it failed\nbadly")
    assert states(context) == {1: ("serving", 100), 2: ("rolled-back", 0)}
    assert endpoint(context).version(2).reason == "it failed badly"
    before = endpoint(context)
    versions.give_share(context, second, 10)
    with pytest.raises(RolledBack, match="Version 2 of 'churn' was rolled back: it failed badly"):
        versions.promote(context, ENDPOINT, 2)
    assert endpoint(context) == before


def test_one_rollout_at_a_time(context: Context, stood: Enter) -> None:
    """The second one is told which version is in its way and how to take it back; afterwards it may come."""
    stood(1, promoted=True)
    second = stood(2)
    before = endpoint(context)
    with pytest.raises(RolloutHeld, match=f"version 2 of endpoint 'churn'.*{second.id}.*rollback churn"):
        stood(3)
    assert endpoint(context) == before
    versions.leave(context, second, "taken back")
    versions.enter(context, sample_rollout(version=3))
    assert states(context)[3] == ("deploying", 0)


def test_what_serves_cannot_go(context: Context, stood: Enter) -> None:
    """Neither by its rollout's release nor by its retirement, while it is all that there is."""
    first = stood(1, promoted=True)
    before = endpoint(context)
    with pytest.raises(VersionServes, match=r"Release the endpoint|put another version"):
        versions.leave(context, first, "done")
    with pytest.raises(VersionServes, match="mlinfra-prefect release churn"):
        versions.retire_now(context, ENDPOINT, 1, reason="done")
    assert endpoint(context) == before


def test_a_version_of_two_that_serve_can_be_retired(
    context: Context, stood: Enter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its share goes to the other one, and it goes at once."""
    monkeypatch.setattr(rollouts, "follow", lambda _, after: after)  # the decision is the record's; no keeper is needed
    stood(1, promoted=True)
    stood(2, promoted=True)
    both = rollouts.share(context, endpoint(context), {1: 30, 2: 70}, reason="tested")
    assert {each.version: each.share for each in both.versions} == {1: 30, 2: 70}
    versions.retire_now(context, ENDPOINT, 2, reason="too slow")
    assert states(context) == {1: ("serving", 100), 2: ("retiring", 0)}
    gone = endpoint(context).version(2)
    assert (gone.reason, gone.retire_at <= context.ledger.now()) == ("too slow", True)


def gone(context: Context, stood: Enter) -> None:
    """Two versions, of which the first is retired."""
    first = stood(1, promoted=True)
    stood(2, promoted=True)
    versions.leave(context, first, "retired")
    assert states(context) == {1: ("retired", 0), 2: ("serving", 100)}


@pytest.mark.parametrize(
    ("refused", "error", "says"),
    [
        (lambda c, e: rollouts.promote(c, e, 1, reason="t"), NotFound, r"Version 1 .* is gone.*Deploy its model again"),
        (lambda c, e: rollouts.promote(c, e, 7, reason="t"), NotFound, r"has no version 7.*It has: 1, 2"),
        (lambda c, e: rollouts.promote(c, e, None, reason="t"), NotFound, "no rollout in flight.*nothing to promote"),
        (lambda c, e: rollouts.retire(c, e, 2, reason="t"), VersionServes, "Version 2 is all that endpoint 'churn'"),
        (lambda c, e: rollouts.retire(c, e, 7, reason="t"), NotFound, "has no version 7"),
        (lambda c, e: rollouts.share(c, e, {2: 50, 7: 50}, reason="t"), NotFound, "has no version 7"),
    ],
    ids=["gone", "unknown", "no rollout", "retire the only one", "retire an unknown one", "share of an unknown one"],
)
def test_a_verb_that_makes_no_sense_is_one_clear_error_and_changes_nothing(
    context: Context, stood: Enter, refused: Callable[..., object], error: type[MlinfraError], says: str
) -> None:
    """Bad input: a version that is gone, that never was, or that must stay; the current one is untouched."""
    gone(context, stood)
    before = endpoint(context)
    with pytest.raises(error, match=says):
        refused(context, before)
    assert endpoint(context) == before


def test_a_candidate_that_is_not_up_cannot_be_promoted(context: Context, stood: Enter) -> None:
    """Its servers are being started: requests would go nowhere."""
    stood(1, promoted=True)
    stood(2, state=State.PROVISIONING)
    before = endpoint(context)
    with pytest.raises(EndpointNotReady, match="Version 2 of endpoint 'churn' is provisioning, not ready"):
        rollouts.promote(context, before, reason="tested")
    with pytest.raises(RolloutHeld, match="rollback churn"):
        rollouts.retire(context, before, 2, reason="tested")
    assert endpoint(context) == before


def test_there_is_nothing_to_go_back_to_before_the_second_version(context: Context, stood: Enter) -> None:
    """A version that was rolled back was never good."""
    stood(1, promoted=True)
    versions.leave(context, stood(2), "it failed")
    before = endpoint(context)
    with pytest.raises(NotFound, match="no version before the current one"):
        rollouts.roll_back(context, before, reason="tested", owner=Owner(user="ada", host="laptop"), client=NOBODY)
    assert endpoint(context) == before


def test_an_endpoint_that_goes_takes_no_version_and_no_promotion(context: Context, stood: Enter) -> None:
    """Its release has begun, and nothing brings it back."""
    first = stood(1, promoted=True)
    stood(2, promoted=True)
    begin_release(context, ENDPOINT, reason="done", drain=False)
    for decide in (lambda: versions.promote(context, ENDPOINT, 1), lambda: stood(3)):
        with pytest.raises(EndpointExists, match="is being given back"):
            decide()
    versions.leave(context, first, "the endpoint goes")
    last = context.ledger.read(ENDPOINT).record
    assert {each.version: each.state.value for each in last.versions} == {1: "retired", 2: "serving"}


def test_of_many_who_would_roll_out_exactly_one_does(context: Context, stood: Enter) -> None:
    """The compare-and-swap decides, also between processes that saw the endpoint free."""
    import threading

    stood(1, promoted=True)
    records = [sample_rollout(version=number) for number in range(2, 10)]
    for record in records:
        shape = {"ledger_id": context.ledger.ledger_id, "client": NOBODY, "keeper": None}
        context.ledger.create(record.revised(**shape), actor="test", reason="asked for")
    outcomes: list[str] = []

    def try_it(record: RolloutRecord) -> None:
        mine = Context(context.home)
        try:
            versions.enter(mine, record)
            outcomes.append("entered")
        except RolloutHeld:
            outcomes.append("held")
        finally:
            mine.ledger.close()

    threads = [threading.Thread(target=try_it, args=(record,)) for record in records]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(outcomes) == ["entered"] + ["held"] * 7
    assert [state for state, _ in states(context).values()] == ["serving", "deploying"]


def test_the_record_of_what_is_wanted_follows_the_youngest_rollout(context: Context, stood: Enter) -> None:
    """`endpoints` and the next deployment read the endpoint's serving from it."""
    wanted: dict[str, Any] = {"retire_seconds": 5.0, "replicas": 2}
    record = sample_rollout(version=1)
    context.ledger.create(record.revised(ledger_id=context.ledger.ledger_id), actor="test", reason="")
    versions.enter(context, record.revised(serving=record.serving.revised(**wanted)))
    assert endpoint(context).serving.retire_seconds == 5.0
    assert endpoint(context).version(1).rollout == record.id
    assert endpoint(context).version(1).urls == record.urls


def test_a_client_that_has_beaten_since_keeps_its_rollout(context: Context, stood: Enter) -> None:
    """An operation carries its record for minutes: by then the last beat that it knows of is an old one."""
    stood(1, promoted=True)
    now = context.ledger.now()
    somebody = Client(kind="flow_run", process=identify(), heartbeat_at=now - timedelta(seconds=TTL_SECONDS + 10))
    silent = stood(2, client=somebody)
    before = context.record(silent.id)
    beats = somebody.revised(heartbeat_at=now)
    revise(context.ledger, silent.id, lambda it: it.revised(client=beats), actor="test", reason="it beats")
    untouched = endpoint(context)
    assert look_at_client(context, before).live
    assert begin_release(context, silent.id, reason="lost", generation=1, lost=somebody).live
    with pytest.raises(LeaseLost):
        begin_release(context, silent.id, reason="lost", generation=7, lost=beats)
    assert endpoint(context) == untouched
    revise(context.ledger, silent.id, lambda it: it.revised(client=somebody), actor="test", reason="it is silent")
    assert not look_at_client(context, before).live
    assert states(context)[2] == ("rolled-back", 0)
