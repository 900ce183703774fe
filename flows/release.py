"""Release what a dead flow run leased: what the automation starts when a run is cancelled, crashes or goes silent.

The keeper notices a dead client by itself, and sooner. This is the line for when the keeper has died with it.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from mlinfra_prefect.flows.reap import SETTLE_SECONDS, told
from mlinfra_prefect.integration.automations import release_run
from mlinfra_prefect.integration.phase import context


@flow(name="release")
def release_of_run(
    flow_run_id: str, reason: str = "", settle_seconds: Annotated[int, Field(ge=0, le=3600)] = SETTLE_SECONDS
) -> Any:
    """Release every lease of a flow run whose process is dead, as its request says; fail when something is stuck.

    Args:
        flow_run_id: Whose leases.
        reason: Why this run was started; the automation fills it in.
        settle_seconds: How long to wait until they are gone.
    """
    return told(release_run(context(), flow_run_id, settle_seconds=settle_seconds, reason=reason))
