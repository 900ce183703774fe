"""Prices of the emulated account: plausible, always the same, and nobody's bill.

On demand: about what Amazon asks for Linux in us-east-1 for the types named here, a rule of thumb by vCPU and GPU for
all others, and some per cent more elsewhere. Spot: a third to two thirds of it, by a fixed draw for each zone.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from mlinfra_prefect.testing.aws.kinds import kind, offered
from mlinfra_prefect.testing.aws.wire import Request

_USD_PER_HOUR = {
    "t3.micro": 0.0104, "t3.medium": 0.0416, "m5.large": 0.096, "m6i.large": 0.096, "m7i.large": 0.1008,
    "m7i.xlarge": 0.2016, "c7i.large": 0.08925, "g4dn.xlarge": 0.526, "g4dn.2xlarge": 0.752, "g4dn.12xlarge": 3.912,
    "g5.xlarge": 1.006, "g5.2xlarge": 1.212, "g5.12xlarge": 5.672, "g5.48xlarge": 16.288, "g6.xlarge": 0.8048,
    "g6.2xlarge": 0.9776, "g6.12xlarge": 4.6016, "g6.48xlarge": 13.3504, "g6e.xlarge": 1.861, "g6e.2xlarge": 2.24208,
    "g6e.12xlarge": 10.49264, "p4d.24xlarge": 21.957642, "p5.48xlarge": 55.04, "p5.4xlarge": 6.88,
}  # fmt: skip
_PER_VCPU, _PER_GPU = 0.05, 0.8
_ELSEWHERE = {"us-east-1": 1.0, "us-east-2": 1.0, "us-west-2": 1.0, "eu-west-1": 1.11, "eu-central-1": 1.25}
_ELSE = 1.2
_PRODUCTS = ("Linux/UNIX", "Linux/UNIX (Amazon VPC)")


def on_demand_price(type_name: str, region: str) -> float:
    """Return dollars an hour for Linux. Pure but for the catalogue of types."""
    found = kind(type_name)
    guessed = found.vcpus * _PER_VCPU + len(found.gpus) * _PER_GPU if found else 1.0
    return round(_USD_PER_HOUR.get(type_name, guessed) * _ELSEWHERE.get(region, _ELSE), 6)


def spot_price(type_name: str, zone: str) -> float:
    """Return dollars an hour on spot in a zone. Pure but for the catalogue of types."""
    drawn = hashlib.sha256(f"{type_name} {zone}".encode()).digest()[0] / 255
    return round(on_demand_price(type_name, zone[:-1]) * (0.33 + 0.33 * drawn), 6)


def spot_history(request: Request) -> dict[str, Any]:
    """Carry out DescribeSpotPriceHistory: the price that holds now, one line a type, zone and product. Paged."""
    asked = request.asked
    filters = {each["Name"]: each.get("Values", []) for each in asked.get("Filters", [])}
    types = asked.get("InstanceTypes", []) or filters.get("instance-type", [])
    zones = [asked["AvailabilityZone"]] if asked.get("AvailabilityZone") else filters.get("availability-zone", [])
    products = asked.get("ProductDescriptions", []) or filters.get("product-description", []) or list(_PRODUCTS)
    since = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    lines = [
        {"InstanceType": name, "AvailabilityZone": zone, "ProductDescription": product,
         "SpotPrice": f"{spot_price(name, zone):.6f}", "Timestamp": since}
        for name, there in sorted(offered(request.region).items()) if not types or name in types
        for zone in there if not zones or zone in zones
        for product in products if product in _PRODUCTS
    ]  # fmt: skip
    first, most = int(asked.get("NextToken") or 0), int(asked.get("MaxResults", 1000))
    more = str(first + most) if first + most < len(lines) else ""
    return {"SpotPriceHistory": lines[first : first + most], "NextToken": more}


def products(request: Request) -> dict[str, Any]:
    """Carry out the Pricing API's GetProducts for EC2's Linux instances: what is asked by type and region. Paged.

    Filters on other attributes (operating system, tenancy) are taken to mean Linux, shared, used.
    """
    wanted = {each["Field"]: each["Value"] for each in request.asked.get("Filters", [])}
    region = wanted.get("regionCode", "us-east-1")
    names = [wanted["instanceType"]] if "instanceType" in wanted else sorted(offered(region))
    if request.asked.get("ServiceCode") != "AmazonEC2":
        names = []
    names = [name for name in names if name in offered(region)]
    first, most = int(request.asked.get("NextToken") or 0), int(request.asked.get("MaxResults", 100))
    said: dict[str, Any] = {
        "FormatVersion": "aws_v1", "PriceList": [_product(name, region) for name in names[first : first + most]],
    }  # fmt: skip
    if first + most < len(names):
        said["NextToken"] = str(first + most)
    return said


def _product(name: str, region: str) -> str:
    found = kind(name)
    sku = hashlib.sha256(f"{name} {region}".encode()).hexdigest()[:16].upper()
    return json.dumps({
        "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": {
            "instanceType": name, "regionCode": region, "operatingSystem": "Linux", "tenancy": "Shared",
            "capacitystatus": "Used", "preInstalledSw": "NA", "licenseModel": "No License required",
            "vcpu": str(found.vcpus if found else 0), "gpu": str(len(found.gpus) if found else 0),
            "marketoption": "OnDemand", "servicecode": "AmazonEC2", "operation": "RunInstances",
        }},
        "serviceCode": "AmazonEC2",
        "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": {
            "sku": sku, "offerTermCode": "JRTCKXETXF", "effectiveDate": "2026-11-01T00:00:00Z", "termAttributes": {},
            "priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": {
                "unit": "Hrs", "beginRange": "0", "endRange": "Inf", "rateCode": f"{sku}.JRTCKXETXF.6YS6EN2CT7",
                "description": f"${on_demand_price(name, region)} per On Demand Linux {name} Instance Hour",
                "appliesTo": [], "pricePerUnit": {"USD": f"{on_demand_price(name, region):.10f}"},
            }},
        }}},
        "version": "20261101000000", "publicationDate": "2026-11-01T00:00:00Z",
    })  # fmt: skip
