"""A plan waits for somebody; whatever is not a clear yes is a no, and after a no nothing exists."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Self

import httpx
import pytest
from prefect import flow

from mlinfra_prefect import provision, release
from mlinfra_prefect.errors import InvalidInput, LeaseLost, UnsupportedHere
from mlinfra_prefect.integration import approval
from mlinfra_prefect.integration.approval import Approval, aapprove_plan, approve_plan, not_approved
from mlinfra_prefect.model.lease import LIVE
from mlinfra_prefect.model.offer import Plan, PlannedResource
from mlinfra_prefect.model.request import TrainingRequest
from mlinfra_prefect.testing.records import MOMENT, sample_offer

PLAN = Plan(
    request=TrainingRequest(), platform="local", offers=(sample_offer(),), offer=sample_offer(), stack="local-node",
    engine="terraform 1.11.4", max_minutes=15, estimate_usd=0.125, made_at=MOMENT,
    resources=(PlannedResource(address="terraform_data.node", type="terraform_data", action="create"),),
)  # fmt: skip
LONG, SHORT = 5.0, 0.02
"""Minutes: longer than any test, and a bit more than a second."""
Answer = dict[str, str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approval, "POLL_SECONDS", 0.1)


class Person:
    """Somebody at the UI: waits until the run is paused, reads the form, and answers through the UI's own calls."""

    def __init__(self, api: str, answers: list[Answer | None]) -> None:
        self.api = httpx.Client(base_url=api, timeout=90)
        self.name = f"run-{uuid.uuid4()}"
        self.read: list[str] = []
        self.told: list[dict[str, Any]] = []
        self._answers = answers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sit)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)
        self.api.close()

    def run(self) -> dict[str, Any]:
        (found,) = self.api.post("/flow_runs/filter", json={"flow_runs": {"name": {"any_": [self.name]}}}).json()
        return dict(found)

    def _sit(self) -> None:
        answered: set[str] = set()
        for answer in self._answers:
            while not self._over.is_set():
                with contextlib.suppress(ValueError, httpx.HTTPError):
                    run = self.run()
                    keys = run["state"]["state_details"].get("run_input_keyset") or {}
                    ready = run["state_type"] == "PAUSED" and keys["schema"] not in answered
                    shown = self.api.get(f"/flow_runs/{run['id']}/input/{keys['description']}") if ready else None
                    if shown is not None and shown.is_success:
                        answered |= {keys["schema"]} if answer else set()
                        self.read.append(shown.text)
                        told = self.api.post(f"/flow_runs/{run['id']}/resume", json={"run_input": answer or {}})
                        self.told.append(told.json())
                        break
                time.sleep(0.05)


@pytest.fixture
def person(prefect_api: str) -> Callable[..., Person]:
    return lambda *answers: Person(prefect_api, list(answers))


def asking(name: str, minutes: float, **options: Any) -> Callable[..., Any]:
    @flow(flow_run_name=name, **options)
    def asks() -> Any:
        answer = approve_plan(PLAN, minutes=minutes)
        return answer.reason if answer else not_approved(answer)

    return asks


def test_approved_the_run_goes_on_and_the_plan_was_the_description(person) -> None:
    """The form shows what will exist and what it costs; without a decision it does not let the run go on."""
    with person(None, {"decision": "approve", "note": "go"}) as who:
        assert asking(who.name, LONG)() == "The plan was approved: go."
    assert "'decision' is a required property" in who.told[0]["details"]["reason"]
    assert "terraform_data.node" in who.read[0]
    assert "0.12 USD" in who.read[0]


