"""Asking for a lease or an endpoint, from the record in the ledger to the moment it is ready, or was given up.

From the first durable write on, the keeper owns what is asked for. Whoever waits here may be interrupted at any line;
all that is needed then is one more small write, which comes before anything of Prefect is called.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

from mlinfra_prefect.errors import LeaseLost, MlinfraError, ProbeFailed, RolledBack
from mlinfra_prefect.integration import events, runs, telling
from mlinfra_prefect.integration.canary import Judge, ProbeLike, answering, as_probe
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.keys import Ticket
from mlinfra_prefect.integration.requesting import find_environment
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.keeper import client as keeper, rollouts
from mlinfra_prefect.lifecycle import ladder
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import ask
from mlinfra_prefect.lifecycle.serving import ServingAsked, ask_to_serve
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.endpoint import RolloutRecord
from mlinfra_prefect.model.request import ServingRequest, TrainingRequest


class Waiting:
    """Something asked for that its asker, in another thread, may give up at any moment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._id: str | None = None
        self._given_up = False

    def asked(self, record_id: str) -> None:
        """It is in the ledger now.

        Raises:
            LeaseLost: it was given up meanwhile.
        """
        with self._lock:
            self._id = record_id
            if self._given_up:
                raise LeaseLost(f"{record_id} was given up before it was asked for.", "Ask again.")

    def give_up(self, here: Context) -> None:
        """Give back whatever there is of it, or will be. Logs nothing, raises nothing; idempotent."""
        with self._lock:
            self._given_up = True
            known = self._id
        if known is not None:
            with suppress(MlinfraError):
                keeper.release(here, known, reason="it was cancelled")


class Asking(Waiting):
    """A lease that is asked for: a plain class, because Prefect would copy a record among a task's parameters."""

    def __init__(self, request: TrainingRequest, ticket: Ticket, *, wait: bool) -> None:
        super().__init__()
        self.request = request
        self.ticket = ticket
        self.wait = wait
        # Of the run in which the block stands: a phase of it, which asks in the end, is a shorter run of its own.
        self.ended = run_end()


class Deploying(Waiting):
    """A serving change that is asked for."""

    def __init__(
        self, serving: ServingRequest, model: ModelArtifact, *, canary: object, probe: ProbeLike, promote: bool
    ) -> None:
        super().__init__()
        self.serving = serving
        self.model = model
        self.canary = canary
        self.probe, self.check = as_probe(probe)
        self.promote = promote


def obtain(here: Context, asking: Asking) -> Infra:
    """Ask for a lease, give it to the keeper, and wait if that is wanted. Interrupted, it gives the lease back."""
    find_environment(here, asking.request.environment)
    client = runs.client()
    asked = ask(
        here, asking.request, key=asking.ticket.key, owner=runs.owner(), client=client,
        announce=partial(keeper.announce, here), withdraw=partial(keeper.withdraw, here),
        give_back=lambda lease_id, why: keeper.release(here, lease_id, reason=why),
    )  # fmt: skip
    infra = Infra(here, asked.record.id)
    try:
        asking.asked(infra.id)
        keeper.entrust(here, asked.record, ended=asking.ended)
        if not runs.is_client(client):
            # A child process of the client: it says nothing about the client, but it replaces a keeper that died.
            keeper.CLIENT.hold(here, asked.record, lambda: False)
        say(f"lease {infra.id}: {'adopted' if asked.adopted else 'asked for'} {asking.request.accelerator}")
        if asking.wait:
            record = keeper.wait_ready(here, infra.id, tell=lambda why: say(f"lease {infra.id}: {why}"))
            seconds = (record.ready_at - record.created_at).total_seconds() if record.ready_at else 0.0
            say(f"lease {infra.id}: ready after {seconds:.2f} s")
            if record.platform != "local":
                for row in ladder.table(record, here.ledger.now()):
                    say(f"lease {infra.id}: {row}")
    except BaseException:
        _give_back(here, infra.id, drain=asked.adopted)
        raise
    if asking.wait:
        events.tell_lease(infra.record)
    return infra


def serve(here: Context, deploying: Deploying) -> Endpoint:
    """Ask for a serving change, give it to the keeper, wait until it is promoted. Interrupted, it is rolled back."""
    runs.refuse_elsewhere("a deployment")
    find_environment(here, deploying.serving.environment)
    ask = partial(
        ask_to_serve, here, deploying.model, deploying.serving, owner=runs.owner(), client=runs.client(),
        canary=deploying.canary, probe=deploying.probe, promote=deploying.promote,
    )  # fmt: skip
    found = rollouts.begin(here, ask, ended=run_end(), asked=deploying.asked)
    return await_rollout(here, found, deploying.check)


def await_rollout(here: Context, found: ServingAsked, check: Judge | None) -> Endpoint:
    """Wait for a rollout, telling its steps. Interrupted, it is rolled back."""
    told = _Steps(here)
    try:
        endpoint = Endpoint(here, found.rollout.endpoint)
        version = found.rollout.version
        what = f"endpoint {endpoint.name}, version {version} ({found.rollout.id})"
        say(f"{what}: deploying {found.rollout.artifact.id} behind {endpoint.url}")
        record = rollouts.wait_rolled(here, found.rollout, on_step=told, answer=answering(here, check))
    except BaseException as error:
        rollouts.give_up(here, found, "the client stopped waiting for it")
        if isinstance(error, ProbeFailed | RolledBack):
            telling.rolled(here, found.rollout.id)
        raise
    telling.rolled(here, found.rollout.id)
    if record.promoted_at is not None:
        say(f"endpoint {endpoint.name}: version {version} is promoted and answers at {endpoint.url}")
    else:
        shares = record.shares[-1] if record.shares else 0
        say(f"endpoint {endpoint.name}: version {version} waits with {shares} % for its promotion")
    return endpoint


class _Steps:
    """Tells each step of a rollout once."""

    def __init__(self, here: Context) -> None:
        self._here = here
        self._told = 0

    def __call__(self, rollout: RolloutRecord) -> None:
        telling.rolling(self._here, rollout)
        judged = [step for step in rollout.steps if step.ok is not None]
        for step in judged[self._told :]:
            say(f"probe {'passed' if step.ok else 'FAILED'} {step.reason}")
        self._told = len(judged)


def _give_back(here: Context, record_id: str, *, drain: bool) -> None:
    with suppress(MlinfraError):
        keeper.release(here, record_id, reason="the client stopped waiting for it", drain=drain)
