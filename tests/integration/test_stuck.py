"""Rule: what is stuck stands in the Prefect UI, red and in one artifact, while it is; quiet passes write none."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact

from mlinfra_prefect.flows.reap import reap
from mlinfra_prefect.integration.stuck import KEY
from mlinfra_prefect.ledger import SqliteLedger
from mlinfra_prefect.lifecycle.markdown import RED, stuck_markdown
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.testing.records import MOMENT, sample_lease


def stored() -> list[Artifact]:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[KEY])))


def test_one_artifact_is_red_while_anything_is_stuck_and_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stuck: none. Then one, the same again, and green in its place when it is over. The run is red, too."""
    monkeypatch.setenv("MLINFRA_HOME", str(tmp_path))
    home = Home(tmp_path).ensure()
    assert reap(settle_seconds=0, return_state=True).is_completed()
    assert stored() == []
    ledger = SqliteLedger(home.ledger)
    record = sample_lease().revised(ledger_id=ledger.ledger_id)
    ledger.create(record, actor="test", reason="asked for")

    def schema(number: int) -> None:
        with closing(sqlite3.connect(home.ledger)) as db, db:
            db.execute("UPDATE records SET schema = ?", (number,))

    schema(99)  # it cannot be read, so it cannot be released
    pages = []
    for _ in range(2):
        red = reap(settle_seconds=0, return_state=True)
        assert red.is_failed()
        (artifact,) = stored()
        pages.append(str(artifact.data))
        time.sleep(1.0)  # the page tells the second in which it was seen
    assert all(RED in page and record.id in page for page in pages)
    assert pages[0] != pages[1]  # it says when it was seen
    with closing(sqlite3.connect(home.ledger)) as db, db:
        db.execute("DELETE FROM records")
    for _ in range(2):
        assert reap(settle_seconds=0, return_state=True).is_completed()
        (artifact,) = stored()
        assert "Nothing is stuck any more" in str(artifact.data)
        assert RED not in str(artifact.data)
    ledger.close()


def test_what_others_wrote_is_no_markup() -> None:
    """Reasons are Terraform's words, and a user's."""
    page = stuck_markdown([("l1", "a | b\n<script>")], now=MOMENT)
    assert "<script>" not in page
    assert r"a \| b" in page
