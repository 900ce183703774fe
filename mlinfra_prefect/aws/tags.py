"""The tags: seven words on everything billable, by which a sweep knows whose it is and until when it may live. Pure.

A state can be lost and a record can be closed too early; what a machine carries in its tags is with it until it ends.
So whatever ends things asks the tags, and this module is the one place that writes and reads them. It never guesses:
a value that is malformed is reported as malformed, and nobody ends a thing for a deadline that cannot be read.

What all leases of an environment share carries two other tags, and is never swept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:  # the dead-man's archive has this module, and not the model
    from mlinfra_prefect.model.lease import LeaseRecord

PREFIX = "mlinfra-prefect:"
LEDGER = f"{PREFIX}ledger"
LEASE = f"{PREFIX}lease"
ATTEMPT = f"{PREFIX}attempt"
FLOW_RUN = f"{PREFIX}flow-run"
OWNER = f"{PREFIX}owner"
ENVIRONMENT = f"{PREFIX}environment"
DEADLINE = f"{PREFIX}deadline"
KEYS = (LEDGER, LEASE, ATTEMPT, FLOW_RUN, OWNER, ENVIRONMENT, DEADLINE)
SHARED = f"{PREFIX}shared"
FLEET = "aws:ec2:fleet-id"
"""Written by EC2 itself on every instance that a fleet launched."""
NONE = "none"
"""Stands for a value that is not there: a lease outside a flow run has no flow run."""
LONGEST_VALUE = 256

_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_REFUSED = re.compile(r"[^\w +\-=.:/@]", re.ASCII)
_WHOLE = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Marks:
    """What the tags of one thing say.

    Attributes:
        ledger_id: of its ledger; empty: it says none.
        lease_id: of its lease; empty: it says none.
        attempt: its number; None: it says none, or none that can be read.
        flow_run: the id of its flow run; empty: none.
        owner: who asked for it, for people.
        environment: its environment; empty: it says none.
        deadline: epoch seconds; None: it says none, or none that can be read.
        shared: it belongs to no lease and is never swept.
        malformed: the keys whose values cannot be read.
    """

    ledger_id: str = ""
    lease_id: str = ""
    attempt: int | None = None
    flow_run: str = ""
    owner: str = ""
    environment: str = ""
    deadline: float | None = None
    shared: bool = False
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which things are meant, by their tags: all of the values, and every key in `present` whatever its value."""

    values: tuple[tuple[str, str], ...] = ()
    present: tuple[str, ...] = ()

    def filters(self) -> list[dict[str, Any]]:
        """As EC2's ``describe_*`` take them."""
        exact = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self.values]
        return [*exact, *({"Name": "tag-key", "Values": [key]} for key in self.present)]

    def tag_filters(self) -> list[dict[str, Any]]:
        """As the tagging API takes them."""
        exact: list[dict[str, Any]] = [{"Key": key, "Values": [value]} for key, value in self.values]
        return [*exact, *({"Key": key} for key in self.present)]

    def fits(self, tags: Mapping[str, str]) -> bool:
        """Whether something with these tags is meant."""
        return all(tags.get(key) == value for key, value in self.values) and all(key in tags for key in self.present)


def of_lease(ledger_id: str, lease_id: str, attempt: int | None = None) -> Selection:
    """Select what one lease, or one attempt of it, has."""
    more = () if attempt is None else ((ATTEMPT, str(attempt)),)
    return Selection(((LEDGER, ledger_id), (LEASE, lease_id), *more))


def of_any_lease(*, ledger_id: str | None = None, environment: str | None = None) -> Selection:
    """Select what any lease has, of one ledger or environment where these are given."""
    wanted = ((LEDGER, ledger_id), (ENVIRONMENT, environment))
    return Selection(tuple((key, value) for key, value in wanted if value is not None), (LEASE,))


