"""What Prefect knows that a lease must know: which run this is, and whose process it lives in.

The client of a lease is the process that runs the *flow*. A task may run in a child process of it (then the parent is
the client). In a task worker, which serves many runs, the client is the task's run: it beats, and its end is the
client's end; so a block may lease there, and a bare `provision`, which nothing would end with the run, is refused.
Where a task of a flow runs on another host nobody there could prove the flow dead, so that is refused.
"""

from __future__ import annotations

import gc
import getpass
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass

from prefect.context import FlowRunContext, TaskRunContext

from mlinfra_prefect.agent.loading import forbid_while_importing
from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.integration.work import on_node
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.process import Owner

_ELSEWHERE = (
    "{where} runs tasks where nobody can prove that the flow is dead, so a lease taken there could leak.",
    "Take the lease in the flow, or use a thread or process task runner; in a task worker, use lease(...) or @gpu.",
)


@dataclass(frozen=True, slots=True)
class Here:
    """The flow run and the task run that this code belongs to; None for what it does not run in."""

    flow: FlowRunContext | None
    task: TaskRunContext | None

    @property
    def flow_run_id(self) -> str | None:
        """The id of the flow run, or None."""
        return str(self.flow.flow_run.id) if self.flow is not None and self.flow.flow_run is not None else None


def here() -> Here:
    """Where this code runs."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is not None and flow.flow_run is not None and task is not None:
        # A flow that a task calls still sees the task around it: that one is not of this run.
        task = task if task.task_run.flow_run_id == flow.flow_run.id else None
    return Here(flow, task)


def in_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def owner() -> Owner:
    """Who asks, as far as Prefect and the host know."""
    place = here()
    run = place.flow.flow_run if place.flow else None
    return Owner(
        user=getpass.getuser(),
        host=socket.gethostname(),
        flow=place.flow.flow.name if place.flow and place.flow.flow else None,
        flow_run_id=str(run.id) if run else None,
        flow_run=run.name if run else None,
        deployment=str(run.deployment_id) if run and run.deployment_id else None,
        task_run=place.task.task_run.name if place.task else None,
    )


def client() -> Client:
    """The client of a lease asked for here.

    Raises:
        UnsupportedHere: this is Dask, Ray or another place on which nothing is known of the flow.
    """
    refuse_elsewhere(block=True)
    if in_task_worker():
        return Client(kind="flow_run", process=identify())
    flow = FlowRunContext.get()
    parent = multiprocessing.parent_process()
    if flow is not None and flow.detached and parent is not None and parent.pid:
        return Client(kind="process", process=identify(parent.pid))
    return Client(kind="process", process=identify())


def is_client(client_of: Client) -> bool:
    """Whether this very process is the client of a record."""
    process = client_of.process
    return process is not None and process.pid == os.getpid() and process == identify()


def in_task_worker() -> bool:
    """Whether this code runs in a background task (``.delay()``), in the worker that picked it up."""
    return FlowRunContext.get() is None and TaskRunContext.get() is not None and _is_task_worker()


def refuse_elsewhere(what: str = "a lease", *, block: bool = False) -> None:
    """Refuse the places where a lease could leak, and a node.

    Args:
        what: is asked for.
        block: it is given back by the block that it is for, which ends with the run: good in a task worker.

    Raises:
        MissingGuard: a node, or the check before provisioning, is importing the user's module.
        UnsupportedHere: this is a node, Dask or Ray, or a task worker without a block.
    """
    forbid_while_importing(what)
    if on_node():
        raise UnsupportedHere(f"A training on a node asked for {what}.", "Ask for it in the flow.")
    flow = FlowRunContext.get()
    if flow is not None and flow.detached:
        if _is_dask():
            raise UnsupportedHere(_ELSEWHERE[0].format(where="Dask"), _ELSEWHERE[1])
        if multiprocessing.parent_process() is None:
            name = "Ray" if "ray" in sys.modules else "This task runner"
            raise UnsupportedHere(_ELSEWHERE[0].format(where=name), _ELSEWHERE[1])
    if not block and in_task_worker():
        raise UnsupportedHere(_ELSEWHERE[0].format(where="A task worker"), _ELSEWHERE[1])


def _is_dask() -> bool:
    # Its workers are children of a multiprocessing parent, like those of a process pool: only it can tell them apart.
    module = sys.modules.get("distributed")
    if module is None:
        return False
    try:
        module.get_worker()
    except (ValueError, AttributeError):
        return False
    return True


def _is_task_worker() -> bool:
    # A background task carries no sign of the worker that runs it; the worker's module is loaded where one serves.
    module = sys.modules.get("prefect.task_worker")
    if module is None:
        return False
    return any(isinstance(item, module.TaskWorker) and item.started for item in gc.get_objects())
