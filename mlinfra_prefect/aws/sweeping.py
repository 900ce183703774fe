"""The sweep of a region: what carries a lease's tags, whether it still is there, and its end (rules R7 to R9).

Everything is looked at before anything is ended, and what could not be looked at is an error: it never reads as
*nothing found*. What cannot be ended stops nothing else, and is found again by the next sweep. Nothing is touched that
carries no lease of ours, and nothing that the leases of an environment share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mlinfra_prefect.aws import ending, kinds, tags
from mlinfra_prefect.aws.asking import Clients, Refused, listed
from mlinfra_prefect.aws.kinds import Kind, Thing
from mlinfra_prefect.aws.tags import Selection
from mlinfra_prefect.errors import MlinfraError, PermanentError, TemporaryError

KINDS = ", ".join(f"{each.name}s" for each in kinds.KINDS)
"""What a sweep looks for, for people."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that was not ended, and why, for people."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Found:
    """What one look found, by names such as ``instance i-0a1b in us-east-1``.

    Attributes:
        found: all of it.
        ended: that of it which was told to end; nothing waits until it has.
        going: that of it which ends with something that is ending, and needs no order of its own.
        refused: that of it which was to end and could not be told.
    """

    found: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    going: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Carried:
    """What one lease of any ledger has in one region.

    Attributes:
        region: where.
        ledger_id: of its ledger; empty: its tags name none, so it is nobody's that can be asked.
        lease_id: the lease's id.
        things: what there is, in the order in which it is ended.
    """

    region: str
    ledger_id: str
    lease_id: str
    things: tuple[Thing, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all its things."""
        return tuple(each.name for each in self.things)

    @property
    def attempts(self) -> tuple[int, ...]:
        """Whose things there are."""
        return tuple(sorted({each.marks.attempt for each in self.things if each.marks.attempt is not None}))

    @property
    def environment(self) -> str:
        """As its tags say; empty: they say none."""
        return next((each.marks.environment for each in self.things if each.marks.environment), "")

    @property
    def deadline(self) -> float | None:
        """The latest deadline in epoch seconds; None: nothing says one that can be read."""
        return max((each.marks.deadline for each in self.things if each.marks.deadline is not None), default=None)

    @property
    def created(self) -> float | None:
        """When the oldest of it was made, epoch seconds; None: nothing says."""
        return min((each.created for each in self.things if each.created is not None), default=None)

    def overdue(self, now: float, grace_seconds: float = 0.0) -> Carried | None:
        """The part of it whose own deadline and the grace have passed at `now`; None: nothing of it has."""
        until = now - grace_seconds
        late = [each for each in self.things if each.marks.deadline is not None and each.marks.deadline <= until]
        return replace(self, things=tuple(late)) if late else None


@dataclass(frozen=True, slots=True)
class Unseen:
    """What could not be looked at, and why."""

    what: str
    region: str
    why: Refused

    def __str__(self) -> str:
        return f"{self.what} in {self.region} ({self.why.reason})"


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a region, and what of it stayed unseen."""

    carried: tuple[Carried, ...]
    unseen: tuple[Unseen, ...]


def search(
    clients: Clients, region: str, *, ledger_id: str, lease_id: str, end: bool = True, fleets: Iterable[str] = ()
) -> Found:  # fmt: skip
    """Look in one region for everything that carries a lease's tags, and end it. Idempotent; waits for nothing.

    Nine calls where nothing is left and the index of tags knows of nothing; a call more for each kind of which the
    index, or `fleets`, names something that its service did not list.

    Args:
        clients: of the SDK.
        region: where.
        ledger_id: of the lease.
        lease_id: the lease's id.
        end: tell what is found to end.
        fleets: ids of instant fleets that are known from elsewhere: without its id EC2 describes none.

    Raises:
        TemporaryError, PermanentError: some kind could not be looked at; what was seen of the others was ended.
    """
    things, unseen = look(clients, region, tags.of_lease(ledger_id, lease_id), fleets=fleets)
    found = _end(clients, region, things) if end else Found(tuple(each.name for each in things if each.lives))
    if unseen:
        told = f" What was seen is told to end: {listed(found.ended)}." if found.ended else ""
        raise _blind(unseen, f"whether something of {lease_id} is left", told)
    return found


def carriers(
    clients: Clients, region: str, *, ledger_id: str | None = None, only: Sequence[Kind] = kinds.KINDS
) -> tuple[Carried, ...]:
    """Return everything in a region that carries a lease's tag, of any ledger or of one, grouped by ledger and lease.

    Raises:
        TemporaryError, PermanentError: some kind could not be looked at.
    """
    sight = seen(clients, region, tags.of_any_lease(ledger_id=ledger_id), only=only)
    if sight.unseen:
        raise _blind(sight.unseen, "what leases have", "")
    return sight.carried


def seen(clients: Clients, region: str, selection: Selection, *, only: Sequence[Kind] = kinds.KINDS) -> Sight:
    """See `carriers`; tells what stayed unseen instead of raising, for those who end what they see all the same."""
    things, unseen = look(clients, region, selection, only=only)
    groups: dict[tuple[str, str], list[Thing]] = defaultdict(list)
    for each in things:
        if each.lives and each.marks.lease_id and not each.marks.shared:
            groups[each.marks.ledger_id, each.marks.lease_id].append(each)
    return Sight(
        tuple(Carried(region, ledger, lease, tuple(group)) for (ledger, lease), group in sorted(groups.items())),
        tuple(unseen),
    )


def end(clients: Clients, carried: Carried) -> Found:
    """Tell everything to end that a look has found. Idempotent; waits for nothing; never raises for one thing."""
    return _end(clients, carried.region, carried.things)


def look(
    clients: Clients,
    region: str,
    selection: Selection,
    *,
    only: Sequence[Kind] = kinds.KINDS,
    fleets: Iterable[str] = (),
) -> tuple[list[Thing], list[Unseen]]:
    """Return what carries these tags, the ended included, in the order of `KINDS`; and what could not be looked at."""
    things: list[Thing] = []
    unseen: list[Unseen] = []
    candidates = {*fleets}
    try:
        candidates |= kinds.indexed(clients, region, selection)
    except Refused as why:
        unseen.append(Unseen("the index of tags", region, why))
    for kind in only:
        try:
            listed = kinds.describe(clients, region, kind, selection)
            things += listed
            if kind is kinds.INSTANCE:
                candidates |= {each.fleet_id for each in listed if each.fleet_id}
            named = {each for each in candidates if each.startswith(kind.prefix)} - {each.id for each in listed}
            if named:
                things += kinds.confirm(clients, region, kind, selection, named)
        except Refused as why:
            unseen.append(Unseen(f"{kind.name}s", region, why))
    return [each for each in things if not each.marks.shared], unseen


def _end(clients: Clients, region: str, things: Sequence[Thing]) -> Found:
    living = [each for each in things if each.lives]
    going = {each.id for each in things if each.ending}
    client = clients("ec2", region) if living else None
    refused: dict[str, str] = {}
    taken: set[str] = set()
    for kind in kinds.KINDS:
        ours = [each for each in living if each.kind == kind.name]
        taken |= {each.id for each in ours if each.goes_with in going}
        left = [each for each in ours if each.id not in taken]
        if left:
            reasons = _told(client, kind, left)
            refused |= {each: why.reason for each, why in reasons.items()}
            going |= {each.id for each in left if each.id not in reasons}
    return Found(
        found=tuple(each.name for each in living),
        ended=tuple(each.name for each in living if each.id not in refused and each.id not in taken),
        going=tuple(each.name for each in living if each.id in taken),
        refused=tuple(Refusal(each.name, refused[each.id]) for each in living if each.id in refused),
    )


def _told(client: object, kind: Kind, things: Sequence[Thing]) -> ending.Reasons:
    ids = [each.id for each in things]
    if kind is kinds.ADDRESS:
        return ending.release_addresses(client, ids, {each.id: each.association for each in things})
    return {
        kinds.INSTANCE: ending.terminate,
        kinds.FLEET: ending.delete_fleets,
        kinds.SPOT_REQUEST: ending.cancel_spot_requests,
        kinds.INTERFACE: ending.delete_interfaces,
        kinds.VOLUME: ending.delete_volumes,
        kinds.GROUP: ending.delete_groups,
        kinds.TEMPLATE: ending.delete_templates,
    }[kind](client, ids)


def _blind(unseen: Sequence[Unseen], what: str, told: str) -> MlinfraError:
    first = unseen[0].why.error("Looking")
    kind = PermanentError if all(isinstance(each.why.error(""), PermanentError) for each in unseen) else TemporaryError
    return kind(f"Nobody can say {what}: not seen were {listed(unseen)}.{told}", first.remedy)
