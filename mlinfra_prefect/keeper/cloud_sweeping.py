"""The account sweep in a cloud: the twin of `keeper.sweeping`, which looks at processes of this host (rules R7 and R8).

It looks at everything that carries a lease's tags in the regions of the environments that this home was used with, and
asks the ledger about each. Ours and released, or ours and unknown, is ended. Of any other ledger only what is past its
own deadline and a grace. What carries no lease of ours is never touched, and what could not be looked at is told.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mlinfra_prefect.agent.wire import read_json_if_there
from mlinfra_prefect.errors import LedgerUnreadable, MlinfraError, PermanentError
from mlinfra_prefect.keeper.passes import Notes
from mlinfra_prefect.keeper.sweeping import DEADLINE_GRACE_SECONDS, MOST_ENDED, terraform_of
from mlinfra_prefect.ledger import KeptRecord, Versioned
from mlinfra_prefect.lifecycle import addenda, cloud_access
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.late import given_up
from mlinfra_prefect.model.endpoint import account_of
from mlinfra_prefect.model.home import Home
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.names import as_line, is_id
from mlinfra_prefect.model.receipt import Search

if TYPE_CHECKING:
    from mlinfra_prefect.aws.sweeping import Carried

TOMBSTONE_DAYS = 7
"""For so long what was released is swept again (rule R7)."""
GRACE_AFTER_RELEASE_SECONDS = 120.0
"""What is being terminated, and the disks that go with it, needs no second order."""


def sweep_clouds(
    context: Context,
    notes: Notes,
    opened: Sequence[Versioned],
    *,
    unknown_before: float,
    environment: str | None = None,
    dry_run: bool = False,
) -> None:
    """End what carries tags and has no open record. Idempotent; one region that cannot be seen stops no other.

    Args:
        context: where.
        notes: gets what was found, and what could not be seen.
        opened: the open records, as this pass has read them.
        unknown_before: epoch seconds; what is older and has no record may have had one (see `keeper.sight`).
        environment: only what is tagged with this one.
        dry_run: end nothing, write nothing.
    """
    places = _places(context, opened)
    if not places:
        return
    sweep = _Sweep(context, notes, unknown_before, dry_run=dry_run)
    try:
        for account, regions in places.items():
            try:
                _log_in(context, account)
            except (MlinfraError, OSError) as error:
                notes.add("stuck", as_line(f"aws account {account}"), str(error))
                continue
            sweep.look_around(regions, environment)
    finally:
        context.login.as_itself()


def _log_in(context: Context, account: str) -> None:
    """Log in to an account: as this process is, if it is, and else as a client of this home was.

    Raises:
        PermanentError: this is another account, in which nothing of it can be seen.
        MlinfraError: AWS does not say whose the login is.
    """
    context.login.as_itself()
    with suppress(MlinfraError):  # its own may have expired, or be none, and a client's be good
        if context.login.own and account in {"", cloud_access.account_here()}:
            return
    context.login.as_client_of(account)
    if account and (mine := cloud_access.account_here()) != account:
        raise PermanentError(
            f"This login is of account {mine}: nothing in account {account} can be seen.",
            f"Log in to account {account} and ask for a lease, release one, or reap.",
        )


class _Sweep:
    """One pass over what carries tags."""

    def __init__(self, context: Context, notes: Notes, unknown_before: float, *, dry_run: bool) -> None:
        self._context, self._notes = context, notes
        self._unknown_before, self._dry_run = unknown_before, dry_run
        self._left = MOST_ENDED

    def look_around(self, regions: tuple[str, ...], environment: str | None) -> None:
        """Look at what carries tags in the regions of the account that this process is logged in to."""
        from mlinfra_prefect.aws import sweeping
        from mlinfra_prefect.aws.sdk import client

        for region in regions:
            try:
                carried = sweeping.carriers(client, region)
            except (MlinfraError, OSError) as error:
                self._notes.add("stuck", as_line(f"aws {region}"), str(error))
                continue
            for each in carried:
                if environment is None or each.environment == environment:
                    self.look_at(each)

    def look_at(self, carried: Carried) -> None:
        """End what of it nobody answers for; one bad thing never stops the others (rule R9)."""
        try:
            found = _stray(self._context, carried, self._unknown_before)
            if found is not None:
                self._decide(*found)
        except (MlinfraError, OSError) as error:
            self._notes.add("stuck", as_line(carried.lease_id), str(error))

    def _decide(self, why: str, stray: Carried) -> None:
        told, names = as_line(stray.lease_id or "without an id"), ", ".join(stray.names)
        if terraform_of(self._context.home, stray.lease_id):
            self._notes.add("skipped", told, "a Terraform of it is still running", again=True)
        elif self._dry_run:
            self._notes.add("planned", told, f"{why}: {names} would be ended")
        elif len(stray.things) > self._left:
            self._notes.add("skipped", told, f"{why}; a pass ends {MOST_ENDED} things at most", again=True)
        else:
            self._left -= len(stray.things)
            self._end(told, why, stray)

    def _end(self, told: str, why: str, stray: Carried) -> None:
        from mlinfra_prefect.aws import sweeping
        from mlinfra_prefect.aws.sdk import client

        ended = sweeping.end(client, stray)
        _write_down(self._context, stray, why, ended.ended)
        self._notes.add("orphans", told, f"{why}: ended {', '.join(stray.names)}", again=True)
        for refusal in ended.refused:
            # Under a name of its own: what the lease has in another region must not be told over it.
            self._notes.add("stuck", as_line(f"{told} in {stray.region}"), f"{why}: still there: {refusal}")


def _places(context: Context, opened: Sequence[Versioned]) -> dict[str, tuple[str, ...]]:
    """Where to look: regions by account, each once; of an unknown account only where no known one has that region."""
    found: dict[str, dict[str, None]] = {}
    for account, region in (*_regions(context.home), *_regions_of_records(context, opened)):
        found.setdefault(account, {})[region] = None
    known = {region for account, regions in found.items() if account for region in regions}
    places = {account: tuple(regions) for account, regions in found.items()}
    places[""] = tuple(each for each in found.get("", ()) if each not in known)
    return {account: regions for account, regions in places.items() if regions}


def _regions(home: Home) -> Iterator[tuple[str, str]]:
    """Account and region of every environment that this home has used, each as often as it is in one."""
    for path in sorted(home.aws.glob("*.json")) if home.aws.is_dir() else ():
        found = read_json_if_there(path) or {}
        for region in found.get("regions") or ():
            name = str(region.get("name") or "") if isinstance(region, dict) else ""
            if name:
                yield str(found.get("account") or ""), name


def _regions_of_records(context: Context, opened: Sequence[Versioned]) -> Iterator[tuple[str, str]]:
    """The regions of attempts that another host may have made: a reaper's own home may have used no environment."""
    if not context.shared:
        return
    since = context.ledger.now() - timedelta(days=TOMBSTONE_DAYS)
    # Of what was ever released, the tombstones alone: each record of a shared ledger costs a call.
    for seen in (*opened, *context.ledger.records(states=[State.RELEASED], changed_since=since)):
        record = seen.record
        if record.platform != "local" and (record.released_at is None or record.released_at > since):
            yield from ((account_of(record), each.offer.region) for each in record.attempts)


