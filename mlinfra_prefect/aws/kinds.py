"""The kinds of thing that a lease may have in a region, how each is found by its tags, and when it counts as gone.

An index of tags lists the dead for hours and learns of the living late, so it only names candidates: what counts is
the service's own describe. What these kinds do not name is not looked for; a plan that would make it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mlinfra_prefect.aws import tags
from mlinfra_prefect.aws.asking import Clients, Refused, pages
from mlinfra_prefect.aws.ending import GONE, absent_of
from mlinfra_prefect.aws.tags import Marks, Selection

PAGE = 200
BATCH = 100
"""Ids in one question; AWS takes 200 values of a filter."""
ENDED_INSTANCE = frozenset({"shutting-down", "terminated"})
ENDED_REQUEST = frozenset({"closed", "cancelled", "failed"})

Row = Mapping[str, Any]
_LAST = re.compile(r"[^/:]+$")


@dataclass(frozen=True, slots=True)
class Thing:
    """Something of a lease, as its service described it.

    Attributes:
        kind: such as ``instance``; see `KINDS`.
        id: AWS's id.
        region: where it is.
        marks: what its tags say.
        lives: False: it has ended or is ending, and costs nothing more.
        ending: it has been told to end and has not yet; of instances only.
        created: epoch seconds of its birth; None: its service does not say.
        goes_with: the instance that takes it along when it ends; empty: none.
        fleet_id: of an instance, the fleet that launched it.
        association: of an address, what ties it to an interface.
    """

    kind: str
    id: str
    region: str
    marks: Marks
    lives: bool = True
    ending: bool = False
    created: float | None = None
    goes_with: str = ""
    fleet_id: str = ""
    association: str = ""

    @property
    def name(self) -> str:
        """For people, such as ``instance i-0a1b in us-east-1``."""
        return f"{self.kind} {self.id} in {self.region}"


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind is described.

    Attributes:
        name: for people.
        prefix: of its ids, by which the index's names are told apart.
        operation: of EC2.
        rows: where they are in an answer.
        id: the field with the id.
        id_filter: the filter by ids; empty: there is none, and they are asked for by id.
        tags: the field with the tags.
        born: the field with the time of its birth; empty: there is none.
        lives: whether a row still is something.
        holder: the instance that takes it along, if any.
        paged: whether the operation takes a size of page.
    """

    name: str
    prefix: str
    operation: str
    rows: str
    id: str
    id_filter: str
    tags: str = "Tags"
    born: str = ""
    lives: Callable[[Row], bool] = lambda _: True
    holder: Callable[[Row], str] = lambda _: ""
    paged: bool = True


def _disk_holder(row: Row) -> str:
    return next(
        (str(each["InstanceId"]) for each in row.get("Attachments") or () if each.get("DeleteOnTermination")), ""
    )


def _interface_holder(row: Row) -> str:
    attached = row.get("Attachment") or {}
    return str(attached.get("InstanceId") or "") if attached.get("DeleteOnTermination") else ""


INSTANCE = Kind(
    "instance", "i-", "describe_instances", "Reservations", "InstanceId", "instance-id", born="LaunchTime",
    lives=lambda row: row["State"]["Name"] not in ENDED_INSTANCE,
)  # fmt: skip
FLEET = Kind(
    "fleet", "fleet-", "describe_fleets", "Fleets", "FleetId", "", born="CreateTime",
    lives=lambda row: row.get("FleetState") not in GONE,
)  # fmt: skip
SPOT_REQUEST = Kind(
    "spot request", "sir-", "describe_spot_instance_requests", "SpotInstanceRequests", "SpotInstanceRequestId",
    "spot-instance-request-id", born="CreateTime", lives=lambda row: row.get("State") not in ENDED_REQUEST,
)  # fmt: skip
INTERFACE = Kind(
    "network interface", "eni-", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId",
    "network-interface-id", tags="TagSet", holder=_interface_holder,
)  # fmt: skip
VOLUME = Kind(
    "volume", "vol-", "describe_volumes", "Volumes", "VolumeId", "volume-id", born="CreateTime",
    lives=lambda row: row.get("State") not in {"deleting", "deleted"}, holder=_disk_holder,
)  # fmt: skip
GROUP = Kind("security group", "sg-", "describe_security_groups", "SecurityGroups", "GroupId", "group-id")
ADDRESS = Kind(
    "elastic IP", "eipalloc-", "describe_addresses", "Addresses", "AllocationId", "allocation-id", paged=False
)
TEMPLATE = Kind(
    "launch template", "lt-", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateId", "", born="CreateTime"
)
KINDS = (INSTANCE, FLEET, SPOT_REQUEST, INTERFACE, VOLUME, GROUP, ADDRESS, TEMPLATE)
"""In the order in which they are ended: what holds another thing goes before it."""
COMPUTE = (INSTANCE, FLEET, SPOT_REQUEST)
"""What costs by the second for what it computes."""


