"""The client's side: have a lease kept, hold its pipe, notice a dead keeper, and say when the client has ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from mlinfra_prefect import errors
from mlinfra_prefect.errors import (
    InvalidInput,
    KeeperUnavailable,
    LeaseLost,
    MlinfraError,
    NotYetDestroyed,
    OperationTimedOut,
)
from mlinfra_prefect.keeper.desk import take_off, watcher_alive
from mlinfra_prefect.keeper.holding import CLIENT
from mlinfra_prefect.keeper.starting import have_kept
from mlinfra_prefect.killpoints import killpoint
from mlinfra_prefect.ledger import KeptRecord
from mlinfra_prefect.lifecycle import cloud_access
from mlinfra_prefect.lifecycle.collecting import ENDED
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.marking import begin_release
from mlinfra_prefect.local.process import identify
from mlinfra_prefect.model.lease import Kept, LeaseRecord, State
from mlinfra_prefect.model.receipt import Receipt

LOOK_SECONDS = 0.25
"""How often who waits looks whether there is a keeper."""
POLL_SECONDS = ((3.0, 0.01), (30.0, 0.05), (float("inf"), 0.25))
"""Between two looks at the ledger: quick at first, because most waits are short."""
TRIES = 3
CLAIM_SECONDS = 30.0
"""How long a keeper service may take to claim a record, or to take one over whose keeper stopped renewing it."""

__all__ = ["CLIENT", "announce", "entrust", "looks", "release", "wait_ready", "wait_released", "why", "withdraw"]


def announce(context: Context, record: KeptRecord) -> None:
    """Have the keeper expect a record that is about to be written.

    A client that is killed right after the write has then been noticed already: nobody else would look for it.

    Raises:
        KeeperUnavailable: no keeper could be started; nothing was written.
    """
    if context.ledger.read(record.id) is None:
        have_kept(context, record, asked_here=True)


def withdraw(context: Context, record: KeptRecord) -> None:
    """Take an announcement back: the record was not written. Idempotent."""
    if context.ledger.read(record.id) is None:
        take_off(context.home, record.id)


def entrust(context: Context, record: KeptRecord, *, ended: Callable[[], bool] = lambda: False) -> None:
    """Give a durable record to the keeper; this process becomes its client unless the record says nobody.

    Raises:
        KeeperUnavailable: no keeper could be started. Nothing was created; the record is releasing, and the next
            keeper, which any verb starts, finishes it.
    """
    try:
        have_kept(context, record, asked_here=True)
    except KeeperUnavailable as error:
        with contextlib.suppress(MlinfraError):
            begin_release(context, record.id, reason=str(error), drain=False, error=type(error).__name__)
        raise
    killpoint("after-entrust", context.home.root)
    process = record.client.process
    if process is not None and process == identify():
        CLIENT.hold(context, record, ended)


def wait_ready(
    context: Context, record_id: str, *, timeout: float | None = None, tell: Callable[[str], None] = lambda _: None
) -> KeptRecord:
    """Wait until a record is ready. A keeper that dies meanwhile is replaced.

    Args:
        context: where.
        record_id: which.
        timeout: seconds; None: for ever.
        tell: called, once for each time, with why the record itself waits, for a machine that nobody has.

    Raises:
        MlinfraError: the class that the keeper recorded, with its reason: the record is going or gone.
        OperationTimedOut: it is neither after `timeout` seconds.
        KeeperUnavailable: there is no keeper, and none can be started.
    """
    told = ""
    for record in looks(context, record_id, timeout):
        if record.state is State.READY:
            return record
        if not record.live:
            raise why(record)
        if record.reason not in {"", told}:
            told = record.reason
            tell(told)
    raise OperationTimedOut(f"{record_id} is still {context.record(record_id).state} after {timeout:.0f} seconds.")


def why(record: Kept) -> MlinfraError:
    """Turn what a record says about its end into the error that its client gets."""
    kind = getattr(errors, record.error, None) if record.error else None
    text = record.reason or f"{record.id} is {record.state}"
    if isinstance(kind, type) and issubclass(kind, MlinfraError) and not issubclass(kind, InvalidInput):
        with contextlib.suppress(TypeError):
            found: MlinfraError = kind(text)
            return found
    return LeaseLost(f"{record.id} is {record.state}: {text}.")


def release(context: Context, record_id: str, *, reason: str, drain: bool = True) -> KeptRecord:
    """Begin the release of a record and have the keeper do it. Returns at once; a safe no-op when it is gone.

    Raises:
        NotFound: there is no such record.
        KeeperUnavailable: it is marked, and no keeper could be started; the next one does it.
    """
    record = begin_release(context, context.record(record_id).id, reason=reason, drain=drain)
    killpoint("after-release-mark", context.home.root)
    try:
        if record.platform != "local":
            # What was lent before may have expired.
            cloud_access.lend(context.home, os.environ, cloud_access.account_here)
    finally:
        if record.state is not State.RELEASED:
            try:
                have_kept(context, record)
            finally:
                _stop_meter(context, record)
    CLIENT.let_go(record.id)
    return record


def _stop_meter(context: Context, record: KeptRecord) -> None:
    """Stop the meter of rented machines from here, when nothing is left to drain: this process has the SDK loaded.

    The record goes already, and that is durable; the keeper tells the same machines to end again, and looks whether
    they did. So nothing here may fail a release, and nothing is noted.
    """
    attempt = record.attempt
    if record.platform == "local" or attempt is None or not isinstance(record, LeaseRecord):
        return
    if record.drain and any(job.state not in ENDED for job in record.jobs):
        return
    with contextlib.suppress(MlinfraError, OSError):
        context.platform(record.platform).stop_meter(record, attempt)


def wait_released(context: Context, record_id: str, *, timeout: float | None = None) -> Receipt:
    """Wait until a record is released, and return its receipt. A keeper that dies meanwhile is replaced.

    Raises:
        NotYetDestroyed: it is stuck, or not released after `timeout` seconds; the keeper goes on.
        KeeperUnavailable: there is no keeper, and none can be started.
    """
    for record in looks(context, record_id, timeout):
        if record.state is State.RELEASED and record.receipt is not None:
            return record.receipt
        if record.state is State.STUCK:
            raise NotYetDestroyed(
                f"{record_id} is stuck: {record.reason}", "The keeper retries for ever; `mlinfra-prefect ps` shows it."
            )
    state = context.record(record_id).state
    raise NotYetDestroyed(f"{record_id} is still {state} after {timeout:.0f} seconds.", "The keeper goes on with it.")


def looks(context: Context, record_id: str, timeout: float | None = None) -> Iterator[KeptRecord]:
    """Yield a record again and again, for `timeout` seconds (None: for ever), and see that somebody keeps it.

    Raises:
        KeeperUnavailable: there is no keeper, and none can be started, or no service has claimed it in time.
    """
    began = time.monotonic()
    next_look, failures = began + LOOK_SECONDS, 0
    while True:
        record = context.record(record_id)
        yield record
        now = time.monotonic()
        if timeout is not None and now - began > timeout:
            return
        if now >= next_look:
            next_look = now + LOOK_SECONDS
            try:
                if record.keeper_place == "service":
                    _expect_service(context, record_id, now - began)
                elif not watcher_alive(context.home):
                    have_kept(context, context.record(record_id))
                failures = 0
            except KeeperUnavailable:
                failures += 1
                if failures == TRIES or record.keeper_place == "service":
                    raise
        time.sleep(next(pause for until, pause in POLL_SECONDS if now - began < until))


def _expect_service(context: Context, record_id: str, waited: float) -> None:
    """See that a keeper service has a record, or has it again soon; `waited` is how long somebody waits here.

    Raises:
        KeeperUnavailable: it was not claimed in time, so nothing was created, and it is releasing; or its service is
            gone and no other one took it over.
    """
    record, now = context.record(record_id), context.ledger.now()
    limit = timedelta(seconds=CLAIM_SECONDS)
    remedy = "Run `mlinfra-prefect keeper` on this ledger; it finishes what is left."
    if record.keeper is None and waited > CLAIM_SECONDS and now - record.created_at > limit:
        why = f"no keeper service claimed it within {CLAIM_SECONDS:.0f} seconds"
        if record.live:
            record = begin_release(context, record_id, reason=why, drain=False, error=KeeperUnavailable.__name__)
        if record.keeper is None:
            raise KeeperUnavailable(f"{record_id}: {why}; nothing was created.", remedy)
    if record.live and record.keeper is not None and now - record.renewed_until > limit:
        host = record.keeper.process.host
        raise KeeperUnavailable(
            f"{record_id}: its keeper service on {host} stopped renewing it and no other took it over.", remedy
        )
