"""What a reaper's pass over the ledger costs when very much has been released: per store, and in calls of S3."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlinfra_prefect.keeper.reap import reap
from mlinfra_prefect.ledger import Ledger, SqliteLedger, Transition
from mlinfra_prefect.ledger.object_record import first
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import Client, Keeper, LeaseRecord, State
from mlinfra_prefect.model.ledger_address import parse_address
from mlinfra_prefect.testing.records import MOMENT, sample_lease
from tests.benchmarks.lines import Line
from tests.benchmarks.side_by_side import Effort

LIVE = 100
LATER = datetime.now(UTC) + timedelta(hours=2)
BUCKET = "bench-ledger"
ADDRESS = parse_address(f"s3://{BUCKET}/x", field="ledger")
AIM_SECONDS = 5.0


def looks(released: int, effort: Effort) -> list[Line]:
    """Make passes of the reaper over what is live and needs nothing, among what was released."""
    gone = sample_lease("gone", state=State.RELEASED, released_at=MOMENT)
    # Kept by a keeper that lives: this process.
    keeper = Keeper(place="process", process=identify())
    live = sample_lease("live", state=State.READY, client=Client(kind="none"), keeper=keeper, keep_until=None)
    live = live.revised(deadline=LATER, renewed_until=LATER)
    records = [gone.revised(id=f"{gone.base}-{number}", round=number) for number in range(1, released + 1)]
    records += [live.revised(id=f"{live.base}-{number}", round=number) for number in range(1, LIVE + 1)]
    what = f"a pass of the reaper, {released} released and {LIVE} live"
    with tempfile.TemporaryDirectory() as place, closing(_sqlite(Path(place), records)) as ledger:
        embedded = _timed(ledger, Path(place), effort)
    with tempfile.TemporaryDirectory() as place, _s3(records) as (ledger, calls):
        before = calls()
        shared = _timed(ledger, Path(place), effort)
        each = (calls() - before) / len(shared)
    return [
        Line(f"{what}: SQLite", "s", embedded, AIM_SECONDS),
        Line(f"{what}: S3 (moto)", "s", shared, AIM_SECONDS),
        Line(
            f"{what}: calls of S3",
            "n",
            (each,),
            2.0 * (1 + LIVE) + 8.0,
            "a list and a read each, for records and for damage",
        ),
    ]


def _timed(ledger: Ledger, place: Path, effort: Effort) -> tuple[float, ...]:
    values = []
    context = Context(Home(place))
    vars(context).update(ledger=ledger, address=None if isinstance(ledger, SqliteLedger) else ADDRESS)
    for _ in effort.each():
        began = time.perf_counter()
        found = reap(context, settle_seconds=0.0)
        values.append(time.perf_counter() - began)
        assert (len(found.skipped), found.stuck, found.orphans, found.released) == (LIVE, (), (), ())
    return tuple(values)


def _sqlite(place: Path, records: list[LeaseRecord]) -> SqliteLedger:
    ledger = SqliteLedger(place / "ledger.sqlite")
    with closing(sqlite3.connect(place / "ledger.sqlite")) as db, db:
        db.executemany(
            "INSERT INTO records (id, kind, base, state, version, schema, json) VALUES (?, 'lease', ?, ?, 1, 1, ?)",
            ((each.id, each.base, str(each.state), each.model_dump_json()) for each in records),
        )
    return ledger


@contextmanager
def _s3(records: list[LeaseRecord]) -> Iterator[tuple[Ledger, object]]:
    from moto.s3.models import s3_backends

    from mlinfra_prefect.aws import S3Ledger
    from mlinfra_prefect.aws.sdk import client
    from mlinfra_prefect.testing.emulator import MotoServer

    before = dict(os.environ)
    with MotoServer() as server:
        try:
            os.environ.update(server.environment)
            client().create_bucket(Bucket=BUCKET)
            backend = s3_backends["123456789012"]["aws"]  # ten thousand requests would take two minutes
            with closing(S3Ledger(str(ADDRESS))) as ledger:
                assert ledger.ledger_id  # it has its identity before it has records
            line = Transition(time=MOMENT, generation=1, actor="bench", before=None, state="requested", reason="")
            for each in records:
                backend.put_object(BUCKET, f"x/records/{each.id}.json", first(each, line, (), each.id).body())
                if each.state is not State.RELEASED:
                    backend.put_object(BUCKET, f"x/open/{each.id}", b"")
            with closing(S3Ledger(str(ADDRESS))) as ledger:
                yield ledger, lambda: server.proxy.requests
        finally:
            server.reset()
            os.environ.clear()
            os.environ.update(before)
