"""The key of a lease: the same in a retry of the same flow run, and never the same twice in one.

Prefect gives every task run a dynamic key, but since 3.8 a random one, which no retry could find again. So task runs
are counted here: by what they call and with which arguments, and among equal ones by order. Calls in a loop are counted
too. Two calls that are open at once and that nothing but chance tells apart are refused.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from dataclasses import dataclass, field

from prefect.context import TaskRunContext
from prefect.utilities.hashing import hash_objects

from mlinfra_prefect.errors import LeaseAmbiguous
from mlinfra_prefect.integration.runs import Here, here
from mlinfra_prefect.lifecycle.leasing import Key
from mlinfra_prefect.model.names import minted

RUNS_REMEMBERED = 256
"""A process that serves many runs forgets the oldest ones that hold no lease."""


@dataclass
class _Calls:
    """How often one name was asked for at one place in one try of a run, and by whom it is open now."""

    number: int = 0
    open_by: dict[int, tuple[int, int]] = field(default_factory=dict)


@dataclass
class _Run:
    """What was asked for in one run."""

    calls: dict[tuple[object, ...], _Calls] = field(default_factory=dict)
    equals: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict)


_runs: dict[str, _Run] = {}
_lock = threading.Lock()
_tickets = itertools.count(1)
_process_run = minted()


@dataclass(frozen=True, slots=True)
class Ticket:
    """A key in use; give it back with `close` when the lease is closed."""

    key: Key
    calls: _Calls
    number: int

    def close(self) -> None:
        """The lease of this key is closed. Idempotent."""
        with _lock:
            self.calls.open_by.pop(self.number, None)


def ticket(name: str, explicit: str | None) -> Ticket:
    """Return the key of a lease asked for here.

    Args:
        name: the lease's name.
        explicit: ``key=``: makes the key alone, wherever in the run it is asked for.

    Raises:
        LeaseAmbiguous: pass ``key=``.
    """
    place = here()
    run, tries = _run_of(place)
    me = _caller()
    with _lock:
        known = _runs.setdefault(run, _Run())
        _forget_old()
        if explicit is not None:
            where, counted = f"key:{explicit}", (tries, name, explicit, "key")
        elif place.task is not None:
            where = _task_place(known, tries, place, place.task)
            counted = (tries, name, where, str(place.task.task_run.run_count))
        else:
            where, counted = "", (tries, name, "", "flow")
        calls = known.calls.setdefault(counted, _Calls())
        if explicit is not None and calls.open_by:
            raise LeaseAmbiguous(
                f"key: {explicit!r} is in use by another open lease {name!r} of this run.", "Pass another."
            )
        if any(other != me for other in calls.open_by.values()):
            raise LeaseAmbiguous(
                f"Two concurrent calls ask for lease {name!r} in the same run, and nothing tells them apart.",
                "Pass key=… to each, or ask for them in tasks.",
            )
        calls.number += 1
        number = next(_tickets)
        calls.open_by[number] = me
        suffix = where if explicit is not None else f"{where}#{calls.number}"
    return Ticket(Key(run=run, name=name, task_key=suffix), calls, number)


def _run_of(place: Here) -> tuple[str, int]:
    """The run that a key belongs to, and its try: counting begins anew in each."""
    if place.flow is not None and place.flow.flow_run is not None:
        return str(place.flow.flow_run.id), place.flow.flow_run.run_count
    if place.task is not None:
        return str(place.task.task_run.id), 0
    return f"{_process_run}/{os.getpid()}", 0


def _task_place(known: _Run, tries: int, place: Here, task: TaskRunContext) -> str:
    run = task.task_run
    if place.flow is None or place.flow.detached:
        # In a process of a pool nobody can count what its siblings ask for: unique, so a retry does not find it.
        return f"{run.task_key}/{run.id}"
    equal = f"{run.task_key}/{hash_objects(task.parameters) or ''}"
    ordinals = known.equals.setdefault((tries, equal), {})
    return f"{equal}/{ordinals.setdefault(str(run.id), len(ordinals) + 1)}"


def _forget_old() -> None:
    for run in list(_runs)[: max(0, len(_runs) - RUNS_REMEMBERED)]:
        if not any(calls.open_by for calls in _runs[run].calls.values()):
            del _runs[run]


def _caller() -> tuple[int, int]:
    try:
        running = asyncio.current_task()
    except RuntimeError:
        running = None
    return threading.get_ident(), id(running) if running is not None else 0
