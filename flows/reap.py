"""The reaper as a scheduled flow: one more line that needs neither a keeper nor a flow to be alive.

It runs every minute and mostly finds nothing, so then it says nothing. What is stuck makes the run red.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.states import Completed, Failed
from pydantic import Field

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.integration.phase import context
from mlinfra_prefect.integration.stuck import show_stuck
from mlinfra_prefect.keeper.reap import Pass, reap as one_pass, reap_until_quiet

SETTLE_SECONDS = 45
"""Less than the minute between two passes: what takes longer goes on under its keeper, and the next one looks again."""


@flow(name="reap")
def reap(
    settle_seconds: Annotated[int, Field(ge=0, le=3600)] = SETTLE_SECONDS,
    until_quiet: bool = False,
    dry_run: bool = False,
    environment: str = "",
) -> Any:
    """Take over what nobody keeps any more, and end what no open record names; fail when something is stuck.

    Args:
        settle_seconds: How long to wait for what is being released.
        until_quiet: Pass after pass, for an hour at most, until what is left lives or is stuck.
        dry_run: Say what a pass would do; change nothing and start nothing.
        environment: Only what is in this environment; empty means all.
    """
    if until_quiet and dry_run:
        raise InvalidInput("dry_run", "changes nothing, so it is never quiet", "Choose one of the two.")
    where = environment.strip() or None
    if until_quiet:
        found = reap_until_quiet(context(), environment=where)
    else:
        found = one_pass(context(), settle_seconds=settle_seconds, environment=where, dry_run=dry_run)
    if where is None and not dry_run:  # a look at a part says nothing of the rest
        show_stuck(found)
    return told(found)


def told(found: Pass) -> Any:
    """Turn a pass into the run's end: Failed with what is stuck, else Completed with what was done."""
    if found.dry_run:
        said = "; ".join(f"{each.id}: {each.reason}" for each in found.planned) or "Nothing would be done."
        return Completed(message=f"A dry run. {said}", data=found.model_dump(mode="json"))
    if found.stuck:
        stuck = "; ".join(f"{each.id}: {each.reason}" for each in found.stuck)
        return Failed(message=f"{len(found.stuck)} stuck, tried again by the next pass: {stuck}")
    released = "; ".join(f"{each.id}: {each.reason}" for each in found.released)
    said = f"{len(found.released)} released: {released}" if found.released else "Nothing to release."
    if found.orphans:
        said += f" {len(found.orphans)} orphans: {'; '.join(f'{each.id}: {each.reason}' for each in found.orphans)}"
    return Completed(message=said, data=found.model_dump(mode="json"))


if __name__ == "__main__":
    reap()
