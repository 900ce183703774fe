"""What the story needs from a platform: a small protocol, so that the story is told once.

Every method is idempotent. A thing that is absent is success for the verbs that end things.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import Attempt
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.receipt import Search
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.model.served import Served
from mlinfra_prefect.model.stack import Found, JobStatus, Late, StackInput


class Node(Protocol):
    """A machine in a lease, spoken to through its agent's mailbox."""

    def lives(self) -> bool:
        """Whether the agent is there, though it may hang or be ending. Returns at once."""

    def alive(self) -> bool:
        """Whether the agent lives and beats; a silent one is looked at for some seconds."""

    def why_gone(self) -> str:
        """What the agent last said about its end."""

    def submitted(
        self, job_id: str, staged: Path, job: Mapping[str, Any], secrets: Mapping[str, str], *,
        origin: Mapping[str, Any] | None = None,
    ) -> AbstractContextManager[None]:  # fmt: skip
        """Hand over a staged job with what `Platform.take_secrets` gave; answer its question while the block runs.

        `origin` is for a keeper in another home, which has nothing of this one (`origin`); plain JSON.
        """

    def origin(self, job_id: str) -> Mapping[str, Any] | None:
        """Return what was told when a job was handed over, wherever; None: nothing that outlives that home."""

    def expect(self, job_id: str, upload_dir: Path, store: Path) -> None:
        """Have the upload and checkpoints of a job that another home handed over brought to this one. Durable."""

    def answering(self, job_id: str, secrets: Mapping[str, str]) -> AbstractContextManager[None]:
        """Answer the question for secrets of a job that was handed over before, while the block runs."""

    def status(self, job_id: str) -> JobStatus | None:
        """What the agent says of a job; None before it has said anything."""

    def jobs(self) -> list[str]:
        """The ids of all jobs handed to it."""

    def file(self, job_id: str, name: str) -> Path:
        """A file of a job, as far as it has arrived on this machine."""

    def stop(self, job_id: str | None, *, grace_seconds: float, kill: bool = False) -> None:
        """Ask for *checkpoint now* of one job, or of all and no new one. Returns at once."""


class Platform(Protocol):
    """Where leases and endpoints live."""

    @property
    def name(self) -> str:
        """Its name in requests."""

    @property
    def consistency_seconds(self) -> float:
        """How long after the last call something may still appear (rule R7)."""

    @property
    def settle_seconds(self) -> float:
        """For how long what was told to end may still be seen, before a sweep says that it did not end."""

    @property
    def found_by_mark(self) -> bool:
        """Whether `sweep` finds everything that its stacks make, so that no release waits for a state that is lost."""

    @property
    def emulated(self) -> bool:
        """Whether what it rents ends with this host anyway."""

    @property
    def remarks(self) -> tuple[str, ...]:
        """What could not be found out when it was last asked for offers or a stack, for people."""

    @property
    def most_attempts(self) -> int:
        """How many attempts in a row may fail before a lease is given up."""

    @property
    def has_packages_of_flow(self) -> bool:
        """Whether a training there sees the packages of the flow's interpreter."""

    def python_of(self, request: TrainingRequest) -> str | None:
        """The minor version (``3.12``) of the Python that a training of the request gets; None: nobody can say yet."""

    def take_secrets(self, environment: str, references: Mapping[str, str]) -> Mapping[str, str]:
        """What a node is handed for the secrets of a job: values, or references that it resolves itself.

        Raises InvalidInput: one of them cannot be had there, or not in this environment. Creates nothing.
        """

    @property
    def destroys_later(self) -> bool:
        """Whether the next attempt begins when the meter of a failed one is stopped, and its rest goes at release."""

    @property
    def late_looks(self) -> tuple[float, ...]:
        """Seconds after a failed attempt's meter was stopped at which `end_late` is asked; empty: nothing is late."""

    def account(self, environment: str) -> str:
        """Whose account an environment is in; empty: none. Raises where this process is not logged in to it."""

    def check_login(self, record: KeptRecord) -> None:
        """Raise where this process is logged in to another account than a record's: it would see nothing of it."""

    def offers(self, request: TrainingRequest) -> tuple[Offer, ...]:
        """Every way to meet a request, best first; those that cannot be taken say why."""

    def stack(self, record: KeptRecord, attempt: Attempt) -> StackInput:
        """Prepare an attempt's grant and spec, and return the stack to apply."""

    def plan_stack(self, request: TrainingRequest, rung: tuple[Offer, ...]) -> StackInput:
        """The stack of a node with placeholders, for plans made before any lease exists; creates nothing."""

    def check_up(
        self,
        record: KeptRecord,
        attempt: Attempt,
        outputs: Mapping[str, Any],
        deadline: float,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Found:
        """Return what was applied and exists; raises unless it is whole and works.

        `outputs` are the root module's. Waits for nodes and servers until `deadline` (epoch seconds), and no longer
        than they are `wanted`.
        """

    def is_up(self, record: KeptRecord, attempt: Attempt) -> bool:
        """Whether it still lives."""

    def node(self, attempt: Attempt) -> Node:
        """The node of an attempt."""

    def stop_meter(self, record: KeptRecord, attempt: Attempt) -> None:
        """End what costs money, with the right verb for its kind."""

    def end_late(self, record: KeptRecord, attempts: Sequence[Attempt]) -> tuple[Late, ...]:
        """End what of these attempts, and of no other, appeared after their meters were stopped, and say what that was.

        Idempotent; raises NotYetDestroyed where something could not be looked for, or not be told to end.
        """

    def sweep(self, record: KeptRecord) -> Search:
        """Look for anything that carries the record's id, end it, and say both."""

    def tidy(self, record: KeptRecord, attempt: Attempt) -> None:
        """Keep the logs of what is gone, and delete the rest."""

    def route(self, endpoint: EndpointRecord, seconds: float = 10.0) -> Served:
        """Have requests go where the endpoint's record says, and wait until they do; raises EndpointNotReady."""

    def served(self, endpoint: EndpointRecord) -> Served | None:
        """The shares that requests go by now, and what was counted; None where nothing answers."""

    def ask(self, rollout: RolloutRecord, row: Any) -> list[Any]:
        """What one version answers to one row, whatever its share; raises MlinfraError."""

    def token(self, record: EndpointRecord | RolloutRecord) -> str | None:
        """What an endpoint's clients must show; None: it asks for nothing, or is not up."""

    def prolong(self, record: EndpointRecord | RolloutRecord, until: datetime | None) -> None:
        """Let what is up live until a moment, which may have moved; None: for as long as it is wanted."""

    def choose_port(self, wanted: int | None, taken: Callable[[int], bool]) -> int:
        """Choose an endpoint's port."""
