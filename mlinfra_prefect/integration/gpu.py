"""``@gpu(...)``: the body of a task runs on a leased node, one lease per call, gone when the call returns.

It goes over or under ``@task`` and leaves a Task a Task: ``.map``, ``.submit``, retries and caching work, and a cache
hit provisions nothing, because Prefect answers it before our wrapper is called.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

from prefect.flows import Flow
from prefect.tasks import Task

from mlinfra_prefect.errors import UnsupportedHere
from mlinfra_prefect.integration import phase, runs
from mlinfra_prefect.integration.lease import lease
from mlinfra_prefect.integration.requesting import RequestLike, as_request
from mlinfra_prefect.integration.work import Options, callable_work, on_node
from mlinfra_prefect.lifecycle.suiting import refuse_unsuited
from mlinfra_prefect.lifecycle.training import Work
from mlinfra_prefect.model.request import TrainingRequest

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])


def gpu(
    request: RequestLike | None = None,
    *,
    inputs: Mapping[str, str] | None = None,
    secrets: Mapping[str, str] | None = None,
    requirements: list[str] | tuple[str, ...] = (),
    resume: str | None = None,
    progress_timeout_minutes: float | None = None,
    by_value: bool = False,
    key: str | None = None,
    **overrides: Any,
) -> Callable[[F], F]:
    """Run a task's body on a leased node.

    Args:
        request: an accelerator, a `TrainingRequest`, the path of a YAML file, or a `MlinfraRequest` block.
        inputs: name to path or file:// URI; ``MLINFRA_INPUT_<NAME>`` on the node.
        secrets: name to reference (``env:X``; on aws ``aws-sm:NAME`` or ``ssm:/NAME``); set for the training process
            only.
        requirements: packages that the agent installs on top of the flow's environment.
        resume: the key under which checkpoints outlive leases; ``{name}`` stands for a parameter.
        progress_timeout_minutes: end a training that tells no progress for so long.
        by_value: send the function itself: for closures and notebooks.
        key: tells concurrent calls outside tasks apart.
        **overrides: fields of the request: ``max_minutes``, ``environment``, ``market``, …

    Raises:
        InvalidInput: at decoration: the request or an option is wrong.
        UnsupportedHere: at decoration: on a flow or a generator.
    """
    if on_node():
        return _as_it_is
    wanted = as_request(request, overrides)
    options = Options(
        inputs=dict(inputs or {}), secrets=dict(secrets or {}), requirements=tuple(requirements), resume=resume,
        progress_timeout_minutes=progress_timeout_minutes, by_value=by_value,
    )  # fmt: skip
    options.checked()

    def decorate(target: F) -> F:
        if isinstance(target, Flow):
            raise UnsupportedHere(
                "@gpu goes on a task, not on a flow: a flow starts tasks, and a node runs one function.",
                "Use @lease(...) under @flow, or @gpu on the tasks.",
            )
        if isinstance(target, Task):
            clone: Any = copy.copy(target)
            clone.fn = _wrapped(target.fn, wanted, options, key)
            clone.__mlinfra_callable__ = target.fn
            return clone  # type: ignore[no-any-return]
        return _wrapped(target, wanted, options, key)  # type: ignore[return-value]

    return decorate


def _as_it_is(target: F) -> F:
    return target


def _wrapped(function: Callable[P, R], request: TrainingRequest, options: Options, key: str | None) -> Callable[P, R]:
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UnsupportedHere(
            f"{function.__name__}: @gpu cannot run a generator: a node returns one result.", "Return a list, or a Path."
        )

    def prepared(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Work:
        runs.refuse_elsewhere()
        _refuse_flow_body(function)
        here = phase.context()
        work = callable_work(here, function, args, kwargs, options)
        refuse_unsuited(here, request, work)
        return work

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def waits(*args: P.args, **kwargs: P.kwargs) -> Any:
            work = await asyncio.to_thread(prepared, args, kwargs)
            async with lease(request, key=key) as infra:
                return (await asyncio.to_thread(infra.run_work, work)).value

        wrapper: Any = waits
    else:

        @functools.wraps(function)
        def holds(*args: P.args, **kwargs: P.kwargs) -> Any:
            work = prepared(args, kwargs)
            with lease(request, key=key) as infra:
                return infra.run_work(work).value

        wrapper = holds
    wrapper.__mlinfra_callable__ = function
    found: Callable[P, R] = wrapper
    return found


def _refuse_flow_body(function: Callable[..., Any]) -> None:
    """``@flow`` over ``@gpu`` would send a flow's body to a node; only seen when it is called."""
    place = runs.here()
    body = getattr(place.flow.flow, "fn", None) if place.flow is not None and place.task is None else None
    if body is not None and getattr(body, "__mlinfra_callable__", None) is function:
        raise UnsupportedHere(
            f"{function.__name__}: @gpu stands under @flow, so the flow's own body would run on the node.",
            "Put @gpu on a task, or use @lease(...) under @flow.",
        )
