"""One account inside moto: the only module that reaches into moto's state, so that its habits are known in one place.

Each emulator has an account of its own: moto's are as wide as the process, and two emulators must not see each other.
Nothing here is safe by itself: call it while no request is carried out (`FaultProxy.exclusively`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

LIVE = frozenset({"pending", "running"})
PARTITION = "aws"


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """One instance as the service has it."""

    id: str
    region: str
    zone: str
    type: str
    image: str
    state: str
    market: str
    launched_at: float
    """Epoch seconds."""
    tags: dict[str, str]
    profile_arn: str
    shutdown_behaviour: str
    """terminate or stop: what powering off from inside means."""


class Account:
    """What one account holds, in every region.

    Args:
        id: twelve digits.
    """

    def __init__(self, id: str) -> None:  # noqa: A002 (it is the account's id)
        self.id = id

    def ec2(self, region: str) -> Any:
        """Return moto's EC2 of one region, made when it isn't there."""
        from moto.ec2.models import ec2_backends

        return ec2_backends[self.id][region]

    def regions(self) -> list[str]:
        """Return the regions that anything was ever asked of, by name."""
        from moto.ec2.models import ec2_backends

        return sorted(ec2_backends[self.id].keys())

    def instances(self) -> Iterator[InstanceFacts]:
        """Return every instance of every region, the dead included."""
        for region in self.regions():
            for each in self.raw_instances(region):
                yield self.facts(each, region)

    def raw_instances(self, region: str) -> Iterator[Any]:
        """Return moto's own instances of a region."""
        for reservation in list(self.ec2(region).reservations.values()):
            yield from list(reservation.instances)

    def instance(self, instance_id: str) -> InstanceFacts | None:
        """Return one instance of any region."""
        return next((each for each in self.instances() if each.id == instance_id), None)

    def facts(self, raw: Any, region: str) -> InstanceFacts:
        """Return what is known about one of moto's instances."""
        profile = raw.iam_instance_profile
        return InstanceFacts(
            id=raw.id, region=region, zone=raw.availability_zone or "", type=raw.instance_type,
            image=raw.image_id or "", state=raw.state, market=raw.lifecycle or "on-demand",
            launched_at=_epoch(raw.launch_time), tags=dict(self.ec2(region).tags.get(raw.id, {})),
            profile_arn=profile["Arn"] if isinstance(profile, dict) else "",
            shutdown_behaviour=raw.instance_initiated_shutdown_behavior or "stop",
        )  # fmt: skip

    def user_data(self, instance_id: str, region: str) -> bytes:
        """Return an instance's user data, decoded; empty where it has none."""
        raw = self.ec2(region).get_instance(instance_id).user_data
        return base64.b64decode(str(raw)) if raw else b""

    def image_name(self, image: str, region: str) -> str:
        """Return the name of a machine image; empty where it is not known."""
        found = self.ec2(region).amis.get(image)
        return str(found.name or "") if found else ""

    def powered_off(self, facts: InstanceFacts) -> None:
        """Let an instance end from inside, as its shutdown behaviour says. One that is gone is no error."""
        ec2 = self.ec2(facts.region)
        raw = next((each for each in self.raw_instances(facts.region) if each.id == facts.id), None)
        if raw is None or raw.state not in LIVE:
            return
        # Not the API's terminate: protection against that does not hold a machine that ends by itself.
        if facts.shutdown_behaviour == "terminate":
            raw.terminate()
        else:
            raw.stop()
        raw.state_reason.code = "Client.InstanceInitiatedShutdown"
        raw.state_reason.message = "Client.InstanceInitiatedShutdown: Instance initiated shutdown"
        self.settle_spot(ec2)

    @contextmanager
    def hidden(self, region: str, since: float) -> Iterator[None]:
        """Have no instances meanwhile that were launched after `since`, and no tags of them and their volumes."""
        ec2 = self.ec2(region)
        young = [each for each in self.raw_instances(region) if _epoch(each.launch_time) > since]
        gone = {each.id for each in young}
        numbers = [
            *gone, *(nic.id for each in young for nic in each.nics.values()),
            *(device.volume_id for each in young for _, device in each.get_block_device_mapping),
        ]  # fmt: skip
        kept = {id(each): each.instances for each in ec2.reservations.values()}
        tags = {number: ec2.tags.pop(number) for number in numbers if number in ec2.tags}
        reservations = dict(ec2.reservations)
        try:
            for number, reservation in reservations.items():
                reservation.instances = [each for each in reservation.instances if each.id not in gone]
                if not reservation.instances:
                    del ec2.reservations[number]
            yield
        finally:
            ec2.reservations.clear()
            ec2.reservations.update(reservations)
            for reservation in reservations.values():
                reservation.instances = kept[id(reservation)]
            ec2.tags.update(tags)

    def settle_spot(self, ec2: Any) -> None:
        """Close the spot requests whose instance is gone: on EC2 a one-time request ends with it."""
        for request in ec2.spot_instance_requests.values():
            if request.type == "one-time" and request.state == "active" and request.instance.state == "terminated":
                request.state, request._status_code = "closed", "instance-terminated-by-user"  # noqa: SLF001

    def role_credentials(self, facts: InstanceFacts, seconds: int) -> tuple[str, dict[str, Any]] | None:
        """Return the role of an instance's profile and credentials of it; None where it has no role.

        As on EC2 the session's name is the instance's id, so ``aws:userid`` is ``<role's unique id>:<instance id>``.
        """
        from moto.iam.models import iam_backends
        from moto.sts.models import sts_backends

        with suppress(Exception):  # moto raises its own for a profile that is gone meanwhile: no role, as on EC2
            profile = iam_backends[self.id][PARTITION].get_instance_profile_by_arn(facts.profile_arn)
            role = profile.roles[0]
            session = sts_backends[self.id][PARTITION].assume_role(
                region_name=facts.region, role_session_name=facts.id, role_arn=role.arn, policy="",
                duration=seconds, external_id="",
            )  # fmt: skip
            return role.name, {
                "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret_access_key,
                "Token": session.session_token, "Expiration": session.expiration,
            }  # fmt: skip
        return None

    def forget(self) -> None:
        """Drop everything the account holds. Idempotent."""
        from moto.core.base_backend import BackendDict
        from moto.s3.models import s3_backends

        for name, (_, owner) in list(s3_backends.bucket_accounts.items()):
            if owner == self.id:
                s3_backends.bucket_accounts.pop(name, None)
        for backends in list(BackendDict._instances):  # noqa: SLF001 (moto has no public way to one account)
            held = dict.get(backends, self.id)
            if held is not None:
                held.reset()
                dict.pop(backends, self.id, None)


def _epoch(moment: Any) -> float:
    if not isinstance(moment, datetime):
        return 0.0
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
