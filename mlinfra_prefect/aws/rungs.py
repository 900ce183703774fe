"""From a rung of the ladder to the variables of the stack that tries it. Pure but for the clock that it is given."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlinfra_prefect.agent.boot import BOOT_SCHEMA
from mlinfra_prefect.aws.environment import AwsEnvironment, AwsRegion
from mlinfra_prefect.aws.images import Image
from mlinfra_prefect.errors import InvalidInput, UnsupportedHere
from mlinfra_prefect.model.offer import Offer

DEAD_MAN_GRACE_SECONDS = 120.0
"""The node's own timer comes after its deadline: the keeper drains and stops it first."""


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent's archive as a node fetches it."""

    url: str
    sha256: str


def candidates(rung: tuple[Offer, ...], region: AwsRegion, beside_usd: float) -> list[dict[str, Any]]:
    """Every type in every zone of the region that has a subnet, cheapest type first. Pure.

    A spot machine is taken for no more than what its offer was reckoned with.

    Args:
        rung: the offers.
        region: its subnets.
        beside_usd: of an offer's price an hour, what is not the machine's: disk and address.
    """
    found = []
    for offer in rung:
        most = f"{max(0.0001, offer.usd_per_hour - beside_usd):.4f}" if offer.market == "spot" else None
        for zone in offer.zones or tuple(sorted(region.subnets)):
            if zone in region.subnets:
                subnet = region.subnets[zone]
                entry = {"instance_type": offer.type, "zone": zone, "subnet_id": subnet, "max_price": most}
                found.append(entry)
    return found


def boot(
    environment: AwsEnvironment, rung: tuple[Offer, ...], agent: Agent, *,
    endpoint: str, ids: Mapping[str, Any], deadline: float,
) -> str:  # fmt: skip
    """What the boot script is told, as one line of base64. Pure.

    Args:
        environment: whose node it is.
        rung: what it may become; the acceptance test asks for the least of it.
        agent: the archive.
        endpoint: where AWS answers; empty: at its own addresses.
        ids: ``ledger_id``, ``lease_id``, ``attempt``.
        deadline: epoch seconds.
    """
    memory = [offer.gpu_memory_gib for offer in rung if offer.gpu_memory_gib is not None]
    told = {
        "schema": BOOT_SCHEMA,
        "region": environment.home_region,  # of the bucket, wherever the node is
        "endpoint": endpoint,
        "bucket": environment.artifact_bucket,
        "agent_url": agent.url,
        "agent_sha256": agent.sha256,
        "role_id": environment.node_role_id,
        **ids,
        "deadline": deadline,
        "acceptance": {"gpus": min(offer.gpus for offer in rung), "gpu_memory_gib": min(memory, default=0.0)},
    }
    return base64.b64encode(json.dumps(told, sort_keys=True).encode()).decode()


def variables(
    mlinfra: Mapping[str, Any], rung: tuple[Offer, ...], environment: AwsEnvironment, image: Image, *,
    disk_gib: int, beside_usd: float, boot: str, seconds_left: float,
) -> dict[str, Any]:  # fmt: skip
    """The variables of the stack ``aws-gpu``. Pure.

    Raises:
        InvalidInput: the image does not fit on the disk.
        UnsupportedHere: the rung is of a market that fleets do not sell.
    """
    market, region = rung[0].market, environment.region(rung[0].region)
    if disk_gib < image.disk_gib:
        raise InvalidInput(
            f"environments.{environment.name}.aws.disk_gib",
            f"{disk_gib} GiB is less than the {image.disk_gib} GiB of the machine image {image.id}",
            f"Set it to {image.disk_gib} at least.",
        )
    if market == "reserved":
        raise UnsupportedHere("market: reserved capacity is not in this version.", "Ask for on-demand or spot.")
    return {
        "mlinfra": dict(mlinfra),
        "region": region.name,
        "market": market,
        "candidates": candidates(rung, region, beside_usd),
        "nodes": 1,
        "image_id": image.id,
        "root_device": image.root_device,
        "disk_gib": disk_gib,
        "instance_profile": environment.instance_profile,
        "security_group_ids": [region.security_group],
        "public_ip": region.public_ip,
        "dead_man_minutes": max(1, math.ceil((seconds_left + DEAD_MAN_GRACE_SECONDS) / 60)),
        "boot": boot,
        "kms_key_id": region.kms_key,
    }
