"""What became of an instant fleet: the machines that exist, and what each error of it decides.

Terraform calls a fleet without a machine a success, and the fleet tells why in a list that nothing shows. So success is
what exists, and every error becomes one decision: the next offer, the next offer or a queue, the same one again, or
stop with what a person has to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from mlinfra_prefect.aws import kinds
from mlinfra_prefect.aws.asking import CREDENTIALS, DENIED, THROTTLED, Clients, Refused, ask, listed, pages
from mlinfra_prefect.errors import CapacityUnavailable, MlinfraError, PermanentError, QuotaExceeded, TemporaryError


@dataclass(frozen=True, slots=True)
class Machine:
    """An instance that exists and has not ended.

    Attributes:
        id: such as ``i-0a1b``.
        type: its instance type.
        zone: its availability zone.
        market: ``on-demand`` or ``spot``.
        launched_at: when EC2 launched it, in UTC.
        state: ``pending``, ``running``, ``stopping`` or ``stopped``.
    """

    id: str
    type: str
    zone: str
    market: str
    launched_at: datetime
    state: str


@dataclass(frozen=True, slots=True)
class FleetError:
    """Why one pool of a fleet gave nothing; empty where AWS did not say."""

    type: str
    zone: str
    market: str
    code: str
    message: str

    def __str__(self) -> str:
        where = " in ".join(each for each in (self.type, self.zone) if each) or "the fleet"
        return f"{where}{f' ({self.market})' if self.market else ''}: {self.code}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an instant fleet came to.

    Attributes:
        instances: those that exist.
        errors: of its pools, as AWS told them.
        missing: ids that are known of and that EC2 does not show, or shows as ended.
    """

    instances: tuple[Machine, ...] = ()
    errors: tuple[FleetError, ...] = ()
    missing: tuple[str, ...] = ()


def outcome(
    clients: Clients, region: str, fleet_id: str | None, instance_ids: Iterable[str] = (), *,
    zones: Mapping[str, str] | None = None,
) -> Outcome:  # fmt: skip
    """Return what exists of a fleet and why the rest does not. Two calls; changes nothing.

    Args:
        clients: of the SDK.
        region: where.
        fleet_id: the fleet; None or empty: none was made.
        instance_ids: the instances that the state names; the fleet's own are looked for beside them.
        zones: the zone of each subnet, for errors that only name the subnet.

    Raises:
        TemporaryError, PermanentError: AWS could not be asked.
    """
    client = clients("ec2", region)
    ids = dict.fromkeys(instance_ids)
    errors: list[FleetError] = []
    try:
        if fleet_id:
            for fleet in _fleet(client, fleet_id):
                errors += [_error(each, zones or {}) for each in fleet.get("Errors") or ()]
                ids |= dict.fromkeys(str(one) for each in fleet.get("Instances") or () for one in each["InstanceIds"])
        machines = list(_machines(client, tuple(ids)))
    except Refused as why:
        raise why.error(f"Asking what became of {fleet_id or 'the instances'} in {region}") from why
    shown = {each.id for each in machines}
    return Outcome(tuple(machines), tuple(errors), tuple(each for each in ids if each not in shown))


def alive(clients: Clients, region: str, instance_id: str) -> bool:
    """Whether an instance exists and has not ended; one call.

    Raises:
        TemporaryError, PermanentError: AWS could not be asked.
    """
    try:
        return any(True for _ in _machines(clients("ec2", region), (instance_id,)))
    except Refused as why:
        raise why.error(f"Asking whether {instance_id} in {region} lives") from why


def told(diagnostic: str) -> tuple[FleetError, ...]:
    """Return what the AWS provider's error about a fleet says, for `decision`; empty: nothing of AWS's. Pure.

    The whole call can be refused, and then there is no fleet to ask: ``api error UnauthorizedOperation: You are …``.
    """
    return tuple(FleetError("", "", "", code, message) for code, message in _API_ERROR.findall(diagnostic))


