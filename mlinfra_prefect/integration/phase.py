"""What every phase is made of: the context of the home, and a Prefect task that is never cached, kept or retried.

A cached handle would be one to a destroyed machine (RELIABILITY 8), and our own loop knows the lock (rule R12).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.tasks import Task

from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.settings import apply_settings
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.home import Home

P = ParamSpec("P")
R = TypeVar("R")
_contexts: dict[tuple[Home, int], Context] = {}


def context() -> Context:
    """The context of the home that ``MLINFRA_HOME`` names now; a forked child gets its own."""
    apply_settings()
    home = Home.from_environment()
    key = (home, os.getpid())
    if key not in _contexts:
        _contexts[key] = Context(home)
    return _contexts[key]


def phase(kind: Task[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a phase as a task inside a Prefect run, and as a plain function outside of one."""
    call: Callable[P, R] = kind if runs.in_run() else kind.fn
    return call(*args, **kwargs)


def as_phase(name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task of a phase."""
    return task(name=name, cache_policy=NO_CACHE, persist_result=False, retries=0)
