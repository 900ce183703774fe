"""A lost keeper is replaced by the next verb on its host; when all is well that costs one look at a lock."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlinfra_prefect.cli.outcome import complain, one_line
from mlinfra_prefect.errors import MlinfraError

if TYPE_CHECKING:
    from mlinfra_prefect.model.home import Home


def replace_lost_keeper(home: Home) -> bool:
    """Start a keeper where work lies on the desk and nobody watches it; says whether it did.

    Never fails the verb that calls it: what goes wrong is a warning, and the next verb tries again.
    """
    try:
        laid = any(item.name.endswith(".json") for item in os.scandir(home.cards))
    except OSError:
        return False
    if not laid:
        return False
    from mlinfra_prefect.keeper.watch import is_held

    if is_held(str(home.keeper / "watch.lock")):
        return False
    from mlinfra_prefect.keeper import starting
    from mlinfra_prefect.lifecycle.context import Context

    try:
        starting.replace_lost_keeper(Context(home))
    except MlinfraError as error:
        complain(f"the keeper is gone and cannot be replaced yet: {one_line(error)}", word="warning")
        return False
    return True
