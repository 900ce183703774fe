"""The verbs that end things, one for each kind: told once, never waited for, and one that refuses stops no other.

AWS refuses a whole call for one bad id in it. So a call that is refused is split until the bad ones stand alone, and
only these are refused; what is not there is as good as ended. Every verb returns why each of those left was refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mlinfra_prefect.aws.asking import Refused, ask

MOST_INSTANCES = 500
"""In one call; AWS takes a thousand."""
MOST_FLEETS = 25
"""In one call: AWS's limit for instant fleets."""
MOST_SPLITS = 64
"""Calls that one verb spends on finding the bad ids; with more of them the rest waits for the next pass."""
GONE = frozenset({"deleted", "deleted_running", "deleted_terminating", "failed"})
"""States of a fleet in which it launches nothing more; whether its instances run is their own to say."""
UNSURE = frozenset({"InvalidParameterCombination", "fleetNotInDeletableState"})
"""Said of a fleet that has ended already, among others."""

_ID = re.compile(r"\b[a-z]+-(?=[a-f-]*[0-9])[0-9a-f-]+")

Reasons = dict[str, Refused]
"""What was refused, by id."""


def terminate(client: Any, ids: Iterable[str]) -> Reasons:
    """Tell instances to end; ended ones and unknown ones are success."""

    def tell(batch: Sequence[str]) -> Reasons:
        ask(client, "terminate_instances", InstanceIds=list(batch))
        return {}

    return _isolated(ids, MOST_INSTANCES, tell)


def delete_fleets(client: Any, ids: Iterable[str]) -> Reasons:
    """Delete fleets and tell their instances to end; deleted ones and unknown ones are success."""

    def delete(batch: Sequence[str]) -> Reasons:
        answer = ask(client, "delete_fleets", FleetIds=list(batch), TerminateInstances=True)
        failed = answer.get("UnsuccessfulFleetDeletions") or ()
        return {
            str(each["FleetId"]): Refused(
                str(each["Error"].get("Code", "")), str(each["Error"].get("Message", "")), "ec2:DeleteFleets"
            )
            for each in failed
        }

    refused = _isolated(ids, MOST_FLEETS, delete)
    return {
        each: why
        for each, why in refused.items()
        if not absent_of([each], why) and (why.code not in UNSURE or not _is_gone(client, each))
    }


def cancel_spot_requests(client: Any, ids: Iterable[str]) -> Reasons:
    """Cancel spot requests, which ends none of their instances; closed and unknown ones are success."""

    def cancel(batch: Sequence[str]) -> Reasons:
        ask(client, "cancel_spot_instance_requests", SpotInstanceRequestIds=list(batch))
        return {}

    return _isolated(ids, MOST_INSTANCES, cancel)


def delete_interfaces(client: Any, ids: Iterable[str]) -> Reasons:
    """Delete network interfaces."""
    return _each(ids, lambda each: ask(client, "delete_network_interface", NetworkInterfaceId=each))


def delete_volumes(client: Any, ids: Iterable[str]) -> Reasons:
    """Delete volumes."""
    return _each(ids, lambda each: ask(client, "delete_volume", VolumeId=each))


def delete_groups(client: Any, ids: Iterable[str]) -> Reasons:
    """Delete security groups."""
    return _each(ids, lambda each: ask(client, "delete_security_group", GroupId=each))


def release_addresses(client: Any, ids: Iterable[str], associations: Mapping[str, str]) -> Reasons:
    """Release elastic addresses; those with an association (by allocation id) are first taken from what has them."""

    def release(each: str) -> None:
        if associations.get(each):
            try:
                ask(client, "disassociate_address", AssociationId=associations[each])
            except Refused as why:
                if why.meaning != "absent":
                    raise
        ask(client, "release_address", AllocationId=each)

    return _each(ids, release)


def delete_templates(client: Any, ids: Iterable[str]) -> Reasons:
    """Delete launch templates with all their versions."""
    return _each(ids, lambda each: ask(client, "delete_launch_template", LaunchTemplateId=each))


def _each(ids: Iterable[str], end: Callable[[str], object]) -> Reasons:
    refused: Reasons = {}
    left = list(dict.fromkeys(ids))
    for place, each in enumerate(left):
        try:
            end(each)
        except Refused as why:
            if why.concerns_all:
                return refused | dict.fromkeys(left[place:], why)
            if not absent_of([each], why):
                refused[each] = why
    return refused


def _isolated(ids: Iterable[str], most: int, end: Callable[[Sequence[str]], Reasons]) -> Reasons:
    """Call `end` with all ids, with fewer of them where it is refused, and return what was refused alone."""
    refused: Reasons = {}
    every = list(dict.fromkeys(ids))
    waiting = [every[start : start + most] for start in range(0, len(every), most)]
    splits = 0
    while waiting:
        batch = waiting.pop(0)
        try:
            refused |= end(batch)
        except Refused as why:
            absent = absent_of(batch, why)
            rest = [each for each in batch if each not in absent]
            half = len(rest) // 2
            if not rest:
                continue
            if (len(rest) == 1 and not absent) or why.concerns_all:
                refused |= dict.fromkeys(rest, why)
            elif splits >= MOST_SPLITS:
                refused |= dict.fromkeys(rest, Refused("TooManyRefused", f"one of many: {why.reason}", why.action))
            else:
                splits += 1
                waiting = [rest, *waiting] if absent else [rest[:half], rest[half:], *waiting]
    return refused


def absent_of(batch: Sequence[str], why: Refused) -> set[str]:
    """Which ids an answer calls absent; none where it names none and there are several.

    What it names may be no id of ours: an instance is still there where its interface is what cannot be found.
    """
    if why.meaning != "absent":
        return set()
    named = set(_ID.findall(why.said))
    return set(batch) if len(batch) == 1 and not named else set(batch) & named


def _is_gone(client: Any, fleet_id: str) -> bool:
    """Whether a fleet has ended; what cannot be seen has not."""
    try:
        found = ask(client, "describe_fleets", FleetIds=[fleet_id]).get("Fleets") or ()
    except Refused as why:
        return why.meaning == "absent"
    return all(str(each.get("FleetState")) in GONE for each in found)