def decision(errors: Iterable[FleetError]) -> MlinfraError:
    """Return what follows from a fleet's errors, to be raised. Pure.

    What a person has to mend only decides where every pool says so: where one pool has a wrong setting and the others
    no capacity, the next offer may still work.

    Returns:
        CapacityUnavailable: take the next offer; also where nothing says why there is no machine.
        QuotaExceeded: take the next offer, or wait.
        TemporaryError: take the same one again in some seconds: what was made just now is not seen everywhere yet.
        PermanentError: stop; its remedy says what to mend.
    """
    said = tuple(dict.fromkeys(errors))
    if not said:
        return CapacityUnavailable("The fleet has no machine, and says nothing of why.", NEXT)
    meanings = {_meaning(each) for each in said}
    pools = _pools(said)
    if meanings == {Meaning.FOR_GOOD}:
        first = said[0]
        message = " ".join(first.message.split())[:LONGEST_MESSAGE].rstrip(".")
        return PermanentError(f"AWS refuses the fleet: {pools}{f': {message}' if message else ''}.", _remedy(first))
    if Meaning.CAPACITY in meanings:
        return CapacityUnavailable(f"AWS has no machine to give: {pools}.", NEXT)
    if Meaning.SOON in meanings:
        return TemporaryError(f"AWS cannot make the fleet yet: {pools}.", "It is tried again in some seconds.")
    return QuotaExceeded(f"The quota of this account is used up: {pools}.", QUOTA_REMEDY)


def _pools(said: Iterable[FleetError]) -> str:
    """What was said, with the types and zones that met the same named together: a fleet asks dozens of pools. Pure."""
    zones: dict[tuple[str, str, str], list[str]] = {}
    for each in said:
        zones.setdefault((each.code, each.market, each.type), []).append(each.zone)
    types: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (code, market, type_), there in zones.items():
        types.setdefault((code, market, tuple(sorted(dict.fromkeys(there)))), []).append(type_)
    return listed(
        [
            str(FleetError(listed(alike), listed(there), market, code, ""))
            for (code, market, there), alike in types.items()
        ]
    )


# --- what a code means ------------------------------------------------------------------------------------------------


class Meaning(Enum):
    """What follows from one error of one pool."""

    CAPACITY = "there is none there now"
    QUOTA = "the account may have no more"
    SOON = "the same may work in some seconds"
    FOR_GOOD = "it fails until somebody mends it"


NEXT = "The next offer is tried; more zones, types or regions, or the other market, find more."
QUOTA_REMEDY = "Ask AWS for more of it (Service Quotas), or wait until other leases are released."
LONGEST_MESSAGE = 300

_CAPACITY = frozenset({
    "InsufficientCapacity", "InsufficientCapacityOnHost", "InsufficientFreeAddressesInSubnet",
    "InsufficientHostCapacity", "InsufficientInstanceCapacity", "InsufficientReservedInstanceCapacity",
    "ReservationCapacityExceeded", "SpotMaxPriceTooLow", "UnfulfillableCapacity", "Unsupported",
})  # fmt: skip
_QUOTA = frozenset({
    "InstanceLimitExceeded", "MaxSpotFleetRequestCountExceeded", "MaxSpotInstanceCountExceeded", "PendingVerification",
    "RequestResourceCountExceeded", "VcpuLimitExceeded",
})  # fmt: skip
_SOON = THROTTLED | {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}
_FOR_GOOD = CREDENTIALS | DENIED | {"Blocked", "OptInRequired", "OperationNotPermitted", "ValidationError"}
_FOR_GOOD_PREFIXES = ("AuthFailure", "Invalid", "Malformed", "Missing", "Unknown")
_REMEDIES = {
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": "Create EC2's role for spot machines once: "
    "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com.",
    "Blocked": "AWS has blocked this account: its support says why.",
    "InvalidAMIID": "Choose an image that exists in this region with ami=, or leave it out.",
    "InvalidGroup": "The environment's security group is gone: run init aws again.",
    "InvalidLaunchTemplate": "The launch template of the attempt is gone or wrong: take another attempt.",
    "InvalidSubnetID": "The environment's subnets are gone: run init aws again.",
    "OptInRequired": "Subscribe to the image in the AWS Marketplace, or enable the region for this account.",
}
_API_ERROR = re.compile(r"api error ([A-Za-z][A-Za-z0-9.]*): ([^\n]*)")
_ACTION = re.compile(r"\b([a-z0-9-]+:[A-Z][A-Za-z]+)\b")


