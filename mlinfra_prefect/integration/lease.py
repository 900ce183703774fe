"""`lease(...)`: infrastructure for the length of a block, or of a flow when it stands under ``@flow``.

However the block ends, the lease begins to go with one small write that needs neither Prefect nor Terraform; everything
after that write is the keeper's. Prefect gives a cancelled run 30 seconds and no second chance (FACTS), so nothing that
matters is left to the process that is being cancelled.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect.flows import Flow

from mlinfra_prefect.errors import MlinfraError, UnsupportedHere
from mlinfra_prefect.integration import phases, runs
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.work import on_node
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.desk import place_of
from mlinfra_prefect.lifecycle.request_file import as_request
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.request import TrainingRequest

P = ParamSpec("P")
R = TypeVar("R")
PARAMETER = "infra"


class lease:  # noqa: N801 (it is used as a verb: `with lease(...)`)
    """Lease infrastructure for a block: ``with lease("A100:8") as infra``, ``async with``, or a decorator under ``@flow``.

    Args:
        request: an accelerator (``"A100:8"``, ``"cpu"``), a `TrainingRequest`, or the path of a YAML file.
        wait: whether the block begins when the lease is ready; with False it begins at once, the keeper provisions
            meanwhile, and the first work on it waits.
        key: tells this lease from others of the same name in the same run; only needed for concurrent calls.
        **overrides: fields of the request, merged in: ``platform``, ``environment``, ``max_minutes``, …

    Raises:
        InvalidInput, CapacityUnavailable, BudgetExceeded, QuotaExceeded: nothing was created.
        LeaseHeld, LeaseAmbiguous: another live runner has this very lease.
    """

    receipt: Receipt | None = None
    """After the block: the proof that it is gone; None where the block did not wait for it."""

    def __init__(
        self,
        request: str | Path | TrainingRequest | Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
        key: str | None = None,
        **overrides: Any,
    ) -> None:
        self._request = as_request(request, overrides)
        self._wait = wait
        self._key = key
        self._ticket: runs.Ticket | None = None
        self._infra: Infra | None = None

    # --- as a block --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Infra:
        self._begin()
        return self._obtain()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end(error)

    async def __aenter__(self) -> Infra:
        self._begin()
        obtaining = asyncio.ensure_future(asyncio.to_thread(self._obtain))
        try:
            return await asyncio.shield(obtaining)
        except asyncio.CancelledError:
            # The thread cannot be stopped: what it obtains is given back as soon as it has its id.
            obtaining.add_done_callback(self._give_back_late)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._end(error)
        else:
            await asyncio.to_thread(self._end, error)

    def _begin(self) -> None:
        if self._infra is not None:
            raise UnsupportedHere("This lease(...) is in use already; make a new one for each block.")
        self._ticket = runs.ticket(self._request.name, self._key)

    def _obtain(self) -> Infra:
        assert self._ticket is not None  # noqa: S101 (_begin made it)
        try:
            infra: Infra = phases.phase(phases.provision_for_lease, self._request, self._ticket, self._wait)
        except BaseException:
            self._ticket.close()
            raise
        infra.bind_to_block()
        self._infra = infra
        return infra

    def _give_back_late(self, obtaining: asyncio.Future[Infra]) -> None:
        if not obtaining.cancelled() and obtaining.exception() is None:
            phases.quietly_released(phases.context(), obtaining.result().id, "its block was cancelled")

    def _end(self, error: BaseException | None) -> None:
        infra, ticket = self._infra, self._ticket
        if infra is None or ticket is None:
            return
        self._infra = None
        try:
            if error is None:
                try:
                    infra.close_block()
                except BaseException as own:
                    self._give_back(infra, f"its block ended with {type(own).__name__}", own)
                    raise
                self._give_back(infra, "its block ended", None)
                return
            infra.close()
            self._give_back(infra, f"its block ended with {type(error).__name__}", error)
        finally:
            ticket.close()
            keeper.CLIENT.let_go(infra.id)

    def _give_back(self, infra: Infra, why: str, error: BaseException | None) -> None:
        """Mark first, with nothing of Prefect in the way; then wait for the receipt where there is time to."""
        here = phases.context()
        with suppress(MlinfraError):
            keeper.release(here, infra.id, reason=why)
        dying = error is not None and not isinstance(error, Exception)
        if dying and place_of(here, self._request.environment) == "process":
            return
        try:
            self.receipt = keeper.wait_released(here, infra.id) if dying else phases.phase(phases.release, infra)
        except MlinfraError as problem:
            if error is None:
                raise
            say(f"lease {infra.id}: {problem}", level=logging.ERROR)
        except Exception as problem:  # noqa: BLE001 (Prefect's API may be away; the keeper releases all the same)
            logging.getLogger("mlinfra_prefect").warning("the release of %s goes on without Prefect: %s", infra.id, problem)
            if error is None:
                self.receipt = keeper.wait_released(here, infra.id, timeout=phases.RELEASE_WAIT_SECONDS)

    # --- as a decorator ----------------------------------------------------------------------------------------------

    def __call__(self, function: Callable[Concatenate[Infra, P], R]) -> Callable[P, R]:
        """Decorate a function with a parameter ``infra``; goes *under* ``@flow``, so that forms do not show `infra`.

        Raises:
            UnsupportedHere: it stands over ``@flow`` or ``@task``, or the function has no parameter ``infra``.
        """
        if isinstance(function, Flow) or hasattr(function, "task_key"):
            raise UnsupportedHere("@lease goes under @flow: write @flow first, then @lease(...), then the function.")
        signature = inspect.signature(function)
        if PARAMETER not in signature.parameters:
            raise UnsupportedHere(f"{function.__name__}: a function under @lease takes a parameter named 'infra'.")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UnsupportedHere(f"{function.__name__}: @lease cannot hold a lease open for a generator.")

        def fresh() -> lease:
            return lease(self._request, wait=self._wait, key=self._key)

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waits(*args: Any, **kwargs: Any) -> Any:
                async with fresh() as infra:
                    return await function(*_with_infra(shown, args), **{PARAMETER: infra}, **_named(shown, args, kwargs))

            wrapper: Any = waits
        else:

            @functools.wraps(function)
            def holds(*args: Any, **kwargs: Any) -> Any:
                with fresh() as infra:
                    return function(*_with_infra(shown, args), **{PARAMETER: infra}, **_named(shown, args, kwargs))  # type: ignore[call-arg]

            wrapper = holds
        shown = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != PARAMETER])
        wrapper.__signature__ = shown
        wrapper.__annotations__ = {n: a for n, a in function.__annotations__.items() if n != PARAMETER}
        if on_node():
            return function  # type: ignore[return-value]
        decorated: Callable[P, R] = wrapper
        return decorated


def _with_infra(shown: inspect.Signature, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments that have no name to be passed by (``*args`` of the function itself)."""
    named = [p for p in shown.parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return args[len(named) :]


def _named(shown: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    names = [p.name for p in shown.parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    return {**dict(zip(names, args, strict=False)), **kwargs}
