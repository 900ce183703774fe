"""Asking for a lease or an endpoint, from the record in the ledger to the moment it is ready, or was given up.

From the first durable write on, the keeper owns what is asked for. Whoever waits here may be interrupted at any line;
all that is needed then is one more small write, which comes before anything of Prefect is called.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from functools import partial

from mlinfra_prefect.errors import LeaseLost, MlinfraError
from mlinfra_prefect.integration import runs
from mlinfra_prefect.integration.endpoint import Endpoint
from mlinfra_prefect.integration.infra import Infra
from mlinfra_prefect.integration.keys import Ticket
from mlinfra_prefect.integration.run_end import run_end
from mlinfra_prefect.integration.saying import say
from mlinfra_prefect.keeper import client as keeper
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.leasing import ask
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.model.artifact import ModelArtifact
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


class Deploying(Waiting):
    """An endpoint that is asked for."""

    def __init__(self, serving: ServingRequest, model: ModelArtifact, canary: object) -> None:
        super().__init__()
        self.serving = serving
        self.model = model
        self.canary = canary


def obtain(here: Context, asking: Asking) -> Infra:
    """Ask for a lease, give it to the keeper, and wait if that is wanted. Interrupted, it gives the lease back."""
    client = runs.client()
    asked = ask(
        here, asking.request, key=asking.ticket.key, owner=runs.owner(), client=client,
        announce=partial(keeper.announce, here), withdraw=partial(keeper.withdraw, here),
        give_back=lambda lease_id, why: keeper.release(here, lease_id, reason=why),
    )  # fmt: skip
    infra = Infra(here, asked.record.id)
    try:
        asking.asked(infra.id)
        keeper.entrust(here, asked.record, ended=run_end())
        if not runs.is_client(client):
            # A child process of the client: it says nothing about the client, but it replaces a keeper that died.
            keeper.CLIENT.hold(here, infra.id, lambda: False)
        say(f"lease {infra.id}: {'adopted' if asked.adopted else 'asked for'} {asking.request.accelerator}")
        if asking.wait:
            record = keeper.wait_ready(here, infra.id)
            seconds = (record.ready_at - record.created_at).total_seconds() if record.ready_at else 0.0
            say(f"lease {infra.id}: ready after {seconds:.2f} s")
    except BaseException:
        _give_back(here, infra.id, drain=asked.adopted)
        raise
    return infra


def serve(here: Context, deploying: Deploying) -> Endpoint:
    """Ask for an endpoint, give it to the keeper, and wait until it answers. Interrupted, it gives it back."""
    runs.refuse_elsewhere("a deployment")
    record: KeptRecord = ask_to_serve(
        here, deploying.model, deploying.serving, owner=runs.owner(), client=runs.client(), canary=deploying.canary,
        announce=partial(keeper.announce, here), withdraw=partial(keeper.withdraw, here),
    )  # fmt: skip
    try:
        deploying.asked(record.id)
        keeper.entrust(here, record, ended=run_end())
        endpoint = Endpoint(here, record.id)
        say(f"endpoint {endpoint.name} ({endpoint.id}): deploying {deploying.model.id} at {endpoint.url}")
        keeper.wait_ready(here, record.id)
    except BaseException:
        _give_back(here, record.id, drain=False)
        raise
    keeper.CLIENT.let_go(record.id)
    say(f"endpoint {endpoint.name}: ready at {endpoint.url}")
    return endpoint


def _give_back(here: Context, record_id: str, *, drain: bool) -> None:
    with suppress(MlinfraError):
        keeper.release(here, record_id, reason="the client stopped waiting for it", drain=drain)
