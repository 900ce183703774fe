"""Rule: the watcher knows nothing but its cards: when each record is due, whose client it watches, what it renews."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.keeper.desk import card_of, due_at, stands
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, State
from mlinfra_prefect.testing.records import MOMENT, sample_attempt, sample_endpoint, sample_lease, sample_rollout

LATER, LAST = MOMENT + timedelta(minutes=5), MOMENT + timedelta(hours=1)
READY = {"state": State.READY}
FIRST = sample_endpoint().versions[0]
CANARY = FIRST.revised(state="canary", share=0, promoted_at=None)


def seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


@pytest.mark.parametrize(
    ("record", "due"),
    [
        (sample_rollout(), MOMENT),
        (sample_rollout(**READY), MOMENT),
        (sample_rollout(**READY, due=LATER), LATER),
        (sample_rollout(**READY, due=LAST + timedelta(hours=1)), LAST),
        (sample_rollout(**READY, promoted_at=MOMENT), None),
        (sample_rollout(**READY, promoted_at=MOMENT, due=LATER), LATER),
        (sample_rollout(state=State.PROVISIONING, promoted_at=MOMENT, due=LATER), MOMENT),
        (sample_rollout(state=State.RELEASING, promoted_at=MOMENT), MOMENT),
        (sample_rollout(state=State.STUCK, retry_at=LATER), LATER),
        (sample_endpoint(versions=(CANARY,), state=State.REQUESTED), MOMENT),
        (sample_endpoint(versions=(CANARY,), **READY), LAST),
        (sample_endpoint(**READY), None),
        (sample_endpoint(**READY, expires_at=LATER), LATER),
        (sample_endpoint(**READY, versions=(FIRST.revised(state="retiring", share=0), CANARY), expires_at=LATER), LAST),
        (sample_endpoint(state=State.RELEASING, retry_at=LATER), LATER),
    ],
    ids=[
        "just asked for", "its servers are up", "its canary is watched", "never after `until`", "it stands by itself",
        "it retires", "it is repaired", "it goes", "it is stuck",
        "endpoint: just asked for", "endpoint: no version yet", "endpoint: it stands by itself", "endpoint: it expires",
        "endpoint: nothing serves", "endpoint: it goes",
    ],
)  # fmt: skip
def test_when_a_record_needs_an_operation(record: KeptRecord, due: datetime | None) -> None:
    """None: never by the clock, so no keeper stays for it."""
    assert due_at(record) == seconds(due)
    card = card_of(record, Home(Path("/nowhere")))
    assert (card.due if card else None) == seconds(due)
    assert card is None or (card.kind, card.id, card.state) == (record.kind, record.id, record.state)


def test_what_is_released_has_no_card() -> None:
    """And nothing that stands by itself has one, unless a moment comes for it."""
    home = Home(Path("/nowhere"))
    for sample in (sample_lease, sample_endpoint, sample_rollout):
        assert card_of(sample(state=State.RELEASED), home) is None
    assert card_of(sample_rollout(**READY, promoted_at=MOMENT), home) is None
    assert card_of(sample_endpoint(**READY), home) is None


@pytest.mark.parametrize("state", State)
def test_what_is_served_stands_until_it_begins_to_go(state: State) -> None:
    """A promoted version and an endpoint that has one are nobody's any more; a release is seen through by a keeper."""
    live = state in {State.REQUESTED, State.PROVISIONING, State.READY}
    assert stands(sample_rollout(state=state, promoted_at=MOMENT)) is live
    assert stands(sample_endpoint(state=state)) is live
    assert stands(sample_rollout(state=state)) is False
    assert stands(sample_endpoint(state=state, versions=(CANARY,))) is False


@pytest.fixture
def client() -> Any:
    """A client that lives here, in another process."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield Client(kind="process", process=identify(process.pid))
        process.communicate(b"\n")


@pytest.mark.parametrize(
    ("record", "watched", "renewed"),
    [
        (sample_lease(**READY), True, True),
        (sample_rollout(**READY), True, True),
        (sample_rollout(**READY, promoted_at=MOMENT, due=LATER), False, False),
        (sample_rollout(state=State.RELEASING), False, False),
        (sample_endpoint(versions=(CANARY,), **READY), True, False),
        (sample_endpoint(expires_at=LATER, **READY), False, False),
    ],
    ids=["lease", "rollout", "promoted", "going", "first version", "serving"],
)
def test_a_client_is_watched_until_its_version_is_promoted(
    client: Client, record: KeptRecord, watched: bool, renewed: bool
) -> None:
    """Before it, the client's end takes the rollout back; after it, nobody's end does."""
    home = Home(Path("/nowhere"))
    card = card_of(record.revised(client=client), home)
    pipe = str(home.clients / f"{record.id}.fifo")
    assert (card.client_pid, card.client_fifo) == ((client.process.pid, pipe) if watched else (None, None))
    assert card.renew is renewed


def test_every_attempt_that_may_hold_something_has_its_lock_on_the_card() -> None:
    """An operation begins when no Terraform of the record holds one; it is ended when its deadline is past."""
    attempts = (sample_attempt(state="released"), sample_attempt(2, state="up", operation_deadline=LATER))
    card = card_of(sample_rollout(attempts=attempts, **READY), Home(Path("/nowhere")))
    assert card.lock_files == (os.path.join(attempts[1].directory, "lock"),)  # noqa: PTH118 (a card holds text)
    assert card.operation_deadline == seconds(LATER)
    assert card.env["MLINFRA_LEASE_ID"] == sample_rollout().id
    assert card.env["MLINFRA_ATTEMPT"] == "2"