def _stray(context: Context, carried: Carried, unknown_before: float) -> tuple[str, Carried] | None:
    """What of it nobody answers for, and why; None: somebody does, or it is not ours to say."""
    late = carried.overdue(time.time(), DEADLINE_GRACE_SECONDS)
    overdue = (f"past its own deadline, of ledger {carried.ledger_id}", late) if late is not None else None
    if carried.ledger_id != context.ledger.ledger_id:
        return overdue
    try:
        seen = context.ledger.read(carried.lease_id)
    except LedgerUnreadable:
        if overdue is None:
            raise
        return overdue
    if seen is None:
        # A record is written ahead of everything, so this ledger has lost it, or is a copy that never had it: a home
        # that was cloned has a twin, whose leases are not to be ended from here. Where its directory lies, it was ours.
        old = carried.created is None or carried.created < unknown_before
        ours = is_id(carried.lease_id) and context.home.record_dir(carried.lease_id).is_dir()
        return ("no record of this ledger names it", carried) if ours and not old else overdue
    record = seen.record
    if record.state is not State.RELEASED and late is not None:
        return overdue  # whoever keeps it does not end it
    if record.state is not State.RELEASED or record.released_at is None:
        return _given_up(record, carried)
    if (context.ledger.now() - record.released_at).total_seconds() < GRACE_AFTER_RELEASE_SECONDS:
        machines = tuple(each for each in carried.things if each.kind in {"instance", "fleet", "spot request"})
        if not machines:
            return None
    return f"it was released at {record.released_at:%Y-%m-%d %H:%M:%S} UTC", carried


def _given_up(record: KeptRecord, carried: Carried) -> tuple[str, Carried] | None:
    """The machines of a lease that goes on whose attempt was given up: they appeared after that one was told to end."""
    numbers = {each.number for each in given_up(record)}
    machines = tuple(
        each for each in carried.things if each.marks.attempt in numbers and each.kind in {"instance", "spot request"}
    )
    return ("its attempt was given up before", replace(carried, things=machines)) if machines else None


def _write_down(context: Context, stray: Carried, why: str, ended: tuple[str, ...]) -> None:
    search = Search(
        what=as_line(f"what carries the tags of this ledger: {why}"), where=as_line(stray.region), at=datetime.now(UTC),
        found=tuple(map(as_line, stray.names)), ended=tuple(map(as_line, ended)),
    )  # fmt: skip
    try:
        addenda.add(context.home, stray.lease_id, search)
    except OSError:
        return  # a full disk takes no line; what was found is still told by this pass
