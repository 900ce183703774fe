"""Put the same flow on a work pool, for a worker that is there already."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from retrain_digits import NIGHTLY

POOL = "here"

if __name__ == "__main__":
    flow.from_source(  # type: ignore[union-attr] # Prefect says that it may be a coroutine; in a script it is not
        source=str(Path(__file__).parent), entrypoint="retrain_digits.py:retrain_digits"
    ).deploy(name="nightly-on-a-pool", work_pool_name=POOL, schedule=NIGHTLY, concurrency_limit=1)
