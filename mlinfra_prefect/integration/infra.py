"""`Infra`: a lease as its user holds it. A handle is verified before each use, so a stale one can do no harm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, overload

from mlinfra_prefect.errors import NoModel, UnsupportedHere
from mlinfra_prefect.integration import events
from mlinfra_prefect.integration.saying import Reporter
from mlinfra_prefect.integration.started import Block, started_through_infra
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


class Infra:
    """A leased node (or several). Made by `lease`, `provision` and `attach`, not by hand.

    As a context manager it detaches at the end and never releases: releasing is what `lease` and `release` do.
    """

    def __init__(
        self, context: Context, lease_id: str, *, options: Options | None = None, block: Block | None = None
    ) -> None:
        self._context = context
        self._options = options or Options()
        self._block = block or Block()
        self.id = lease_id

    def __repr__(self) -> str:
        return f"Infra({self.id!r})"

    def __reduce__(self) -> tuple[Callable[[str, Options], Infra], tuple[str, Options]]:
        # To another process of this host it travels as its id, and is looked up again there.
        return _arrived, (self.id, self._options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach: the lease lives on."""

    @property
    def record(self) -> LeaseRecord:
        """The lease's record as it stands in the ledger now."""
        return self._context.lease(self.id)

    @property
    def state(self) -> State:
        """The lease's state now."""
        return self.record.state

    @property
    def block(self) -> Block:
        """What the handles of this lease share."""
        return self._block

    @property
    def options(self) -> Options:
        """The options of the work that this handle runs."""
        return self._options

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until the lease is ready (seconds; None: as long as it takes).

        Raises:
            CapacityUnavailable, TerraformFailed, LeaseLost, …: why it never will be.
            OperationTimedOut: it is not after `timeout`.
        """
        wait_ready(self._context, self.id, timeout=timeout)
        return self

    def with_options(self, **options: Any) -> Infra:
        """Return a handle of the same lease whose work gets options.

        They are ``inputs``, ``secrets``, ``requirements``, ``resume``, ``grace_seconds``, ``progress_timeout_minutes``
        and ``by_value``.

        Raises:
            InvalidInput: an unknown or wrong option.
        """
        return Infra(self._context, self.id, options=self._options.merged(options), block=self._block)

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
        return self.run_work(callable_work(self._context, function, args, kwargs, self._options)).value

    @overload
    async def arun(self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def arun(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R: ...
    async def arun(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Like `run`, without blocking the event loop. Cancelled, it goes on until the block of the lease ends."""
        return await asyncio.wrap_future(self.submit(function, *args, **kwargs))

    @overload
    def submit(
        self, function: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[R]: ...
    @overload
    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]: ...
    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Like `run`, in the background. Jobs of one node run one after another.

        The block of the lease waits for it, and raises what it raised unless somebody asked the future.

        Raises:
            LeaseLost: the block has ended.
        """
        future = self._block.start(self.id)
        context = copy_context()

        def work() -> None:
            started_through_infra.set(True)
            try:
                future.set_result(self.run(function, *args, **kwargs))
            except BaseException as error:  # noqa: BLE001 (whatever it is belongs to whoever asks for the result)
                future.set_exception(error)

        future.set_running_or_notify_cancel()
        threading.Thread(target=context.run, args=(work,), name=f"mlinfra-{self.id}", daemon=True).start()
        return future

    def train(self, job: TrainingJob | dict[str, Any]) -> ModelArtifact:
        """Run a `TrainingJob` and return its model; see `mlinfra_prefect.train`."""
        work = job_work(self._context, job if isinstance(job, TrainingJob) else parsed(TrainingJob, job, prefix="job"))
        return model_of(self.run_work(work), work)

    def run_work(self, work: Work) -> Outcome:
        """Run prepared work; what `run` and `train` do in the end."""
        from mlinfra_prefect.integration.phases import run_phase

        return run_phase(self, work)

    def follow(self, work: Work) -> Outcome:
        """Wait for the lease, run the work, and tell its progress: the body of the `train` phase.

        Raises:
            LeaseLost: the block of the lease has ended, or the lease is gone.
        """
        foreign = self._block.begin(self.id)
        jobs: list[str] = []
        try:
            self.wait()
            with Reporter(work.label) as reporter:
                outcome = run_job(
                    self._context, self.id, work, used=self._block.used, on_progress=reporter, on_job=jobs.append
                )
            events.tell_training(self.record, outcome.job_id, outcome.artifact)
            return outcome
        except Exception:
            for job_id in jobs:
                events.tell_training(self.record, job_id)
            raise
        finally:
            self._block.end(foreign=foreign)

    def close_block(self) -> None:
        """Wait for what was started through this lease; called when its block ends normally.

        Raises:
            UnsupportedHere: work that was not started through it is still running.
            BaseException: what started work raised, and nobody asked for.
        """
        problems, foreign = self._block.settle()
        if problems:
            raise problems[0]
        if foreign:
            raise UnsupportedHere(
                f"Lease {self.id}: its block ended while {foreign} task(s) still ran on it.",
                "Wait for their futures inside the block, or start them with infra.submit, for which it waits.",
            )


def model_of(outcome: Outcome, work: Work) -> ModelArtifact:
    """Return the model that work has left.

    Raises:
        NoModel: there is none.
    """
    if outcome.artifact is None:
        raise NoModel(
            f"{work.label} finished but left no model.",
            "Write the model's files to node().output_dir (MLINFRA_OUTPUT_DIR).",
        )
    return outcome.artifact


def _arrived(lease_id: str, options: Options) -> Infra:
    """Pick a handle up again that came from another process."""
    from mlinfra_prefect.integration.phases import attach

    infra = attach(lease_id)
    return Infra(infra._context, infra.id, options=options)  # noqa: SLF001 (a handle of the same class)
