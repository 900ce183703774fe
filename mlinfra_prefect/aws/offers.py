"""The ladder: everything that AWS could rent for a request, in the order in which it would be tried, and why not.

Facts are gathered here, every region and every question at once, from `catalogue`, `quotas` and `prices`; `assessment`
makes offers of them. Nothing here rents or makes anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mlinfra_prefect.aws import catalogue, quotas, snapshot
from mlinfra_prefect.aws.assessment import RegionFacts, ladder
from mlinfra_prefect.aws.catalogue import Machine
from mlinfra_prefect.aws.prices import Prices
from mlinfra_prefect.aws.remembered import Facts
from mlinfra_prefect.errors import TemporaryError, UnsupportedHere
from mlinfra_prefect.model.accelerator import Accelerator
from mlinfra_prefect.model.offer import Offer
from mlinfra_prefect.model.request import TrainingRequest

Regions = Mapping[str, tuple[str, ...]]
"""The regions of an environment in the order in which they are tried, each with the zones that it has subnets in; no
zones: any."""


@dataclass(frozen=True, slots=True)
class Found:
    """A ladder, and what could not be found out while it was made."""

    offers: tuple[Offer, ...]
    remarks: tuple[str, ...]


def find(
    request: TrainingRequest, place: Regions, *, cache: Path | None = None, disk_gib: int = 100, public_ip: bool = False
) -> tuple[Offer, ...]:
    """Return the ladder of a request; see `search`, which also tells what could not be found out."""
    return search(request, place, cache=cache, disk_gib=disk_gib, public_ip=public_ip).offers


def search(
    request: TrainingRequest, place: Regions, *, cache: Path | None = None, disk_gib: int = 100, public_ip: bool = False
) -> Found:
    """Return every offer for a request: what can be taken by region and price, then the others with the reason.

    Reads only. A region costs two or three calls for what it sells (remembered for a day), one for each quota, one for
    what runs, and one for each list price (remembered for a day) or one for all spot prices (for ten minutes).

    Args:
        request: admitted; its market decides, spot is never mixed with on-demand.
        place: where.
        cache: the directory that remembers; None: nothing is.
        disk_gib: of a node's root disk, whose price is part of the offer's.
        public_ip: whether a node gets a public address, whose price is part of the offer's.

    Raises:
        UnsupportedHere: reserved capacity.
        PermanentError: no credentials, expired ones, no such region, or a permission that is missing, with its name.
        TemporaryError: AWS throttles or is not reached, and the snapshot knows nothing of one of these regions.
    """
    if request.market == "reserved":
        raise UnsupportedHere("market: reserved capacity is not rented on aws.", "Ask for 'on-demand' or 'spot'.")
    if not place:
        return Found((), ())

    def gather(region: str) -> RegionFacts:
        return facts_of(request, region, place[region], cache=cache, disk_gib=disk_gib, public_ip=public_ip)

    with ThreadPoolExecutor(len(place), "regions") as pool:
        facts = list(pool.map(gather, place))
    remarks = dict.fromkeys(remark for each in facts for remark in each.remarks)
    return Found(ladder(request, facts), tuple(remarks))


def facts_of(
    request: TrainingRequest, region: str, zones: tuple[str, ...], *, cache: Path | None, disk_gib: int, public_ip: bool
) -> RegionFacts:
    """Gather what is known of a region.

    Prices are asked only of what may be taken, so that a quota of zero is found without waiting for them.

    Raises:
        MlinfraError: as `search`.
    """

    def facts(kind: str) -> Facts:
        return Facts(cache, kind, region)

    machines, sold, remarks = _sold(request.accelerator, region, zones, facts)
    fitting = [each for each in machines if catalogue.meets(each, request.accelerator)]
    counts = {each.type: quotas.quota_of(each.type, request.market) for each in fitting}
    left, unread = quotas.left(
        region, [quota for quota in counts.values() if quota], {each.type: each.vcpus for each in machines}
    )
    known = RegionFacts(region=region, zones=zones, machines=machines, sold=sold, left=left)
    prices = Prices(region, facts)
    asked = [
        each.type for each in fitting
        if known.zones_of(each.type) and not ((quota := counts[each.type]) and left[quota.code].vcpus == 0)
    ]  # fmt: skip
    with ThreadPoolExecutor(2, "prices") as pool:
        disk = pool.submit(prices.disk_usd_per_hour if asked else prices.known_disk_usd_per_hour, disk_gib)
        spot = pool.submit(prices.spot, asked) if request.market == "spot" else None
        listed = prices.on_demand(asked) if spot is None or spot.result() is None else {}
        listed |= prices.known([each.type for each in machines if each.type not in listed])
    return RegionFacts(
        region=region, zones=zones, machines=machines, sold=sold, left=left, listed=listed,
        spot=spot.result() if spot else None,
        extras_usd_per_hour=disk.result() + (snapshot.address_usd_per_hour() if public_ip else 0.0),
        remarks=(*remarks, *unread, *prices.remarks),
    )  # fmt: skip


def _sold(
    accelerator: Accelerator, region: str, zones: tuple[str, ...], facts: Callable[[str], Facts]
) -> tuple[tuple[Machine, ...], Mapping[str, tuple[str, ...]], tuple[str, ...]]:
    """Return what a region sells and where, by the snapshot if AWS is not reached, and a remark if it is so.

    Raises:
        MlinfraError: as `search`.
    """
    try:
        machines = catalogue.machines(region, accelerator, facts("types"))
        sold = catalogue.sold_in(region, [each.type for each in machines], facts("zones"))
    except TemporaryError as error:
        machines = snapshot.machines(region, accelerator)
        if not machines:
            raise
        remark = f"{error} What {region} sells is told as of {snapshot.taken():%Y-%m-%d}, in every zone."
        return machines, {each.type: zones for each in machines}, (remark,)
    if not machines:
        return (), {}, (f"{region} sells no machine with {accelerator.name}.",)
    return machines, sold, ()
