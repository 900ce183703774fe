"""What Prefect knows that a lease must know: which run this is, whose process it lives in, and when it has ended.

The client of a lease is the process that runs the *flow*. A task may run in a child process of it (then the parent is
the client), and the process may outlive the run (notebook, script, subflow: then the run's end is the client's end).
Where a task runs on another host, or in a worker that serves many runs, nobody on this host could prove the flow dead,
so that is refused.
"""

from __future__ import annotations

import getpass
import itertools
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from prefect.context import FlowRunContext, TaskRunContext

from mlinfra_prefect.errors import LeaseAmbiguous, UnsupportedHere
from mlinfra_prefect.lifecycle.leasing import Key
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Client
from mlinfra_prefect.model.names import minted
from mlinfra_prefect.model.process import Owner

_ELSEWHERE = (
    "{where} runs tasks where nobody can prove that the flow is dead, so a lease taken there could leak.",
    "Take the lease in the flow, or use a thread or process task runner; task workers, Dask and Ray come later.",
)


def in_run() -> bool:
    """Whether this code runs inside a Prefect flow or task run."""
    return FlowRunContext.get() is not None or TaskRunContext.get() is not None


def owner() -> Owner:
    """Who asks, as far as Prefect and the host know."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    run = flow.flow_run if flow else None
    return Owner(
        user=getpass.getuser(),
        host=socket.gethostname(),
        flow=flow.flow.name if flow and flow.flow else None,
        flow_run_id=str(run.id) if run else None,
        flow_run=run.name if run else None,
        deployment=str(run.deployment_id) if run and run.deployment_id else None,
        task_run=task.task_run.name if task else None,
    )


def client() -> Client:
    """The client of a lease asked for here.

    Raises:
        UnsupportedHere: this is a task worker, Dask or Ray.
    """
    refuse_elsewhere()
    flow = FlowRunContext.get()
    parent = multiprocessing.parent_process()
    if flow is not None and flow.detached and parent is not None and parent.pid:
        return Client(kind="process", process=identify(parent.pid))
    return Client(kind="process", process=identify())


def refuse_elsewhere() -> None:
    """Refuse the places where a lease could leak until clients are seen through the ledger."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is not None and flow.detached:
        for module, name in (("distributed", "Dask"), ("ray", "Ray")):
            if module in sys.modules:
                raise UnsupportedHere(_ELSEWHERE[0].format(where=name), _ELSEWHERE[1])
        if multiprocessing.parent_process() is None:
            raise UnsupportedHere(_ELSEWHERE[0].format(where="This task runner"), _ELSEWHERE[1])
    if flow is None and task is not None and _is_task_worker():
        raise UnsupportedHere(_ELSEWHERE[0].format(where="A task worker"), _ELSEWHERE[1])


def _is_task_worker() -> bool:
    # A background task carries no sign of the worker that runs it; the worker's module is loaded where one serves.
    module = sys.modules.get("prefect.task_worker")
    if module is None:
        return False
    import gc

    return any(isinstance(item, module.TaskWorker) and item.started for item in gc.get_objects())


def ended() -> Callable[[], bool]:
    """Return a function that tells whether the run that asks now has ended though its process lives on.

    The engine keeps the state of the run's own `flow_run` object current in the process that runs the flow.
    """
    flow = FlowRunContext.get()
    if flow is None or flow.detached or flow.flow_run is None:
        return lambda: False
    run = flow.flow_run

    def is_over() -> bool:
        return run.state is not None and run.state.is_final()

    return is_over


@dataclass
class _Calls:
    """How often one key was asked for in one try of one run, and by whom it is open now."""

    number: int = 0
    open_by: dict[int, tuple[int, int]] = field(default_factory=dict)


_process_run = minted()
_calls: dict[tuple[str, int, str, str], _Calls] = {}
_lock = threading.Lock()
_tickets = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A key in use; give it back with `close` when the lease is closed."""

    key: Key
    place: tuple[str, int, str, str]
    number: int

    def close(self) -> None:
        """The lease of this key is closed. Idempotent."""
        with _lock:
            calls = _calls.get(self.place)
            if calls is not None:
                calls.open_by.pop(self.number, None)


def ticket(name: str, explicit: str | None) -> Ticket:
    """Return the key of a lease asked for here: the same in a retry of the same flow run, never the same twice in one.

    Calls in a loop are numbered; tasks have their task key with Prefect's dynamic key. Two calls that are open at once
    and that nothing but chance tells apart are refused.

    Raises:
        LeaseAmbiguous: pass ``key=``.
    """
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow is not None and flow.flow_run is not None:
        run, tries = str(flow.flow_run.id), flow.flow_run.run_count
    elif task is not None:
        run, tries = str(task.task_run.id), 0
    else:
        run, tries = _process_run, os.getpid()
    task_key = ""
    if task is not None:
        task_key = f"{task.task_run.task_key}/{task.task_run.dynamic_key}"
        tries = tries * 1000 + task.task_run.run_count
    if explicit is not None:
        task_key = f"key:{explicit}"
    place = (run, tries, name, task_key)
    me = _caller()
    with _lock:
        calls = _calls.setdefault(place, _Calls())
        if explicit is None and any(other != me for other in calls.open_by.values()):
            raise LeaseAmbiguous(
                f"Two concurrent calls ask for lease {name!r} in the same run, and nothing tells them apart.",
                "Pass key=… to each, or ask for them in tasks.",
            )
        if explicit is not None and calls.open_by:
            raise LeaseAmbiguous(f"key: {explicit!r} is in use by another open lease {name!r} of this run.", "Pass another.")
        if explicit is None or calls.number == 0:
            calls.number += 1
        number = next(_tickets)
        calls.open_by[number] = me
        position = calls.number
    suffix = f"{task_key}#{position}" if explicit is None else task_key
    return Ticket(Key(run=run, name=name, task_key=suffix), place, number)


def _caller() -> tuple[int, int]:
    import asyncio

    try:
        running = asyncio.current_task()
    except RuntimeError:
        running = None
    return threading.get_ident(), id(running) if running is not None else 0
