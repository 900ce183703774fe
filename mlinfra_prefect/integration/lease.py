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
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from prefect.flows import Flow
from prefect.tasks import Task

from mlinfra_prefect.errors import MlinfraError, UnsupportedHere
from mlinfra_prefect.integration import phase, phases, runs
from mlinfra_prefect.integration.asking import Asking
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.keys import ticket
from mlinfra_prefect.integration.requesting import RequestLike, as_request
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.work import on_node
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.keeper.desk import place_of
from mlinfra_prefect.model.receipt import Receipt
from mlinfra_prefect.model.request import TrainingRequest

P = ParamSpec("P")
R = TypeVar("R")
PARAMETER = "infra"


class lease:  # noqa: N801 (it is used as a verb: `with lease(...)`)
    """Lease infrastructure: ``with lease("A100:8") as infra``, ``async with``, or a decorator under ``@flow``.

    Args:
        request: an accelerator (``"A100:8"``, ``"cpu"``), a `TrainingRequest`, the path of a YAML file, or a
            `MlinfraRequest` block.
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
        request: RequestLike | None = None,
        *,
        wait: bool = True,
        key: str | None = None,
        **overrides: Any,
    ) -> None:
        # A node imports the flow's module: the file of a request need not be there.
        self._request = TrainingRequest() if on_node() else as_request(request, overrides)
        self._wait = wait
        self._key = key
        self._asking: Asking | None = None
        self._infra: Infra | None = None

    # --- as a block --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Infra:
        infra = self._obtain(self._begin())
        infra.block.bind()
        return infra

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(error)

    async def __aenter__(self) -> Infra:
        asking = self._begin()
        try:
            infra = await asyncio.to_thread(self._obtain, asking)
        except asyncio.CancelledError:
            # The thread cannot be stopped, but it notices that what it waits for is going.
            asking.give_up(phase.context())
            self._over(asking)
            raise
        infra.block.bind()
        return infra

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asking = self._asking
        if asking is None:
            return
        if error is not None and not isinstance(error, Exception):
            asking.give_up(phase.context())
            if not isinstance(error, asyncio.CancelledError):  # this process is dying: no time for another thread
                self._end(error)
                return
        try:
            await asyncio.to_thread(self._end, error)
        except asyncio.CancelledError:
            asking.give_up(phase.context())
            raise

    def _begin(self) -> Asking:
        runs.refuse_elsewhere(block=True)
        if self._asking is not None:
            raise UnsupportedHere("This lease(...) is in use already; make a new one for each block.")
        self._asking = Asking(self._request, ticket(self._request.name, self._key), wait=self._wait)
        self.receipt = None
        return self._asking

    def _over(self, asking: Asking) -> None:
        if self._asking is asking:  # not yet in use again, by who gave it up while this thread was waiting
            self._asking = self._infra = None
        asking.ticket.close()

    def _obtain(self, asking: Asking) -> Infra:
        try:
            infra = phase.phase(phases.provision_for_lease, asking)
        except BaseException:
            self._over(asking)
            raise
        if self._asking is asking:
            self._infra = infra
        return infra

    def _end(self, error: BaseException | None) -> None:
        asking, infra = self._asking, self._infra
        if asking is None or infra is None:
            return
        try:
            if error is None:
                try:
                    infra.close_block()
                except BaseException as own:
                    self._give_back(infra, own)
                    raise
            else:
                infra.block.close()
            self._give_back(infra, error)
        finally:
            self._over(asking)
            keeper.CLIENT.let_go(infra.id)

    def _give_back(self, infra: Infra, error: BaseException | None) -> None:
        """Mark first, with nothing of Prefect in the way; then wait for the receipt where there is time to."""
        here = phase.context()
        why = "its block ended" if error is None else f"its block ended with {type(error).__name__}"
        with suppress(MlinfraError):
            keeper.release(here, infra.id, reason=why)
        dying = error is not None and not isinstance(error, Exception)
        if dying and place_of(here, self._request.environment) != "foreground":
            return
        try:
            self.receipt = keeper.wait_released(here, infra.id) if dying else phase.phase(phases.release, infra)
        except MlinfraError as problem:
            if error is None:
                raise
            say(f"lease {infra.id}: {problem}", level=logging.ERROR)
        except Exception as problem:  # noqa: BLE001 (Prefect's API may be away; the keeper releases all the same)
            logging.getLogger("mlinfra_prefect").warning(
                "the release of %s goes on without Prefect: %s", infra.id, problem
            )
            if error is None:
                self.receipt = keeper.wait_released(here, infra.id, timeout=phases.RELEASE_WAIT_SECONDS)

    # --- as a decorator ----------------------------------------------------------------------------------------------

    def __call__(self, function: Callable[Concatenate[Infra, P], R]) -> Callable[P, R]:
        """Decorate a function with a parameter ``infra``; goes *under* ``@flow``, so that forms do not show `infra`.

        Raises:
            UnsupportedHere: it stands over ``@flow`` or ``@task``, or the function has no parameter ``infra``.
        """
        if isinstance(function, Flow | Task):
            over = "@flow" if isinstance(function, Flow) else "@task"
            raise UnsupportedHere(f"@lease goes under {over}: write {over} first, then @lease(...), then the function.")
        signature = inspect.signature(function)
        found = signature.parameters.get(PARAMETER)
        if found is None or found.kind in {found.VAR_POSITIONAL, found.VAR_KEYWORD}:
            raise UnsupportedHere(f"{function.__name__}: a function under @lease takes a parameter named 'infra'.")
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UnsupportedHere(f"{function.__name__}: @lease cannot hold a lease open for a generator.")

        if on_node():
            return function  # type: ignore[return-value]
        shown = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != PARAMETER])

        def fresh() -> lease:
            return lease(self._request, wait=self._wait, key=self._key)

        def with_infra(infra: Infra, args: tuple[Any, ...], kwargs: dict[str, Any]) -> inspect.BoundArguments:
            given = {**shown.bind(*args, **kwargs).arguments, PARAMETER: infra}
            return inspect.BoundArguments(
                signature, OrderedDict((n, given[n]) for n in signature.parameters if n in given)
            )

        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def waits(*args: Any, **kwargs: Any) -> Any:
                async with fresh() as infra:
                    call = with_infra(infra, args, kwargs)
                    return await function(*call.args, **call.kwargs)

            wrapper: Any = waits
        else:

            @functools.wraps(function)
            def holds(*args: Any, **kwargs: Any) -> Any:
                with fresh() as infra:
                    call = with_infra(infra, args, kwargs)
                    return function(*call.args, **call.kwargs)

            wrapper = holds
        wrapper.__signature__ = shown
        wrapper.__annotations__ = {n: a for n, a in function.__annotations__.items() if n != PARAMETER}
        decorated: Callable[P, R] = wrapper
        return decorated