def build(
    *, ledger_id: str, lease_id: str, attempt: int, environment: str, deadline: float, owner: str = "",
    flow_run: str = "",
) -> dict[str, str]:  # fmt: skip
    """Return the seven tags of what is made for one attempt.

    Ids travel as they are; free text loses what AWS allows in no tag, for it only tells people whom to ask.

    Args:
        ledger_id: as the ledger minted it.
        lease_id: the lease's id.
        attempt: its number, from 1.
        environment: its name.
        deadline: epoch seconds; rounded up, so that nothing is ended early.
        owner: who asked for it.
        flow_run: the id of the flow run; empty: there is none.

    Raises:
        InvalidInput: an id or the deadline cannot be written so that it is read again as it was.
    """
    for field, value in (("ledger", ledger_id), ("lease", lease_id), ("environment", environment)):
        if not _IDENTITY.fullmatch(value):
            raise InvalidInput(field, f"{value!r} cannot be the value of a tag")
    if attempt < 1:
        raise InvalidInput("attempt", f"{attempt} is no number of an attempt")
    if not (math.isfinite(deadline) and 0 <= deadline < 10**11):
        raise InvalidInput("deadline", f"{deadline!r} is no time in epoch seconds")
    return {
        LEDGER: ledger_id,
        LEASE: lease_id,
        ATTEMPT: str(attempt),
        FLOW_RUN: _text(flow_run),
        OWNER: _text(owner),
        ENVIRONMENT: environment,
        DEADLINE: str(math.ceil(deadline)),
    }


def of(lease: LeaseRecord, attempt: int) -> dict[str, str]:
    """Return the seven tags of what is made for one attempt of a lease; the deadline is on the ledger's clock."""
    return build(
        ledger_id=lease.ledger_id, lease_id=lease.id, attempt=attempt, environment=lease.environment,
        deadline=lease.deadline.timestamp(), owner=str(lease.owner), flow_run=lease.owner.flow_run_id or "",
    )  # fmt: skip


def planned(environment: str) -> dict[str, str]:
    """Return the seven tags with placeholders, for plans made before any lease exists."""
    return build(ledger_id="plan", lease_id="plan", attempt=1, environment=environment, deadline=0.0)


def shared(environment: str) -> dict[str, str]:
    """Return the two tags of what all leases of an environment share."""
    return {ENVIRONMENT: environment, SHARED: "true"}


def read(pairs: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return the tags of an answer of AWS, ``[{"Key": …, "Value": …}, …]``, as a mapping."""
    return {str(each.get("Key", "")): str(each.get("Value", "")) for each in pairs}


def parse(tags: Mapping[str, str]) -> Marks:
    """Return what the tags of a thing say; never raises."""
    attempt, deadline = tags.get(ATTEMPT), tags.get(DEADLINE)
    malformed = [key for key, value in ((ATTEMPT, attempt), (DEADLINE, deadline)) if value and not _number(value)]
    malformed += [key for key in (LEASE, LEDGER) if tags.get(key, "-") == ""]
    malformed += [DEADLINE] if deadline == "" else []
    return Marks(
        ledger_id=tags.get(LEDGER, ""),
        lease_id=tags.get(LEASE, ""),
        attempt=int(attempt) if attempt and _number(attempt) else None,
        flow_run="" if tags.get(FLOW_RUN, NONE) == NONE else tags[FLOW_RUN],
        owner="" if tags.get(OWNER, NONE) == NONE else tags[OWNER],
        environment=tags.get(ENVIRONMENT, ""),
        deadline=float(deadline) if deadline and _number(deadline) else None,
        shared=SHARED in tags,
        malformed=tuple(sorted(malformed)),
    )


def _number(text: str) -> bool:
    # Of ASCII digits: int() also reads "١٢", " 7" and "1_000", which we never wrote.
    return _WHOLE.fullmatch(text) is not None


def _text(text: str) -> str:
    return _REFUSED.sub("_", text).strip()[:LONGEST_VALUE] or NONE
