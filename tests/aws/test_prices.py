"""Prices are told with their source and date, remembered for a while, and never guessed."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta

import pytest
from aws_facts import SPOT_AT, product, proxy, served, told

from mlinfra_prefect.aws import snapshot
from mlinfra_prefect.aws.prices import SPOT_SECONDS, Prices, SpotPrices, read_history, read_product
from mlinfra_prefect.aws.remembered import DAY, Facts
from mlinfra_prefect.model.accelerator import KNOWN, Accelerator
from mlinfra_prefect.model.record import parsed

__all__ = ["proxy", "served", "told"]  # fixtures

REGION = "eu-central-1"
T4 = "g4dn.xlarge"


class Clock:
    def __init__(self) -> None:
        self.at = 1_800_000_000.0

    def __call__(self) -> float:
        return self.at


def prices(directory, clock=None) -> Prices:
    return Prices(REGION, lambda kind: Facts(directory, kind, REGION, **({"now": clock} if clock else {})))


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "unit", "price"),
    [
        ([], "Hrs", None),
        ([product("0.5260000000")], "Hrs", 0.526),
        ([json.loads(product("0.5260000000"))], "Hrs", 0.526),
        ([product("0.0000000000"), product("32.77")], "Hrs", 32.77),  # a capacity block is listed with nothing
        ([product("0.0000000000")], "Hrs", None),
        ([product("0.0952", unit="GB-Mo")], "GB-Mo", 0.0952),
        ([product("0.0952", unit="GB-Mo")], "Hrs", None),
        ([product("1.0"), product("1.5")], "Hrs", 1.5),
        (['{"product": {}, "terms": {}}', '{"terms": {"Reserved": {}}}', '{"terms": {"OnDemand": null}}'], "Hrs", None),
    ],
)
def test_a_list_price_is_the_dearest_above_zero_of_its_unit(listed, unit, price):
    assert read_product(listed, unit) == price


def test_the_latest_spot_price_of_each_zone_counts():
    def said(zone, price, minutes, *, type_=T4, description="Linux/UNIX"):
        return {
            "AvailabilityZone": zone, "SpotPrice": price, "InstanceType": type_, "ProductDescription": description,
            "Timestamp": SPOT_AT + timedelta(minutes=minutes),
        }  # fmt: skip

    history = [
        said("a", "0.20", 5), said("a", "0.30", 0), said("b", "0.25", 0), said("b", "0.26", 9),
        said("a", "9.99", 9, description="Windows"), said("c", "0.10", 0, type_="g5.xlarge"),
        said("d", "0.21", 0, description="Linux/UNIX (Amazon VPC)"),
    ]  # fmt: skip
    assert read_history(history, T4) == {"a": 0.20, "b": 0.26, "d": 0.21}


def test_money_is_reckoned_with_the_dearest_of_the_zones_that_may_be_taken():
    spot = SpotPrices({"a": 0.2, "b": 0.3, "c": 0.9}, SPOT_AT)
    assert spot.dearest(["a", "b", "z"]).usd == 0.3
    assert spot.dearest(["z"]) is None


# --- asking and remembering ------------------------------------------------------------------------------------------


def test_a_list_price_is_told_with_source_and_date_and_remembered_for_a_day(proxy, told, tmp_path):
    told.listed |= {(REGION, T4): "0.6580000000", (REGION, "gp3"): "0.0952000000"}
    clock, before = Clock(), proxy.requests
    price = prices(tmp_path / "aws", clock).on_demand([T4])[T4]
    assert (price.usd, price.source, price.at) == (0.658, "pricing-api", datetime.fromtimestamp(clock.at, UTC))
    assert prices(tmp_path / "aws", clock).disk_usd_per_hour(730) == pytest.approx(0.0952)
    assert proxy.count("GetProducts", since=before) == 2

    told.listed[REGION, T4] = "0.7000000000"
    clock.at += DAY
    assert prices(tmp_path / "aws", clock).on_demand([T4])[T4] == price
    clock.at += 1
    assert prices(tmp_path / "aws", clock).on_demand([T4])[T4].usd == 0.7


def test_a_spot_price_is_remembered_for_minutes(proxy, told, tmp_path):
    told.spot |= {("eu-central-1a", T4): "0.20", ("eu-central-1b", T4): "0.25"}
    clock = Clock()
    assert prices(tmp_path, clock).spot([T4])[T4].by_zone == {"eu-central-1a": 0.2, "eu-central-1b": 0.25}
    told.spot.clear()
    clock.at += SPOT_SECONDS
    assert prices(tmp_path, clock).spot([T4])[T4].by_zone
    clock.at += 1
    assert prices(tmp_path, clock).spot([T4])[T4].by_zone == {}


def test_where_the_pricing_api_is_denied_the_snapshot_speaks_with_its_date(proxy, told, tmp_path):
    proxy.fault("GetProducts", status=400, code="AccessDeniedException", times=None)
    asking, clock = proxy.requests, Clock()
    found = prices(tmp_path, clock)
    price = found.on_demand([T4, "z9.nothing"])
    assert (price[T4].source, price[T4].at) == ("snapshot", snapshot.taken())
    assert "z9.nothing" not in price
    assert "pricing:GetProducts" in found.remarks[0]
    assert found.disk_usd_per_hour(100) == pytest.approx(100 * 0.0952 / 730)

    asked = proxy.count("GetProducts", since=asking)
    assert prices(tmp_path, clock).on_demand(["g5.xlarge"])["g5.xlarge"].source == "snapshot"
    assert proxy.count("GetProducts", since=asking) == asked  # it is left alone for a while
    proxy.clear()
    told.listed[REGION, "g5.xlarge"] = "1.26"
    clock.at += 601
    assert prices(tmp_path, clock).on_demand(["g5.xlarge"])["g5.xlarge"].usd == 1.26


def test_a_type_that_the_pricing_api_does_not_list_has_no_price(proxy, told, tmp_path):
    assert prices(tmp_path).on_demand([T4]) == {}


def test_spot_prices_that_cannot_be_read_are_a_remark(proxy, told, tmp_path):
    proxy.fault("DescribeSpotPriceHistory", status=403, code="UnauthorizedOperation", times=None)
    found = prices(tmp_path)
    assert found.spot([T4]) is None
    assert "ec2:DescribeSpotPriceHistory" in found.remarks[0]


# --- the file that remembers -----------------------------------------------------------------------------------------


def test_what_an_emulator_said_is_never_taken_for_aws(proxy, tmp_path, monkeypatch):
    Facts(tmp_path, "spot", REGION).put({T4: {"a": 0.00001}})
    assert Facts(tmp_path, "spot", REGION).get([T4], DAY)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Facts(tmp_path, "spot", REGION).get([T4], DAY) == {}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": "other/1", "facts": {"x": {"value": 1, "at": 0}}}'])
def test_a_file_that_cannot_be_read_is_as_if_it_were_not_there(tmp_path, content):
    Facts(tmp_path, "spot", REGION).put({"x": 1})
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    assert Facts(tmp_path, "spot", REGION).get(["x"], DAY) == {}
    Facts(tmp_path, "spot", REGION).put({"y": 2})
    assert Facts(tmp_path, "spot", REGION).get(["y"], DAY)["y"].value == 2


def test_a_place_that_cannot_be_written_fails_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    facts = Facts(tmp_path / "file" / "below", "spot", REGION)
    assert facts.put({"x": 1})["x"].value == 1
    assert facts.get(["x"], DAY) == {}


def test_a_fact_from_the_future_is_not_believed(tmp_path):
    clock = Clock()
    facts = Facts(tmp_path, "spot", REGION, now=clock)
    facts.put({"x": 1})
    clock.at -= 10
    assert facts.get(["x"], DAY) == {}


def test_threads_that_write_at_once_lose_nothing_and_the_file_is_the_owners(tmp_path):
    threads = [
        threading.Thread(target=lambda n=n: Facts(tmp_path / "aws", "spot", REGION).put({f"t{n}": n}))
        for n in range(16)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    names = [f"t{n}" for n in range(16)]
    assert set(Facts(tmp_path / "aws", "spot", REGION).get(names, DAY)) == set(names)
    (file,) = (tmp_path / "aws").iterdir()
    assert os.stat(file).st_mode & 0o777 == 0o600


def test_what_is_older_than_a_day_leaves_the_file(tmp_path):
    clock = Clock()
    facts = Facts(tmp_path, "spot", REGION, now=clock)
    facts.put({"old": 1})
    clock.at += DAY + 1
    facts.put({"new": 2})
    (file,) = tmp_path.iterdir()
    assert list(json.loads(file.read_text())["facts"]) == ["new"]


# --- the snapshot ----------------------------------------------------------------------------------------------------


def test_the_snapshot_is_dated_and_has_every_accelerator_that_our_image_drives():
    assert datetime(2026, 1, 1, tzinfo=UTC) < snapshot.taken() < datetime.now(UTC)
    for name in set(KNOWN) - {"T4G", "V100"}:
        assert any(snapshot.machines(region, parsed(Accelerator, name)) for region in ("us-east-1", "us-west-2")), name


def test_every_price_of_the_snapshot_is_plausible():
    for name in KNOWN:
        for region in ("us-east-1", "us-west-2", "eu-west-1", "eu-central-1"):
            for machine in snapshot.machines(region, parsed(Accelerator, name)):
                usd = snapshot.usd_per_hour(region, machine.type)
                assert 0.01 < usd / machine.vcpus < 1.0, machine.type
    assert snapshot.usd_per_hour("us-east-1", "z9.nothing") is None
    assert snapshot.disk_usd_per_gib_month("xx-none-1") == max(
        snapshot.disk_usd_per_gib_month(region) for region in ("us-east-1", "eu-west-1", "eu-central-1")
    )
