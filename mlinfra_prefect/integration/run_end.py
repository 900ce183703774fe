"""When a flow run has ended though its process lives on: a notebook, a script with many runs, a subflow.

There the end of the run is the end of the client, and nobody tells: hooks exist only where a flow defines them. The
engine keeps the state of the run's own object current, in the process that runs the flow, so looking at it is enough;
but a try after the first gets an object of its own, so a run that may be tried again is asked for at the server, too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, TaskRun
from prefect.context import FlowRunContext, SettingsContext, TaskRunContext, get_settings_context

from mlinfra_prefect.integration.runs import in_task_worker

ASK_SECONDS = 5.0
"""How often the server is asked about a run that may be tried again."""


def run_end() -> Callable[[], bool]:
    """Return a function that tells whether the run that asks now has ended. It returns at once and never raises."""
    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if task is not None and in_task_worker():
        return RunEnd(task.task_run, asks=False)
    if flow is None or flow.detached or flow.flow_run is None:
        return lambda: False
    retries = flow.flow_run.empirical_policy.retries or (flow.flow.retries if flow.flow else 0)
    return RunEnd(flow.flow_run, asks=bool(retries))


class RunEnd:
    """Looks at one run until it is over: a flow's, or in a task worker a task's."""

    def __init__(self, run: FlowRun | TaskRun, *, asks: bool) -> None:
        self._run = run
        self._asks = asks
        self._over = False
        self._asking = False
        self._next = time.monotonic() + ASK_SECONDS
        # They are a context variable: without them another thread would ask another server.
        self._settings = get_settings_context()

    def __call__(self) -> bool:
        """Whether the run is over, as far as is known."""
        self._over = self._over or _has_left(self._run.state)
        if not self._over and self._asks and not self._asking and time.monotonic() >= self._next:
            self._asking = True
            threading.Thread(target=self._ask, name="mlinfra-run-end", daemon=True).start()
        return self._over

    def _ask(self) -> None:
        with suppress(Exception):  # the server may be away; the end of the process is noticed without it
            # A client of its own: the flow's is closed when the run ends.
            here = SettingsContext(profile=self._settings.profile, settings=self._settings.settings)
            with here, get_client(sync_client=True) as server:
                state = server.read_flow_run(self._run.id).state
            self._over = self._over or _has_left(state, paused=False)
        self._next = time.monotonic() + ASK_SECONDS
        self._asking = False


def _has_left(state: State | None, *, paused: bool = True) -> bool:
    """Whether a run in this state runs here no more.

    The engine's object says `paused` only when its try was given up; for the server, a run that waits for input in this
    process is paused as well.
    """
    if state is None:
        return False
    return state.is_final() or (paused and state.is_paused()) or state.name == "Suspended"
