"""A hook for flows that want one more line of teardown: it starts a release where Prefect's runner sees a run end.

Hooks run in the *runner's* process after the flow's has ended, know nothing of the flow's memory, and die with the
runner. So this one finds the leases by the run's id, and only starts what others carry on: it waits for nothing,
destroys nothing, and asks Prefect nothing. It is one line more, not the one to rely on: a run that is SIGKILLed
together with its runner has no hooks (docs/prefect-setups.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlinfra_prefect.integration.automations import release_run
from mlinfra_prefect.integration.phase import context

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State


# Prefect's runner calls hooks with these very keywords; other names raise TypeError there.
def release_on_end(flow: Flow[Any, Any], flow_run: FlowRun, state: State) -> None:  # noqa: ARG001
    """Start the release of what a run leased whose process is dead, as its request says (``on_client_lost``).

    A hook: ``@flow(on_cancellation=[release_on_end], on_crashed=[release_on_end])``. Idempotent, and returns at once:
    the keeper does the work, and is started where it has died, too. Where the flow's process lives on, such as in a
    notebook, it does nothing: the keeper is told there that the run has ended.

    Args:
        flow: the flow.
        flow_run: the run that is over.
        state: the state in which it is over.
    """
    name = getattr(state, "name", None) or "over"
    release_run(context(), str(flow_run.id), settle_seconds=0.0, reason=f"the run is {name}")
