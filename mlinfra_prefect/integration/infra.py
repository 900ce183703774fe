"""`Infra`: a lease as its user holds it. A handle is verified before each use, so a stale one can do no harm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from mlinfra_prefect.errors import InvalidInput, LeaseLost, UnsupportedHere
from mlinfra_prefect.integration.saying import Reporter
from mlinfra_prefect.integration.work import Options, callable_work, job_work
from mlinfra_prefect.keeper.client import wait_ready
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.training import Outcome, Work, run_job
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.lease import LeaseRecord, State
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingJob

if TYPE_CHECKING:
    from types import TracebackType

P = ParamSpec("P")
R = TypeVar("R")
_started_through_infra: ContextVar[bool] = ContextVar("mlinfra_started_through_infra", default=False)


class _Shared:
    """What all handles of one lease in this process share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.used: set[str] = set()
        self.futures: list[Future[Any]] = []
        self.foreign = 0
        self.closed = False
        self.home_thread = 0


class Infra:
    """A leased node (or several). Made by `lease`, `provision` and `attach`, not by hand.

    As a context manager it detaches at the end and never releases: releasing is what `lease` and `release` do.
    """

    def __init__(self, context: Context, lease_id: str, *, options: Options | None = None, shared: _Shared | None = None) -> None:
        self._context = context
        self._options = options or Options()
        self._shared = shared or _Shared()
        self.id = lease_id

    def __repr__(self) -> str:
        return f"Infra({self.id!r})"

    def __reduce__(self) -> tuple[Callable[[str], Infra], tuple[str]]:
        # To another process of this host it travels as its id, and is looked up again there.
        from mlinfra_prefect.integration.phases import attach

        return attach, (self.id,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Detach: the lease lives on."""

    @property
    def record(self) -> LeaseRecord:
        """The lease's record as it stands in the ledger now."""
        return self._context.lease(self.id)

    @property
    def state(self) -> State:
        """The lease's state now."""
        return self.record.state

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the lease is ready (seconds; None: as long as it takes).

        Raises:
            CapacityUnavailable, TerraformFailed, LeaseLost, …: why it never will be.
            OperationTimedOut: it is not after `timeout`.
        """
        wait_ready(self._context, self.id, timeout=timeout)
        return self

    def with_options(self, **options: Any) -> Infra:
        """Return a handle of the same lease whose work gets options: ``inputs``, ``secrets``, ``requirements``,
        ``resume``, ``grace_seconds``, ``progress_timeout_minutes``, ``by_value``.

        Raises:
            InvalidInput: an unknown or wrong option.
        """
        return Infra(self._context, self.id, options=self._options.merged(options), shared=self._shared)

    @overload
    def run(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def run(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call a function on the node and return what it returns. Blocking; waits for the lease to be ready first.

        A function that returns a `ModelArtifact` gives the stored, verified artifact.

        Raises:
            NotImportable, NoCodec, InvalidInput: it cannot travel; the lease is untouched.
            NodeError: it raised something; a builtin exception comes back as itself.
            NodeLost, TrainingStopped, LeaseLost: the node or the lease went away.
        """
        work = callable_work(self._context, function, args, kwargs, self._options)
        return self.run_work(work).value

    async def arun(self, function: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Like `run`, without blocking the event loop."""
        return await asyncio.to_thread(self._run_started, function, args, kwargs)

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Like `run`, in the background: the block of the lease waits for it. Jobs of one node run one after another."""
        self._check_open()
        future: Future[R] = Future()
        context = copy_context()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(context.run(self._run_started, function, args, kwargs))
            except BaseException as error:  # noqa: BLE001 (whatever it is belongs to whoever asks for the result)
                future.set_exception(error)

        with self._shared.lock:
            self._shared.futures.append(future)
        threading.Thread(target=work, name=f"mlinfra-{self.id}", daemon=True).start()
        return future

    def train(self, job: TrainingJob | dict[str, Any]) -> ModelArtifact:
        """Run a `TrainingJob` and return its model; see `mlinfra_prefect.train`."""
        work = job_work(self._context, job if isinstance(job, TrainingJob) else parsed(TrainingJob, job, prefix="job"))
        artifact = self.run_work(work).artifact
        if artifact is None:
            raise InvalidInput("job", "left no model")
        return artifact

    def run_work(self, work: Work) -> Outcome:
        """Run prepared work; what `run` and `train` do in the end."""
        from mlinfra_prefect.integration.phases import run_phase

        self._check_open()
        return run_phase(self, work)

    def follow(self, work: Work) -> Outcome:
        """Wait for the lease, run the work, and tell its progress: the body of the `train` phase."""
        self._check_open()
        shared = self._shared
        foreign = not _started_through_infra.get() and threading.get_ident() != shared.home_thread
        with shared.lock:
            shared.foreign += foreign
        try:
            self.wait()
            with Reporter(work.label) as reporter:
                return run_job(self._context, self.id, work, used=shared.used, on_progress=reporter)
        finally:
            with shared.lock:
                shared.foreign -= foreign

    def run_work_started(self, work: Work) -> Outcome:
        """`run_work` from a thread that this lease's owner started for it."""
        token = _started_through_infra.set(True)
        try:
            return self.run_work(work)
        finally:
            _started_through_infra.reset(token)

    def _run_started(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.run_work_started(callable_work(self._context, function, args, kwargs, self._options)).value

    def bind_to_block(self) -> None:
        """Remember the thread of the ``with`` block: work from elsewhere must not outlive it."""
        self._shared.home_thread = threading.get_ident()

    def close_block(self) -> None:
        """Wait for what was started through this lease; called when its block ends normally.

        Raises:
            UnsupportedHere: work that was not started through it is still running.
            BaseException: what started work raised.
        """
        with self._shared.lock:
            futures = list(self._shared.futures)
        problems = [error for future in futures if (error := future.exception()) is not None]
        self.close()
        with self._shared.lock:
            foreign = self._shared.foreign
        if problems:
            raise problems[0]
        if foreign:
            raise UnsupportedHere(
                f"Lease {self.id}: its block ended while {foreign} task(s) still ran on it.",
                "Wait for their futures inside the block, or start them with infra.submit, for which it waits.",
            )

    def close(self) -> None:
        """Refuse further work through this handle."""
        with self._shared.lock:
            self._shared.closed = True

    def _check_open(self) -> None:
        if self._shared.closed:
            raise LeaseLost(f"The block of lease {self.id} has ended, so nothing more can run on it.", "Ask for a new lease.")
