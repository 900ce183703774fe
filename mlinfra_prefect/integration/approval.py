"""A plan that waits until somebody approves it in the Prefect UI; without an answer, the answer is no.

The lease is asked for after the approval, so while a run waits nothing exists and nothing costs. Where an `Infra` is
handed in all the same, it is given back unless the plan is approved.

The time-out is ours and not Prefect's. When Prefect's own passes, the server turns whatever the run says next into
``Failed`` ("The flow was notapproved and never resumed", measured on 3.8.8), and its service for expired pauses may
fail the run while it still works. So when time is up we answer *reject* through the same call as a person: the server
takes the first answer and refuses the second, the run goes on, and it ends in the state that the flow chooses.

That state is ``Completed("NotApproved")``: a decision was asked for and made. ``Failed`` would wake whoever is on call
and be tried again by ``retries``; ``Cancelled`` would start the automations that clean up after a cancelled run.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, cast
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import apause_flow_run, pause_flow_run
from prefect.input import RunInput
from prefect.states import Completed
from pydantic import Field

from mlinfra_prefect.errors import InvalidInput, MlinfraError, UnsupportedHere
from mlinfra_prefect.integration import phase, phases
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.integration.settings import settings
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.lifecycle.markdown import plan_markdown
from mlinfra_prefect.model.names import digest
from mlinfra_prefect.model.offer import Plan
from mlinfra_prefect.model.request import MAX_MINUTES

NOT_APPROVED = "NotApproved"
"""The name of the state of a run whose plan was not approved."""

POLL_SECONDS = 3
"""Between two looks of the waiting run at its own state."""

MARGIN_SECONDS = 120
"""By which Prefect's time-out is later than ours: it is only the second line, for a server that was away."""


class PlanDecision(RunInput):
    """What the form in the UI asks for. There is no default: whoever resumes a run has to decide."""

    decision: Literal["approve", "reject"] = Field(title="Decision", description="Nothing exists until you approve.")
    note: str = Field(default="", title="Note", description="Why; it is kept with the run.", max_length=500)


@dataclass(frozen=True, slots=True)
class Approval:
    """What became of a plan that waited for approval. True when it was approved."""

    approved: bool
    reason: str
    """One sentence: who decided what, or that nobody did."""

    def __bool__(self) -> bool:
        return self.approved


def approve_plan(plan: Plan, *, minutes: float | None = None, infra: Infra | None = None) -> Approval:
    """Pause this flow run until somebody approves or rejects the plan in the UI. Blocks; the process goes on living.

    Each try of a run asks anew. Where the same plan is shown twice in one try, the first answer counts.

    Args:
        plan: from `plan`; it is the description of the form.
        minutes: how long to wait; without an answer the plan is rejected. None: the setting
            ``PREFECT_INTEGRATIONS_MLINFRA_APPROVAL_TIMEOUT_MINUTES``.
        infra: what is leased already; given back unless the plan is approved.

    Raises:
        UnsupportedHere: this is no flow run.
        InvalidInput: `minutes` is not a sensible number.
        LeaseLost: `infra` ended while the plan waited.
    """
    waiting = _Waiting(plan, minutes, infra)
    with waiting.giving_back(), waiting.clock():
        answer: PlanDecision | None = None
        with suppress(FlowPauseTimeout):
            answer = cast(PlanDecision, pause_flow_run(**waiting.options))
    return waiting.approval(answer)


async def aapprove_plan(plan: Plan, *, minutes: float | None = None, infra: Infra | None = None) -> Approval:
    """Like `approve_plan`, in an asynchronous flow and without blocking its event loop."""
    waiting = _Waiting(plan, minutes, infra)
    with waiting.giving_back(), waiting.clock():
        answer: PlanDecision | None = None
        with suppress(FlowPauseTimeout):
            answer = await apause_flow_run(**waiting.options)
    return waiting.approval(answer)


