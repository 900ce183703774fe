"""The reaper as a scheduled flow: one more line that needs neither a keeper nor a flow to be alive.

It runs every minute and mostly finds nothing, so then it says nothing. What is stuck makes the run red.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.states import Completed, Failed
from pydantic import Field

from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.keeper.reap import Pass, reap as one_pass

SETTLE_SECONDS = 45
"""Less than the minute between two passes: what takes longer goes on under its keeper, and the next one looks again."""


@flow(name="reap")
def reap(settle_seconds: Annotated[int, Field(ge=0, le=3600)] = SETTLE_SECONDS) -> Any:
    """Take over what nobody keeps any more; fail when something is stuck.

    Args:
        settle_seconds: How long to wait for what is being released.
    """
    return told(one_pass(context(), settle_seconds=settle_seconds))


def told(found: Pass) -> Any:
    """Turn a pass into the run's end: Failed with what is stuck, else Completed with what was done."""
    if found.stuck:
        stuck = "; ".join(f"{each.id}: {each.reason}" for each in found.stuck)
        return Failed(message=f"{len(found.stuck)} stuck, tried again by the next pass: {stuck}")
    released = "; ".join(f"{each.id}: {each.reason}" for each in found.released)
    said = f"{len(found.released)} released: {released}" if found.released else "Nothing to release."
    return Completed(message=said, data=found.model_dump(mode="json"))


if __name__ == "__main__":
    reap()
