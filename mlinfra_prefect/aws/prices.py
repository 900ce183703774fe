"""What a machine costs an hour: list prices from the Pricing API, spot prices from their history, each with its date.

Prices are for Linux with shared tenancy, in USD. They are remembered (list prices a day, spot prices ten minutes).
Where the Pricing API cannot be asked, the snapshot speaks and its date is shown. A price is never guessed: what nobody
tells is absent, and `offers` decides what that means.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

from mlinfra_prefect.aws import snapshot
from mlinfra_prefect.aws.remembered import DAY, Fact, Facts
from mlinfra_prefect.aws.sdk import client, refused
from mlinfra_prefect.errors import MlinfraError

PRICING_REGION: Final = "us-east-1"
"""The Pricing API answers for all regions from here."""
SPOT_SECONDS: Final = 600.0
SILENCE_SECONDS: Final = 600.0
"""How long the Pricing API is not asked again after it could not be used."""
HOURS_IN_MONTH: Final = 730.0
"""The month in which AWS prices storage."""
AT_ONCE: Final = 8
DISK: Final = "gp3"
_SILENT: Final = "pricing-api"


@dataclass(frozen=True, slots=True)
class Price:
    """What one hour costs, who said so and when."""

    usd: float
    at: datetime
    source: Literal["pricing-api", "spot-history", "snapshot"]


@dataclass(frozen=True, slots=True)
class SpotPrices:
    """The spot price of each zone in which a type is sold that way."""

    by_zone: Mapping[str, float]
    at: datetime

    def dearest(self, zones: Iterable[str]) -> Price | None:
        """The price that money is reckoned with where any of these zones may be taken; None: none of them sells it."""
        found = [self.by_zone[zone] for zone in zones if zone in self.by_zone]
        return Price(max(found), self.at, "spot-history") if found else None


def read_product(price_list: Iterable[str | Mapping[str, Any]], unit: str) -> float | None:
    """Read a price from what `GetProducts` lists. Pure.

    Args:
        price_list: products, each a document of JSON.
        unit: ``Hrs`` or ``GB-Mo``.

    Returns:
        The dearest price above zero (capacity blocks are listed with zero); None: there is none.
    """
    products = [json.loads(listed) if isinstance(listed, str) else listed for listed in price_list]
    dearest = max(
        (
            float((dimension.get("pricePerUnit") or {}).get("USD") or 0)
            for product in products
            for term in ((product.get("terms") or {}).get("OnDemand") or {}).values()
            for dimension in (term.get("priceDimensions") or {}).values()
            if dimension.get("unit") == unit
        ),
        default=0.0,
    )
    return dearest if dearest > 0 else None


def read_history(told: Iterable[Mapping[str, Any]], type_: str) -> dict[str, float]:
    """Read the latest spot price of each zone from a history. Pure."""
    latest: dict[str, tuple[datetime, float]] = {}
    for each in told:
        if each["InstanceType"] != type_ or not str(each["ProductDescription"]).startswith("Linux/UNIX"):
            continue
        zone, entry = str(each["AvailabilityZone"]), (each["Timestamp"], float(each["SpotPrice"]))
        if zone not in latest or entry[0] > latest[zone][0]:
            latest[zone] = entry
    return {zone: price for zone, (_, price) in sorted(latest.items())}


class Prices:
    """The prices of one region. Safe for threads.

    Args:
        region: of AWS.
        facts: makes the files that remember, by kind (`Facts`).
    """

    def __init__(self, region: str, facts: Callable[[str], Facts]) -> None:
        self._region = region
        self._listed = facts("on-demand")
        self._spot = facts("spot")
        self.remarks: tuple[str, ...] = ()

    def on_demand(self, types: Sequence[str]) -> dict[str, Price]:
        """Return list prices by type; a type that nobody has a price for is left out. One call for each type."""
        told = self._products(types, self._machine_filters, "Hrs")
        found = {type_: Price(fact.value, _moment(fact), "pricing-api") for type_, fact in told.items() if fact.value}
        return found | self._snapshot([type_ for type_ in types if type_ not in told])

    def known(self, types: Sequence[str]) -> dict[str, Price]:
        """Return the list prices that are remembered or in the snapshot, by type: what `on_demand` would, uncalled."""
        kept = self._listed.get(types, DAY)
        found = {type_: Price(fact.value, _moment(fact), "pricing-api") for type_, fact in kept.items() if fact.value}
        return found | self._snapshot([type_ for type_ in types if type_ not in kept])

    def disk_usd_per_hour(self, gib: int) -> float:
        """Return what a gp3 root disk costs an hour."""
        fact = self._products([DISK], self._disk_filters, "GB-Mo").get(DISK)
        return gib * fact.value / HOURS_IN_MONTH if fact and fact.value else self.known_disk_usd_per_hour(gib)

    def known_disk_usd_per_hour(self, gib: int) -> float:
        """Return the same from the snapshot alone."""
        return gib * snapshot.disk_usd_per_gib_month(self._region) / HOURS_IN_MONTH

    def spot(self, types: Sequence[str]) -> dict[str, SpotPrices] | None:
        """Return the spot prices of every one of these types; None: they cannot be read, and `remarks` says why."""
        kept = self._spot.get(types, SPOT_SECONDS)
        missing = sorted(set(types) - set(kept))
        if missing:
            try:
                pages = client("ec2", self._region).get_paginator("describe_spot_price_history").paginate(
                    InstanceTypes=missing, ProductDescriptions=["Linux/UNIX", "Linux/UNIX (Amazon VPC)"],
                    StartTime=datetime.now(UTC),
                )  # fmt: skip
                told = [each for page in pages for each in page["SpotPriceHistory"]]
            except Exception as error:  # noqa: BLE001 (a plan without spot prices is still a plan)
                self._remark(refused(error, f"reading spot prices of {self._region}"))
                return None
            kept |= self._spot.put({type_: read_history(told, type_) for type_ in missing})
        return {type_: SpotPrices(dict(kept[type_].value), _moment(kept[type_])) for type_ in types}

    def _snapshot(self, types: Iterable[str]) -> dict[str, Price]:
        found = {type_: snapshot.usd_per_hour(self._region, type_) for type_ in types}
        return {type_: Price(usd, snapshot.taken(), "snapshot") for type_, usd in found.items() if usd is not None}

    def _products(self, names: Sequence[str], filters: Callable[[str], dict[str, str]], unit: str) -> dict[str, Fact]:
        """Return what the Pricing API says of each name; a name is left out where it could not be asked."""
        kept = self._listed.get(names, DAY)
        missing = [name for name in names if name not in kept]
        if not missing or self._listed.get([_SILENT], SILENCE_SECONDS):
            return kept

        def ask(name: str) -> float | None:
            wanted = [{"Type": "TERM_MATCH", "Field": key, "Value": value} for key, value in filters(name).items()]
            pages = pricing.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=wanted)
            return read_product([each for page in pages for each in page["PriceList"]], unit)

        try:
            pricing = client("pricing", PRICING_REGION, tries=1)
            with ThreadPoolExecutor(min(AT_ONCE, len(missing)), "prices") as pool:
                told = dict(zip(missing, pool.map(ask, missing), strict=True))
        except Exception as error:  # noqa: BLE001 (the snapshot speaks instead)
            problem = refused(error, f"reading list prices of {self._region} (pricing:GetProducts)")
            self._listed.put({_SILENT: str(problem)})
            self._remark(problem)
            return kept
        return kept | self._listed.put(told)

    def _machine_filters(self, type_: str) -> dict[str, str]:
        return {
            "regionCode": self._region, "instanceType": type_, "operatingSystem": "Linux", "tenancy": "Shared",
            "preInstalledSw": "NA", "capacitystatus": "Used",
        }  # fmt: skip

    def _disk_filters(self, name: str) -> dict[str, str]:
        return {"regionCode": self._region, "productFamily": "Storage", "volumeApiName": name}

    def _remark(self, problem: MlinfraError) -> None:
        self.remarks = (*self.remarks, str(problem))


def _moment(fact: Fact) -> datetime:
    return datetime.fromtimestamp(fact.at, UTC)
