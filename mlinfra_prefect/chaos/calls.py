"""What one lease without a fault asks of a cloud: counted by the account, not by us."""

from __future__ import annotations

import time
from pathlib import Path

from mlinfra_prefect.chaos import judge
from mlinfra_prefect.chaos.place import Place, Setting
from mlinfra_prefect.chaos.plan import Plan

SECONDS = 300.0
LOOK_SECONDS = 0.5


def calls_of_a_lease(setting: Setting) -> dict[str, int]:
    """Return the requests of a lease from asking to its receipt, by operation; empty where no account is used.

    Raises:
        TimeoutError: it was not released.
        OSError: there is no account.
    """
    if setting.clouds is None:
        return {}
    with setting.clouds.lent() as lent, Place(setting, Plan("a lease", 0, 0), lent.cloud).borrowed() as place:
        since = lent.cloud.last_request()
        place.client("lease", seconds=2.0)
        until = time.monotonic() + SECONDS
        while not _released(place.home):
            if time.monotonic() > until:
                raise TimeoutError(f"a lease without a fault was not released: {place.said()[-1:]}")
            time.sleep(LOOK_SECONDS)
        return dict(lent.cloud.calls(since))


def _released(home: Path) -> bool:
    states = [record.get("state") for record in judge.records(home).values()]
    return bool(states) and set(states) == {"released"}