def _meaning(error: FleetError) -> Meaning:
    code, message = error.code, error.message.lower()
    if code.startswith("Invalid") and ("instance profile" in message or "iaminstanceprofile" in message):
        return Meaning.SOON  # IAM has it, and EC2 has not seen it yet
    if code == "InvalidFleetConfiguration" and "not supported in your requested availability zone" in message:
        return Meaning.CAPACITY  # how CreateFleet says Unsupported
    if code in _QUOTA or (code.endswith("LimitExceeded") and code not in THROTTLED):
        return Meaning.QUOTA
    if code in _SOON:
        return Meaning.SOON
    if code in _FOR_GOOD or (code not in _CAPACITY and code.startswith(_FOR_GOOD_PREFIXES)):
        return Meaning.FOR_GOOD
    # What AWS will call it tomorrow is not known today: the ladder is finite, and its end shows the code.
    return Meaning.CAPACITY


def _remedy(error: FleetError) -> str:
    if error.code in DENIED:
        named = _ACTION.search(error.message)
        return f"Allow {named[1] if named else 'ec2:CreateFleet and ec2:RunInstances'} to these credentials."
    if error.code in CREDENTIALS:
        return "Log in again, or mend the credentials."
    known = (remedy for prefix, remedy in _REMEDIES.items() if error.code.startswith(prefix))
    return next(known, "Mend what AWS names; docs/operations.md lists what it may be.")


# --- what AWS shows ---------------------------------------------------------------------------------------------------


def _fleet(client: Any, fleet_id: str) -> Sequence[Mapping[str, Any]]:
    try:
        return list(ask(client, "describe_fleets", FleetIds=[fleet_id]).get("Fleets") or ())
    except Refused as why:
        if why.meaning == "absent":
            return ()
        raise


def _error(row: Mapping[str, Any], zones: Mapping[str, str]) -> FleetError:
    override = (row.get("LaunchTemplateAndOverrides") or {}).get("Overrides") or {}
    subnet = str(override.get("SubnetId") or "")
    return FleetError(
        type=str(override.get("InstanceType") or ""),
        zone=str(override.get("AvailabilityZone") or zones.get(subnet, subnet)),
        market=str(row.get("Lifecycle") or ""),
        code=str(row.get("ErrorCode") or ""),
        message=str(row.get("ErrorMessage") or ""),
    )


def _machines(client: Any, ids: Sequence[str]) -> Iterator[Machine]:
    for start in range(0, len(ids), kinds.BATCH):
        # A filter: an id that is not known yet, or not any more, would have the whole question refused.
        asked = [{"Name": "instance-id", "Values": list(ids[start : start + kinds.BATCH])}]
        for answer in pages(client, "describe_instances", Filters=asked):
            for row in (each for group in answer.get("Reservations") or () for each in group["Instances"]):
                if kinds.INSTANCE.lives(row):
                    yield Machine(
                        id=str(row["InstanceId"]),
                        type=str(row["InstanceType"]),
                        zone=str(row["Placement"]["AvailabilityZone"]),
                        market=str(row.get("InstanceLifecycle") or "on-demand"),
                        launched_at=row["LaunchTime"].astimezone(UTC),
                        state=str(row["State"]["Name"]),
                    )
