"""Rule R5: records hold the store's time; a host whose clock is an hour wrong ends nothing early or late for that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mlinfra_prefect.keeper.desk import card_of
from mlinfra_prefect.ledger import KeptRecord, ObjectLedger
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.lifecycle.provisioning import provision
from mlinfra_prefect.lifecycle.releasing import release_pass
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.ledger_address import parse_address
from mlinfra_prefect.testing.objects import MemoryObjects


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_lease_lives_as_long_on_a_host_whose_clock_is_an_hour_wrong(
    context: Context, asked: Callable[..., LeaseRecord], hours: int
) -> None:
    """The node, the card and the mark of its processes have the host's time; the record has the store's."""
    store = MemoryObjects(clock=lambda: datetime.now(UTC) + timedelta(hours=hours))
    context.ledger.close()
    vars(context).update(
        ledger=ObjectLedger(store.opened()), address=parse_address("s3://somewhere/else", field="ledger")
    )
    left: dict[str, float] = {}

    def tell(record: KeptRecord) -> None:
        attempt = record.attempt
        assert attempt is not None
        assert attempt.operation_deadline is not None
        left[str(attempt.operation)] = (attempt.operation_deadline - context.ledger.now()).total_seconds()

    context.tell = tell
    record = provision(context, asked())
    assert record.state is State.READY
    card = card_of(record, context.home, context.here)
    assert card is not None
    assert card.due is not None
    # Five minutes of life, of which the last sixth is for draining.
    assert 200 < card.due - time.time() < 255
    assert 240 < float(card.env["MLINFRA_DEADLINE"]) - time.time() < 301
    assert record.attempts[0].node_dir
    spec = json.loads((Path(record.attempts[0].node_dir).parent / "agent-spec.json").read_bytes())
    assert 240 < spec["deadline"] - time.time() < 301
    begin_release(context, record.id, reason="done")
    over = release_pass(context, context.record(record.id))
    assert over.receipt is not None
    assert over.receipt.clean
    assert 0 < left["plan"] < 301
    assert 0 < left["destroy"] < 3600