def test_rejected_the_run_ends_well_without_anything(person) -> None:
    """A decision was asked for and made: Completed, named NotApproved, and nobody is woken."""
    with person({"decision": "reject", "note": "too dear"}) as who:
        asking(who.name, LONG)(return_state=True)
        state = who.run()["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "NotApproved")
    assert state["message"] == "The plan was rejected; nothing was created: too dear."


def test_without_an_answer_it_is_a_no_in_the_same_clear_state(person) -> None:
    """Prefect's own time-out would make any end of the run Failed; ours answers before it."""
    with person() as who:
        asking(who.name, SHORT)(return_state=True)
        state = who.run()["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "NotApproved")
    assert state["message"] == "Nobody approved the plan within 0.02 minutes; nothing was created."


def test_a_retry_asks_again(person) -> None:
    """An answer is to one try: a yes of the first must not pay for the second without a word."""
    tries = []
    with person({"decision": "approve"}, {"decision": "reject"}) as who:
        # Going on after a pause counts as a run, so with Prefect the first pause costs a retry.
        @flow(flow_run_name=who.name, retries=2)
        def asks() -> Any:
            answer = approve_plan(PLAN, minutes=LONG)
            tries.append(bool(answer))
            if answer:
                raise RuntimeError("my code")
            return not_approved(answer)

        asks(return_state=True)
    assert tries == [True, False]


def test_an_asynchronous_flow_waits_without_blocking_its_loop(person) -> None:
    """Other work of the loop goes on meanwhile."""
    with person({"decision": "approve"}) as who:

        @flow(flow_run_name=who.name)
        async def asks() -> tuple[bool, int]:
            beats = 0

            async def beat() -> None:
                nonlocal beats
                while True:
                    await asyncio.sleep(0.01)
                    beats += 1

            beating = asyncio.create_task(beat())
            answer = await aapprove_plan(PLAN, minutes=LONG)
            beating.cancel()
            return bool(answer), beats

        approved, beats = asyncio.run(asks())
    assert approved
    assert beats > 3


def test_outside_of_a_run_nobody_could_be_asked() -> None:
    with pytest.raises(UnsupportedHere, match="Only a flow run"):
        approve_plan(PLAN, minutes=1)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), True, 10**9])
def test_senseless_minutes_are_refused_before_anybody_is_asked(prefect_api, minutes) -> None:
    @flow
    def asks() -> None:
        approve_plan(PLAN, minutes=minutes)

    with pytest.raises(InvalidInput, match=r"^minutes: "):
        asks()


def test_a_state_for_a_refusal_needs_a_refusal() -> None:
    with pytest.raises(InvalidInput, match=r"^approval: "):
        not_approved(Approval(True, "yes"))


# --- with something leased already -----------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As Prefect's TerminationSignal: no Exception."""


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch, prefect_api: str, home: object) -> Callable[[Any], Any]:
    """A flow that leases, then asks; what happens while it waits is the test's. Returns the lease's state then."""

    def during(happening: Callable[[Any], Any]) -> Any:
        found = {}

        @flow
        def asks() -> Approval:
            found["infra"] = infra = provision("cpu", wait=False, max_minutes=2)
            monkeypatch.setattr(approval, "pause_flow_run", lambda **_: happening(infra))
            try:
                return approve_plan(PLAN, minutes=LONG, infra=infra)
            finally:
                # Later the end of the run gives the lease back in any case.
                found["state"] = infra.state

        try:
            result: Any = asks()
        except BaseException as error:
            result = error
        release.fn(found["infra"])
        return result, found["state"]

    return during


def test_rejected_what_is_leased_already_is_gone(answered) -> None:
    """The answer comes after the receipt."""
    result, state = answered(lambda _: approval.PlanDecision(decision="reject"))
    assert not result
    assert "is given back" in result.reason
    assert state == "released"


def test_interrupted_what_is_leased_already_is_going(answered) -> None:
    """A cancelled run has no time: one small write, and the keeper does the rest."""

    def interrupt(_: object) -> None:
        raise Interrupted

    result, state = answered(interrupt)
    assert isinstance(result, BaseException)
    assert state not in LIVE


def test_approved_too_late_the_lease_is_said_to_be_lost(answered) -> None:
    """A handle is looked at before it is used: the lease may have ended while the plan waited."""

    def late(infra: Any) -> Any:
        release.fn(infra)
        return approval.PlanDecision(decision="approve")

    result, _ = answered(late)
    assert isinstance(result, LeaseLost)


def test_approved_in_time_the_lease_goes_on(answered) -> None:
    result, state = answered(lambda _: approval.PlanDecision(decision="approve"))
    assert result
    assert state in LIVE


def test_a_paused_run_is_alive_so_its_lease_lives_on(person, home) -> None:
    """A run that waits in its process is no client that ended, although Prefect calls it paused."""
    with person({"decision": "approve"}) as who:

        @flow(flow_run_name=who.name, retries=2)
        def asks() -> tuple[bool, str]:
            infra = provision("cpu", max_minutes=2)
            approved = bool(approve_plan(PLAN, minutes=LONG, infra=infra))
            found = infra.state
            release(infra)
            return approved, str(found)

        assert asks() == (True, "ready")