def describe(clients: Clients, region: str, kind: Kind, selection: Selection) -> list[Thing]:
    """Return everything of one kind that its service knows by these tags, the ended included; raises `Refused`.

    One call for each page of 200. A fleet that is not described without its id (an instant one) is not among them.
    """
    size = {"MaxResults": PAGE} if kind.paged else {}
    # Fleets have no filter by tag.
    by = {} if kind is FLEET else {"Filters": selection.filters()}
    client = clients("ec2", region)
    return list(_things(kind, region, selection, pages(client, kind.operation, **by, **size)))


def confirm(clients: Clients, region: str, kind: Kind, selection: Selection, ids: Iterable[str]) -> list[Thing]:
    """Return those of the ids that their service knows, and that carry these tags; raises `Refused`."""
    client, wanted = clients("ec2", region), sorted(set(ids))
    if kind.id_filter:
        batches = [wanted[start : start + BATCH] for start in range(0, len(wanted), BATCH)]
        answers: Iterable[Row] = (
            answer
            for batch in batches
            for answer in pages(client, kind.operation, Filters=[{"Name": kind.id_filter, "Values": batch}])
        )
    else:
        answers = _by_ids(client, kind, wanted)
    return list(_things(kind, region, selection, answers))


def indexed(clients: Clients, region: str, selection: Selection) -> set[str]:
    """Return the ids that the index of tags has for these tags, the dead included; raises `Refused`."""
    client = clients("resourcegroupstaggingapi", region)
    found: set[str] = set()
    for answer in pages(
        client, "get_resources", TagFilters=selection.tag_filters(), ResourceTypeFilters=["ec2"], ResourcesPerPage=100
    ):
        for each in answer.get("ResourceTagMappingList") or ():
            last = _LAST.search(str(each.get("ResourceARN", "")))
            found |= {last[0]} if last else set()
    return found


def _by_ids(client: Any, kind: Kind, ids: Sequence[str]) -> Iterator[Row]:
    """Ask for ids where one that is absent has the whole question refused."""
    if len(ids) > BATCH:
        yield from _by_ids(client, kind, ids[:BATCH])
        yield from _by_ids(client, kind, ids[BATCH:])
        return
    try:
        yield from list(pages(client, kind.operation, **{f"{kind.id}s": list(ids)}))
    except Refused as why:
        if why.meaning != "absent":
            raise
        absent = absent_of(ids, why)
        rest = [each for each in ids if each not in absent]
        if not absent and len(rest) == 1:
            raise  # it names something else
        for part in (rest,) if absent else (rest[: len(rest) // 2], rest[len(rest) // 2 :]):
            if part:
                yield from _by_ids(client, kind, part)


def _things(kind: Kind, region: str, selection: Selection, answers: Iterable[Row]) -> Iterator[Thing]:
    for answer in answers:
        for row in answer.get(kind.rows) or ():
            for each in row["Instances"] if kind is INSTANCE else (row,):
                carried = tags.read(each.get(kind.tags) or ())
                if not selection.fits(carried):
                    continue
                born = each.get(kind.born)
                yield Thing(
                    kind=kind.name,
                    id=str(each[kind.id]),
                    region=region,
                    marks=tags.parse(carried),
                    lives=kind.lives(each),
                    ending=kind is INSTANCE and each["State"]["Name"] == "shutting-down",
                    created=born.timestamp() if isinstance(born, datetime) else None,
                    goes_with=kind.holder(each),
                    fleet_id=carried.get(tags.FLEET, ""),
                    association=str(each.get("AssociationId") or "") if kind is ADDRESS else "",
                )