def not_approved(approval: Approval) -> State[Any]:
    """Return the state for a flow to end with: Completed, named ``NotApproved``, with the reason.

    Raises:
        InvalidInput: the plan was approved.
    """
    if approval:
        raise InvalidInput("approval", "was given, so nothing was refused", "Write `if not approval:` before it.")
    return Completed(name=NOT_APPROVED, message=approval.reason)


class _Waiting:
    """One plan that waits: what Prefect is told, and the clock that says no when time is up."""

    def __init__(self, plan: Plan, minutes: float | None, infra: Infra | None) -> None:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise UnsupportedHere("Only a flow run can wait for approval.", "Call approve_plan inside a @flow.")
        self._minutes = settings().approval_timeout_minutes if minutes is None else minutes
        if isinstance(self._minutes, bool) or not 0 < self._minutes <= MAX_MINUTES:
            raise InvalidInput("minutes", f"must be above 0 and at most {MAX_MINUTES} (got {minutes!r})")
        self._run_id: UUID = context.flow_run.id
        self._infra = infra
        self._no_answer = f"nobody answered within {self._minutes:g} minutes"
        # A retry of the run asks again: an answer of an earlier try would otherwise be read without a word.
        shown = digest("approval", plan.model_dump_json(exclude={"made_at"}), str(context.flow_run.run_count))
        description = _described(plan, self._minutes)
        self.options: dict[str, Any] = {
            "wait_for_input": PlanDecision.with_initial_data(description=description),
            "timeout": int(self._minutes * 60) + MARGIN_SECONDS,
            "poll_interval": POLL_SECONDS,
            "key": f"plan-{shown}",
        }

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Answer *reject* when time is up and nobody has answered."""
        over = threading.Event()

        def run() -> None:
            if over.wait(self._minutes * 60):
                return
            while not over.is_set():
                with suppress(Exception):  # the server may be away: then it is asked again
                    self._reject()
                    return
                over.wait(POLL_SECONDS)

        # In a copy of this context, or another thread would talk to another server.
        thread = threading.Thread(
            target=contextvars.copy_context().run, args=(run,), name="mlinfra-approval", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            over.set()

    @contextmanager
    def giving_back(self) -> Iterator[None]:
        """Give `infra` back when the wait is interrupted: one small write, with nothing of Prefect in the way."""
        try:
            yield
        except BaseException:
            self._mark("the wait for approval was interrupted")
            raise

    def approval(self, answer: PlanDecision | None) -> Approval:
        """Say what was decided; give `infra` back unless it was *approve*."""
        if answer is not None and answer.decision == "approve":
            approval = Approval(True, _sentence("The plan was approved", answer.note))
            if self._infra is not None and not self._infra.record.live:
                raise keeper.why(self._infra.record)
        else:
            left = "nothing was created" if self._infra is None else f"{self._infra.id} is given back"
            if answer is None or answer.note == self._no_answer:
                reason = f"Nobody approved the plan within {self._minutes:g} minutes; {left}."
            else:
                reason = _sentence(f"The plan was rejected; {left}", answer.note)
            approval = Approval(False, reason)
            if self._infra is not None:
                self._mark("its plan was not approved")
                phase.phase(phases.release, self._infra)
        say(approval.reason)
        return approval

    def _reject(self) -> None:
        with get_client(sync_client=True) as server:
            # Refused where somebody was quicker: then theirs is the answer.
            server.resume_flow_run(self._run_id, run_input={"decision": "reject", "note": self._no_answer})

    def _mark(self, why: str) -> None:
        if self._infra is not None:
            with suppress(MlinfraError):
                keeper.release(phase.context(), self._infra.id, reason=why)


def _described(plan: Plan, minutes: float) -> str:
    shown = plan_markdown(plan, with_files=False)
    return f"{shown}\n\nWithout an answer within {minutes:g} minutes nothing will exist."


def _sentence(what: str, note: str) -> str:
    note = " ".join(note.split()).rstrip(".")
    return f"{what}: {note}." if note else f"{what}."


__all__ = ["NOT_APPROVED", "Approval", "PlanDecision", "aapprove_plan", "approve_plan", "not_approved"]
