"""What moto does not know of AWS, told as AWS tells it: quotas, list prices, spot prices, current images.

It stands behind the fault proxy, so every rule and every count of the proxy holds for it too.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from mlinfra_prefect.testing.emulator import MotoServer
from mlinfra_prefect.testing.faults import Application, FaultProxy

SPOT_AT = datetime(2026, 11, 28, 12, tzinfo=UTC)


def product(usd: str, *, unit: str = "Hrs", sku: str = "JRTCKXETXF", **attributes: str) -> str:
    """One product of the Pricing API, in its shape: a document of JSON, in a string."""
    rate = {"unit": unit, "pricePerUnit": {"USD": usd}, "beginRange": "0", "endRange": "Inf", "appliesTo": []}
    term = {"sku": sku, "offerTermCode": "JRTCKXETXF", "priceDimensions": {f"{sku}.JRTCKXETXF.6YS6EN2CT7": rate}}
    told = {
        "product": {"productFamily": "Compute Instance", "sku": sku, "attributes": attributes},
        "serviceCode": "AmazonEC2", "terms": {"OnDemand": {f"{sku}.JRTCKXETXF": term}}, "version": "20261101000000",
    }  # fmt: skip
    return json.dumps(told)


@dataclass
class Told:
    """What AWS says; a quota or price that is not here is not known to it."""

    quotas: dict[str, float] = field(default_factory=dict)
    defaults: dict[str, float] = field(default_factory=dict)
    listed: dict[tuple[str, str], str] = field(default_factory=dict)
    """USD an hour by region and type; of a disk, by region and ``gp3``."""
    spot: dict[tuple[str, str], str] = field(default_factory=dict)
    """USD an hour by zone and type."""
    parameters: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        for each in (self.quotas, self.defaults, self.listed, self.spot, self.parameters):
            each.clear()

    def behind(self, application: Application) -> Application:
        """Wrap moto."""

        def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            operation = str(environ.get("HTTP_X_AMZ_TARGET", "")).rpartition(".")[2]
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
            if operation in {"GetProducts", "GetServiceQuota", "GetAWSDefaultServiceQuota"}:
                asked = json.loads(body)
                status, told = self._products(asked) if operation == "GetProducts" else self._quota(asked, operation)
                return _said(start, status, "application/x-amz-json-1.1", json.dumps(told))
            if operation == "GetParameter" and (name := json.loads(body)["Name"]) in self.parameters:
                parameter = {"Name": name, "Type": "String", "Value": self.parameters[name], "Version": 1}
                return _said(start, "200 OK", "application/x-amz-json-1.1", json.dumps({"Parameter": parameter}))
            form = parse_qs(body.decode(errors="replace"))
            if form.get("Action") == ["DescribeSpotPriceHistory"]:
                return _said(start, "200 OK", "text/xml", self._history(form))
            return application(environ, start)

        return answer

    def _quota(self, asked: dict[str, str], operation: str) -> tuple[str, dict[str, Any]]:
        values = self.quotas if operation == "GetServiceQuota" else self.defaults
        code = asked["QuotaCode"]
        if code not in values:
            return "400 Bad Request", {"__type": "NoSuchResourceException", "message": "The request failed."}
        quota = {"ServiceCode": "ec2", "QuotaCode": code, "Value": values[code], "Unit": "None", "Adjustable": True}
        return "200 OK", {"Quota": quota}

    def _products(self, asked: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        wanted = {each["Field"]: each["Value"] for each in asked["Filters"]}
        region, name = wanted["regionCode"], wanted.get("instanceType") or wanted["volumeApiName"]
        usd = self.listed.get((region, name))
        unit = "Hrs" if "instanceType" in wanted else "GB-Mo"
        found = [] if usd is None else [product("0.0000000000", unit=unit), product(usd, unit=unit)]
        return "200 OK", {"FormatVersion": "aws_v1", "PriceList": found}

    def _history(self, form: dict[str, list[str]]) -> str:
        types = {values[0] for name, values in form.items() if name.startswith("InstanceType.")}
        items = "".join(
            f"<item><instanceType>{type_}</instanceType><productDescription>Linux/UNIX</productDescription>"
            f"<spotPrice>{usd}</spotPrice><timestamp>{SPOT_AT:%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
            f"<availabilityZone>{zone}</availabilityZone></item>"
            for (zone, type_), usd in self.spot.items()
            if type_ in types
        )
        return (
            '<?xml version="1.0" encoding="UTF-8"?><DescribeSpotPriceHistoryResponse '
            'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>'
            f"<spotPriceHistorySet>{items}</spotPriceHistorySet><nextToken/></DescribeSpotPriceHistoryResponse>"
        )


def _said(start: Any, status: str, kind: str, body: str) -> list[bytes]:
    start(status, [("Content-Type", kind), ("Content-Length", str(len(body.encode())))])
    return [body.encode()]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[MotoServer, Told]]:
    """AWS on a loopback port; the variables lead to it and to nothing else."""
    told = Told()
    with pytest.MonkeyPatch.context() as patch, MotoServer(behind=told.behind) as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server, told


@pytest.fixture
def proxy(served: tuple[MotoServer, Told]) -> FaultProxy:
    """The proxy before it, without a rule."""
    served[0].proxy.clear()
    return served[0].proxy


@pytest.fixture
def told(served: tuple[MotoServer, Told]) -> Told:
    """What it says of quotas and prices: nothing yet."""
    served[1].clear()
    return served[1]


@pytest.fixture
def nobody(served: tuple[MotoServer, Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user without any credentials."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
