"""What the tag API finds of EC2 and moto's does not: launch templates, instant fleets, elastic addresses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlinfra_prefect.testing.aws.fleets import InstantFleets


def all_tagged(ec2: Any, fleets: InstantFleets) -> Callable[[], Iterator[Any]]:
    """Return moto's iteration over one region's tagged things, with these kinds added."""
    from moto.core.resource_tagging import TaggedResource

    usual = ec2.iter_tagged_resources

    def tagged() -> Iterator[Any]:
        yield from usual()
        more = (
            [("launch-template", each) for each in ec2.launch_templates]
            + [("fleet", each.id) for each in fleets.in_region(ec2.region_name)]
            + [("elastic-ip", each.allocation_id) for each in ec2.addresses]
        )
        for kind, number in more:
            arn = f"arn:{ec2.partition}:ec2:{ec2.region_name}:{ec2.account_id}:{kind}/{number}"
            yield TaggedResource(arn=arn, tags=dict(ec2.tags.get(number, {})), resource_type=f"ec2:{kind}")

    return tagged
