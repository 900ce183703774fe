"""The judge of an AWS account: what lives in all of it. Standard library only; it imports nothing of ours.

It asks the account, in the words of EC2, IAM and S3, and counts everything, whoever made it and whether it carries a
tag or not. It trusts no tag, no record and no receipt: two looks at a whole account are compared, and what came is a
leak, what went or changed was somebody else's.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.etree import ElementTree as ET

TRIES = 5
PAUSE_SECONDS = 0.2
ANSWER_SECONDS = 30.0
GONE = frozenset({
    "terminated", "deleted", "deleting", "deleted_terminating", "deleted_running", "cancelled", "closed", "failed",
})  # fmt: skip
"""States of what costs nothing any more, and will not again."""
LOCKS = (".tflock", ".lock.info", "/lock")
"""How the names of lock objects end."""


class Blind(RuntimeError):
    """The account did not answer, so nobody can say what it holds."""


@dataclass(frozen=True, slots=True)
class Thing:
    """One thing that an account holds.

    Args:
        kind: such as ``volume``.
        id: its id there.
        region: where; empty: nowhere in particular.
        state: as the service says; empty: it has none.
        tags: sorted, without those that AWS itself sets.
    """

    kind: str
    id: str
    region: str
    state: str = ""
    tags: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        where = f" in {self.region}" if self.region else ""
        return f"{self.kind} {self.id}{where} ({self.state or 'there'}; {len(self.tags)} tags)"


@dataclass(frozen=True, slots=True)
class _Kind:
    name: str
    action: str
    items: str
    """The element that holds the list."""
    id: str
    state: str = ""


KINDS = (
    _Kind("volume", "DescribeVolumes", "volumeSet", "volumeId", "status"),
    _Kind("network interface", "DescribeNetworkInterfaces", "networkInterfaceSet", "networkInterfaceId", "status"),
    _Kind("security group", "DescribeSecurityGroups", "securityGroupInfo", "groupId"),
    _Kind("launch template", "DescribeLaunchTemplates", "launchTemplates", "launchTemplateId"),
    _Kind("spot request", "DescribeSpotInstanceRequests", "spotInstanceRequestSet", "spotInstanceRequestId", "state"),
    _Kind("address", "DescribeAddresses", "addressesSet", "allocationId"),
    _Kind("key pair", "DescribeKeyPairs", "keySet", "keyName"),
    _Kind("subnet", "DescribeSubnets", "subnetSet", "subnetId"),
    _Kind("network", "DescribeVpcs", "vpcSet", "vpcId"),
)


def call(url: str, service: str, region: str, action: str, version: str, **parameters: str) -> ET.Element:
    """Ask one operation of a service that speaks in forms, and return its answer, without namespaces.

    Raises:
        Blind: it does not answer, or refuses, five times.
    """
    body = urllib.parse.urlencode({"Action": action, "Version": version, **parameters}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8", **_signed(service, region)}
    return _parsed(_asked(urllib.request.Request(url, body, headers)))  # noqa: S310 (http, loopback)


def ec2(url: str, region: str, action: str, **parameters: str) -> ET.Element:
    """Ask EC2; see `call`."""
    return call(url, "ec2", region, action, "2016-11-15", **parameters)


def instances(url: str) -> list[dict[str, Any]]:
    """Every instance that the account ever had, in every region: also those that Describe calls do not show.

    Raises:
        Blind: the emulator does not answer.
    """
    found = json.loads(_asked(urllib.request.Request(f"{url}/_emulator/instances")))  # noqa: S310 (http, loopback)
    return [each for each in found if isinstance(each, dict)]


def living(url: str) -> dict[str, Thing]:
    """The instances that are not terminated, by id."""
    return {
        each["id"]: Thing("instance", each["id"], each["region"], each["state"], _tags(each["tags"]))
        for each in instances(url) if each["state"] != "terminated"
    }  # fmt: skip


def orphaned(url: str) -> list[str]:
    """Machines whose processes live although their instance is gone, in words."""
    return [
        f"processes of the terminated {each['id']} live: {each['pids']}"
        for each in instances(url) if each["state"] == "terminated" and each["pids"]
    ]  # fmt: skip


def survey(url: str, regions: tuple[str, ...]) -> dict[tuple[str, str], Thing]:
    """Everything that lives in an account, by kind and id.

    Raises:
        Blind: some of it cannot be seen.
    """
    there = instances(url)
    found = [*living(url).values(), *_roles(url), *_locks(url)]
    for region in regions:
        fleets = {each["fleet_id"] for each in there if each["fleet_id"] and each["region"] == region}
        found += [*_fleets(url, region, fleets | _indexed_fleets(url, region))]
        for kind in KINDS:
            found += _listed(kind, region, ec2(url, region, kind.action))
    return {(each.kind, each.id): each for each in found if each.state not in GONE}


def compared(before: Mapping[tuple[str, str], Thing], now: Mapping[tuple[str, str], Thing]) -> list[str]:
    """What is there and was not, and what was there and is not or is not the same, in words; empty: nothing. Pure."""
    came = [f"left in the account: {now[key]}" for key in sorted(set(now) - set(before))]
    went = [f"it was not ours, and it is gone: {before[key]}" for key in sorted(set(before) - set(now))]
    both = sorted(set(before) & set(now))
    return came + went + [
        f"it was not ours, and it was changed: {before[key]} is now {now[key]} {dict(now[key].tags)}"
        for key in both if before[key] != now[key]
    ]  # fmt: skip


def told(url: str, canary: str, since: float) -> list[str]:
    """Objects of every bucket, written since a moment, in which a secret stands."""
    found = []
    for bucket in _buckets(url):
        found += [
            f"secret in s3://{bucket}/{key}"
            for key in keys(url, bucket, since=since)
            if canary.encode() in (content(url, bucket, key) or b"")  # it may have gone meanwhile
        ]
    return found


def content(url: str, bucket: str, key: str) -> bytes | None:
    """What lies under a key; None: nothing, or nobody can say."""
    path = f"{url}/{bucket}/{urllib.parse.quote(key)}"
    try:
        return _asked(urllib.request.Request(path, headers=_signed("s3", "us-east-1")))  # noqa: S310 (http, loopback)
    except Blind:
        return None


def _listed(kind: _Kind, region: str, answer: ET.Element) -> Iterator[Thing]:
    for item in answer.findall(f"./{kind.items}/item"):
        named = item.findtext(kind.id) or ""
        state = item.findtext(kind.state) or "" if kind.state else ""
        tags = {tag.findtext("key") or "": tag.findtext("value") or "" for tag in item.findall("./tagSet/item")}
        yield Thing(kind.name, named, region, state, _tags(tags))


def _fleets(url: str, region: str, known: set[str]) -> Iterator[Thing]:
    """The fleets that somebody names: EC2 lists no instant one."""
    for fleet in sorted(known):
        try:
            answer = ec2(url, region, "DescribeFleets", **{"FleetId.1": fleet})
        except Blind as why:
            if "InvalidFleetId" in str(why):
                continue
            raise
        for item in answer.findall("./fleetSet/item"):
            yield Thing("fleet", fleet, region, item.findtext("fleetState") or "")


def _indexed_fleets(url: str, region: str) -> set[str]:
    headers = {
        "X-Amz-Target": "ResourceGroupsTaggingAPI_20170126.GetResources", "Content-Type": "application/x-amz-json-1.1",
        **_signed("tagging", region),
    }  # fmt: skip
    found, token = set(), ""
    while True:
        body = json.dumps({"ResourceTypeFilters": ["ec2:fleet"], **({"PaginationToken": token} if token else {})})
        answer = json.loads(_asked(urllib.request.Request(url, body.encode(), headers)))  # noqa: S310 (http, loopback)
        arns = [str(each["ResourceARN"]) for each in answer.get("ResourceTagMappingList", ())]
        found |= {arn.rpartition("/")[2] for arn in arns if ":fleet/" in arn}
        token = str(answer.get("PaginationToken") or "")
        if not token:
            return found


def _roles(url: str) -> Iterator[Thing]:
    for kind, action, path, name in (
        ("role", "ListRoles", ".//Roles/member", "RoleName"),
        ("instance profile", "ListInstanceProfiles", ".//InstanceProfiles/member", "InstanceProfileName"),
        ("user", "ListUsers", ".//Users/member", "UserName"),
    ):
        for item in call(url, "iam", "us-east-1", action, "2010-05-08").findall(path):
            yield Thing(kind, item.findtext(name) or "", "")


def _locks(url: str) -> Iterator[Thing]:
    for bucket in _buckets(url):
        yield Thing("bucket", bucket, "")
        for key in keys(url, bucket):
            if key.endswith(LOCKS):
                yield Thing("lock object", f"s3://{bucket}/{key}", "")


def _buckets(url: str) -> list[str]:
    request = urllib.request.Request(f"{url}/", headers=_signed("s3", "us-east-1"))  # noqa: S310 (http, loopback)
    return [each.text or "" for each in _parsed(_asked(request)).findall("./Buckets/Bucket/Name")]


def keys(url: str, bucket: str, since: float = 0.0) -> Iterator[str]:
    """The keys of a bucket's objects, of those that were written since a moment."""
    token = ""
    while True:
        asked = {"list-type": "2", **({"continuation-token": token} if token else {})}
        path = f"{url}/{bucket}?{urllib.parse.urlencode(asked)}"
        answer = _parsed(_asked(urllib.request.Request(path, headers=_signed("s3", "us-east-1"))))  # noqa: S310 (http, loopback)
        for item in answer.findall("./Contents"):
            if _moment(item.findtext("LastModified") or "") >= since - 1.0:
                yield item.findtext("Key") or ""
        token = answer.findtext("./NextContinuationToken") or ""
        if not token:
            return


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return time.time()


def _tags(found: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted((key, value) for key, value in found.items() if not key.startswith("aws:")))


def _signed(service: str, region: str) -> dict[str, str]:
    """Says which service is asked; the emulator checks no signature."""
    scope = f"judge/20260101/{region}/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"}


def _asked(request: urllib.request.Request) -> bytes:
    problem = ""
    for _ in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 (http, loopback)
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            problem = f"{error}: {error.read()[:300]!r}"
            if error.code < 500:
                break
        except OSError as error:
            problem = f"{type(error).__name__}: {error}"
        time.sleep(PAUSE_SECONDS)
    raise Blind(problem)


def _parsed(answer: bytes) -> ET.Element:
    root = ET.fromstring(answer)  # noqa: S314 (the emulator's own answer)
    for each in root.iter():
        each.tag = each.tag.rpartition("}")[2]
    return root
