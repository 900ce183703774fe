"""Instant EC2 fleets as EC2 has them: tried once over all pools, answered with what came of each, listed only by id.

moto's own knows neither errors nor partial capacity, and cannot be deleted once an instance of it is gone. Other kinds
of fleet are moto's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from mlinfra_prefect.testing.aws.account import LIVE, Account
from mlinfra_prefect.testing.aws.candidates import Candidate, candidates_of, ordered, wanted_units
from mlinfra_prefect.testing.aws.capacity import Pool, not_offered, over_quota
from mlinfra_prefect.testing.aws.faults import Faults
from mlinfra_prefect.testing.aws.launching import (
    Launch,
    Tags,
    launch_refusal,
    launched,
    no_profile,
    spot_requested,
    tag_specifications,
)
from mlinfra_prefect.testing.aws.prices import spot_price
from mlinfra_prefect.testing.aws.quotas import quota_of, vcpus
from mlinfra_prefect.testing.aws.wire import Refused, Request

FleetState = Literal["active", "deleted_terminating", "deleted"]
Tried = tuple[Candidate, Refused]
"""A candidate that was tried, and why nothing came of it."""


@dataclass(slots=True)
class InstantFleet:
    """One fleet that was asked for."""

    id: str
    region: str
    asked: dict[str, Any]
    tags: dict[str, str]
    state: FleetState = "active"
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    instances: list[dict[str, Any]] = field(default_factory=list)
    """One for each instance, as CreateFleet says it."""
    errors: list[dict[str, Any]] = field(default_factory=list)
    fulfilled: dict[str, float] = field(default_factory=dict)
    """Units by market."""

    @property
    def instance_ids(self) -> list[str]:
        """Every instance that it started."""
        return [number for each in self.instances for number in each["InstanceIds"]]


class InstantFleets:
    """The instant fleets of one account. Call it while no other request is carried out.

    Args:
        account: whose.
        faults: decides which pools have capacity, what the quotas are, and when an answer lies.
    """

    def __init__(self, account: Account, faults: Faults) -> None:
        self._account, self._faults = account, faults
        self._fleets: dict[str, InstantFleet] = {}

    def has(self, region: str, fleet_ids: Iterable[str]) -> bool:
        """Whether any of these is one of these fleets."""
        return any(each in self._fleets and self._fleets[each].region == region for each in fleet_ids)

    def in_region(self, region: str) -> list[InstantFleet]:
        """Return the fleets of a region that are not deleted."""
        return [each for each in self._fleets.values() if each.region == region and each.state == "active"]

    # --- the three operations ----------------------------------------------------------------------------------------

    def create(self, request: Request) -> dict[str, Any]:
        """Carry out CreateFleet, and return what it answers.

        Raises:
            Refused: the whole request: no such template, no capacity asked for.
        """
        asked = request.asked
        candidates = [
            each
            for config in asked.get("LaunchTemplateConfigs", [])
            for each in candidates_of(self._account, request.region, config)
        ]
        if not candidates:
            raise Refused("MissingParameter", "The request must contain the parameter LaunchTemplateConfigs")
        tags = tag_specifications(asked.get("TagSpecifications", []))
        fleet = InstantFleet(f"fleet-{uuid.uuid4()}", request.region, asked, tags.pop("fleet", {}))
        for market, wanted in wanted_units(asked["TargetCapacitySpecification"]).items():
            options = asked.get("SpotOptions" if market == "spot" else "OnDemandOptions", {})
            if wanted > 0:
                tried = ordered(candidates, market, options.get("AllocationStrategy", ""))
                plan, refused = self._planned(tried, wanted)
                enough = sum(each.weight for each in plan) >= float(options.get("MinTargetCapacity", 0))
                self._fulfil(fleet, market, plan if enough else [], refused, tags)
        self._fleets[fleet.id] = fleet
        if fleet.tags:
            self._account.ec2(fleet.region).create_tags([fleet.id], fleet.tags)
        return {"FleetId": fleet.id, "Errors": fleet.errors, "Instances": fleet.instances}

    def describe(self, region: str, fleet_ids: list[str]) -> dict[str, Any]:
        """Carry out DescribeFleets by ids, and return what it answers."""
        found = (self._fleets.get(each) for each in fleet_ids)
        return {"Fleets": [self._described(each) for each in found if each is not None and each.region == region]}

    def delete(self, region: str, fleet_ids: list[str], *, terminate: bool) -> dict[str, Any]:
        """Carry out DeleteFleets, and return what it answers. A fleet whose instances are gone already is deleted."""
        done, refused = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in fleet_ids:
            fleet = self._fleets.get(number)
            if fleet is None or fleet.region != region:
                refused.append(_undeleted(number, "fleetIdDoesNotExist", f"The fleet ID '{number}' does not exist."))
            elif not terminate:
                # An instant fleet goes with its instances or not at all.
                refused.append(_undeleted(
                    number, "fleetNotInDeletableState", "NoTerminateInstances is not supported for instant fleets.",
                ))  # fmt: skip
            else:
                before = fleet.state
                if not self._faults.lies(fleet.instance_ids):
                    self._terminate(fleet)
                fleet.state = "deleted_terminating"
                done.append({"FleetId": number, "CurrentFleetState": fleet.state, "PreviousFleetState": before})
        return {"SuccessfulFleetDeletions": done, "UnsuccessfulFleetDeletions": refused}

    # --- parts -------------------------------------------------------------------------------------------------------

    def _fulfil(
        self, fleet: InstantFleet, market: str, plan: list[Candidate], refused: list[Tried], tags: Tags
    ) -> None:  # fmt: skip
        """Start what was planned, and write down what was refused."""
        errors, got = list(refused), 0.0
        for each in plan:
            try:
                self._launch(fleet, each, tags)
                got += each.weight
            except Refused as error:
                errors.append((each, error))
        fleet.fulfilled[market] = got
        fleet.errors += [
            {"LaunchTemplateAndOverrides": each.said, "Lifecycle": market, "ErrorCode": why.code,
             "ErrorMessage": why.message}
            for each, why in errors
        ]  # fmt: skip

    def _planned(self, candidates: list[Candidate], wanted: float) -> tuple[list[Candidate], list[Tried]]:
        """Return one candidate for each instance to be started, and what the pools that were tried lack."""
        plan, refused = list[Candidate](), list[Tried]()
        unseen = any(each.data.get("IamInstanceProfile") for each in candidates) and self._faults.profile_unseen()
        missing = wanted
        for each in candidates:
            while missing > 0:
                profile = each.data.get("IamInstanceProfile")
                why = no_profile(profile) if unseen and profile else self._refusal(each, [one.pool for one in plan])
                if why is not None:
                    refused.append((each, why))
                    break
                plan.append(each)
                missing -= each.weight
            if missing <= 0:
                break
        return plan, refused

    def _refusal(self, candidate: Candidate, planned: list[Pool]) -> Refused | None:
        pool, quota = candidate.pool, quota_of(candidate.pool.type, candidate.pool.market)
        taken = sum(vcpus(each.type) for each in planned if quota_of(each.type, each.market) == quota)
        highest = candidate.data.get("MaxPrice")
        if pool.market == "spot" and highest and float(highest) < spot_price(pool.type, pool.zone):
            return Refused(
                "SpotMaxPriceTooLow",
                f"Your Spot request price of {highest} is lower than the minimum required Spot request fulfillment "
                f"price of {spot_price(pool.type, pool.zone):.4f}.",
            )
        checks: tuple[Callable[[], Refused | None], ...] = (
            lambda: not_offered(pool),
            lambda: launch_refusal(self._account, pool.region, candidate.data),
            lambda: over_quota(self._account, pool, self._faults.quota_value(quota, pool.region), taken),
            lambda: self._faults.capacity_refusal(pool, planned, fleet=True),
        )  # fmt: skip
        return next((why for check in checks if (why := check()) is not None), None)

    def _launch(self, fleet: InstantFleet, candidate: Candidate, tags: Tags) -> None:
        named = candidate.said["LaunchTemplateSpecification"]
        own = {
            "aws:ec2:fleet-id": fleet.id, "aws:ec2launchtemplate:id": named["LaunchTemplateId"],
            "aws:ec2launchtemplate:version": named["Version"],
        }  # fmt: skip
        launch = Launch(candidate.pool, candidate.data, {**tags, "instance": tags.get("instance", {}) | own})
        raw = launched(self._account, launch)
        self._faults.capacity_taken(candidate.pool)
        if candidate.pool.market == "spot":
            spot_requested(self._account, launch, raw)
        fleet.instances.append({
            "LaunchTemplateAndOverrides": candidate.said, "Lifecycle": candidate.pool.market, "InstanceIds": [raw.id],
            "InstanceType": candidate.pool.type, "SubnetId": raw.subnet_id, "AvailabilityZone": candidate.pool.zone,
        })  # fmt: skip

    def _terminate(self, fleet: InstantFleet) -> None:
        from moto.core.exceptions import ServiceException

        ec2 = self._account.ec2(fleet.region)
        wanted = set(fleet.instance_ids)
        for raw in self._account.raw_instances(fleet.region):
            if raw.id in wanted and raw.state in {*LIVE, "stopped"}:
                try:
                    ec2.terminate_instances([raw.id])
                except ServiceException:
                    continue  # protected: it stays, and the fleet stays terminating
        self._account.settle_spot(ec2)

    def _described(self, fleet: InstantFleet) -> dict[str, Any]:
        asked = fleet.asked
        live = {each.id for each in self._account.raw_instances(fleet.region) if each.state != "terminated"}
        if fleet.state == "deleted_terminating" and not live & set(fleet.instance_ids):
            fleet.state = "deleted"
        target = asked["TargetCapacitySpecification"]
        got = sum(fleet.fulfilled.values())
        return {
            "FleetId": fleet.id, "FleetState": fleet.state, "Type": "instant", "CreateTime": fleet.made_at,
            "ClientToken": asked.get("ClientToken"),
            "ActivityStatus": "fulfilled" if got >= target["TotalTargetCapacity"] else "error",
            "ExcessCapacityTerminationPolicy": asked.get("ExcessCapacityTerminationPolicy", "termination"),
            "FulfilledCapacity": got, "FulfilledOnDemandCapacity": fleet.fulfilled.get("on-demand", 0.0),
            "LaunchTemplateConfigs": asked["LaunchTemplateConfigs"], "TargetCapacitySpecification": target,
            "TerminateInstancesWithExpiration": asked.get("TerminateInstancesWithExpiration", False),
            "ReplaceUnhealthyInstances": asked.get("ReplaceUnhealthyInstances", False),
            "SpotOptions": asked.get("SpotOptions"), "OnDemandOptions": asked.get("OnDemandOptions"),
            "Tags": [{"Key": key, "Value": value}
                     for key, value in self._account.ec2(fleet.region).tags.get(fleet.id, {}).items()],
            "Errors": fleet.errors, "Instances": fleet.instances,
        }  # fmt: skip


def _undeleted(fleet_id: str, code: str, message: str) -> dict[str, Any]:
    return {"FleetId": fleet_id, "Error": {"Code": code, "Message": message}}
