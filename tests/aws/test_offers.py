"""The ladder: what could be rented, in which order, for how much, and in one sentence why something cannot."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from aws_facts import nobody, proxy, served, told

from mlinfra_prefect.aws import catalogue, offers, quotas, snapshot
from mlinfra_prefect.aws.assessment import RegionFacts, ladder
from mlinfra_prefect.aws.catalogue import Machine, meets, read_machine
from mlinfra_prefect.aws.prices import Price, SpotPrices
from mlinfra_prefect.errors import PermanentError, TemporaryError, UnsupportedHere
from mlinfra_prefect.model.accelerator import KNOWN, Accelerator
from mlinfra_prefect.model.record import parsed
from mlinfra_prefect.model.request import TrainingRequest

__all__ = ["nobody", "proxy", "served", "told"]  # fixtures

G, P = "L-DB2E81BA", "L-417A185B"
NOW = datetime(2026, 11, 29, tzinfo=UTC)
HERE, THERE = "us-east-1", "eu-central-1"
ZONES = {HERE: ("us-east-1a", "us-east-1b"), THERE: ("eu-central-1a",)}


def accelerator(text: str) -> Accelerator:
    return parsed(Accelerator, text)


def request(text: str = "T4", **more: object) -> TrainingRequest:
    return parsed(TrainingRequest, {"accelerator": text, "platform": "aws", **more})


# --- which machine meets which accelerator ---------------------------------------------------------------------------


def described(type_: str, gpu: str = "", count: int = 0, mib: int = 0, **more: object) -> dict[str, object]:
    """An instance type as `DescribeInstanceTypes` tells it."""
    told = {
        "InstanceType": type_, "VCpuInfo": {"DefaultVCpus": 8}, "MemoryInfo": {"SizeInMiB": 62464},
        "ProcessorInfo": {"SupportedArchitectures": ["x86_64"]}, "SupportedUsageClasses": ["on-demand", "spot"],
    }  # fmt: skip
    if gpu:
        one = {"Name": gpu, "Manufacturer": "NVIDIA", "Count": count, "MemoryInfo": {"SizeInMiB": mib}} | more
        told["GpuInfo"] = {"Gpus": [one], "TotalGpuMemoryInMiB": count * mib}
    return told


AS_TOLD = {
    "g4dn.xlarge": ("T4", 1, 16384, "T4:1"),
    "g4dn.12xlarge": ("T4", 4, 16384, "T4:4"),
    "g4dn.metal": ("T4", 8, 16384, "T4:8"),
    "g5g.xlarge": ("T4g", 1, 16384, "T4G:1"),
    "g5.xlarge": ("A10G", 1, 22888, "A10G:1"),
    "g5.48xlarge": ("A10G", 8, 22888, "A10G:8"),
    "g5.2xlarge": ("A10G", 1, 24576, "A10G:1"),  # told so until 2025
    "g6.xlarge": ("L4", 1, 22888, "L4:1"),
    "gr6.4xlarge": ("L4", 1, 22888, "L4:1"),
    "g6.48xlarge": ("L4", 8, 22888, "L4:8"),
    "g6e.xlarge": ("L40S", 1, 45776, "L40S:1"),
    "g6e.12xlarge": ("L40S", 4, 45776, "L40S:4"),
    "p3.2xlarge": ("V100", 1, 16384, "V100:1"),
    "p3.16xlarge": ("V100", 8, 16384, "V100:8"),
    "p3dn.24xlarge": ("V100", 8, 32768, "V100-32GB:8"),
    "p4d.24xlarge": ("A100", 8, 40960, "A100:8"),
    "p4de.24xlarge": ("A100", 8, 81920, "A100-80GB:8"),
    "p5.4xlarge": ("H100", 1, 81920, "H100:1"),
    "p5.48xlarge": ("H100", 8, 81920, "H100:8"),
    "p5e.48xlarge": ("H200", 8, 144384, "H200:8"),
    "p5en.48xlarge": ("H200", 8, 144384, "H200:8"),
    "p6-b200.48xlarge": ("B200", 8, 183359, "B200:8"),
    "p6-b300.48xlarge": ("B300", 8, 275040, None),
    "g7e.2xlarge": ("RTX PRO Server 6000", 1, 98304, None),
}
EVERY = [f"{name}:{count}" for name in KNOWN if name != "cpu" for count in (1, 2, 4, 8, 16)]


@pytest.mark.parametrize("type_", AS_TOLD)
def test_a_machine_meets_exactly_the_accelerator_that_it_has(type_):
    gpu, count, mib, mine = AS_TOLD[type_]
    machine = read_machine(described(type_, gpu, count, mib))
    assert [each for each in EVERY if meets(machine, accelerator(each))] == ([mine] if mine else [])
    assert not meets(machine, accelerator("cpu"))


@pytest.mark.parametrize(
    "odd",
    [
        described("g6f.large", "L4", 0, 2861),  # a part of one
        described("g6f.4xlarge", "L4", 1, 22888, GpuPartitionSize=0.5),
        described("g4ad.xlarge", "T4", 1, 16384, Manufacturer="AMD"),
        described("c5.2xlarge"),
    ],
)
def test_parts_of_a_gpu_and_gpus_of_others_meet_nothing(odd):
    machine = read_machine(odd)
    assert (machine.gpus, machine.gpu, machine.gpu_memory_gib) == (0, "", 0.0)
    assert not any(meets(machine, accelerator(each)) for each in [*EVERY, "cpu"])


def test_cpu_is_met_by_the_ladder_of_general_machines_only():
    assert all(meets(Machine(type_, 4, 16.0), accelerator("cpu")) for type_ in catalogue.CPU_TYPES)
    assert not meets(Machine("x2idn.16xlarge", 64, 1024.0), accelerator("cpu"))


def test_what_aws_tells_of_a_type_is_read_with_its_units():
    machine = read_machine(described("p3.2xlarge", "V100", 1, 16384) | {"SupportedUsageClasses": ["on-demand"]})
    assert machine == Machine("p3.2xlarge", 8, 61.0, 1, "V100", 16.0, ("on-demand",), x86=True)
    assert not read_machine(described("g5g.xlarge") | {"ProcessorInfo": {"SupportedArchitectures": ["arm64"]}}).x86


# --- the ladder, of facts --------------------------------------------------------------------------------------------

SMALL = Machine("g4dn.xlarge", 4, 16.0, 1, "T4", 16.0)
BIG = Machine("g4dn.2xlarge", 8, 32.0, 1, "T4", 16.0)
FOUR = Machine("g4dn.12xlarge", 48, 192.0, 4, "T4", 16.0)


def price(usd: float) -> Price:
    return Price(usd, NOW, "pricing-api")


def facts(region: str = HERE, **changed: object) -> RegionFacts:
    values: dict[str, object] = {
        "region": region, "zones": ZONES[region], "machines": (BIG, SMALL, FOUR),
        "sold": {each.type: ZONES[region] for each in (SMALL, BIG, FOUR)},
        "left": {G: quotas.Left(quotas.Quota(G, "G and VT"), 64, 0)},
        "listed": {SMALL.type: price(0.5), BIG.type: price(0.75), FOUR.type: price(4.0)},
        "extras_usd_per_hour": 0.01,
    }  # fmt: skip
    return RegionFacts(**{**values, **changed})


def reasons(found) -> dict[str, str | None]:
    return {each.type: each.skipped for each in found}


def test_what_can_be_taken_comes_by_region_then_price_and_the_others_after_it():
    none_left = {G: quotas.Left(quotas.Quota(G, "G and VT"), 4, 0)}
    found = ladder(request(), [facts(THERE, left=none_left), facts(HERE)])
    assert [(each.region, each.type, each.skipped is None) for each in found] == [
        (THERE, SMALL.type, True), (HERE, SMALL.type, True), (HERE, BIG.type, True), (THERE, BIG.type, False),
    ]  # fmt: skip


def test_an_offer_has_the_machine_the_zones_the_price_with_disk_and_the_headroom():
    offer = ladder(request(), [facts()])[0]
    assert (offer.gpus, offer.vcpus, offer.memory_gib, offer.gpu_memory_gib) == (1, 4, 16.0, 16.0)
    assert (offer.zones, offer.market) == (ZONES[HERE], "on-demand")
    assert (offer.usd_per_hour, offer.price_source, offer.priced_at) == (0.51, "pricing-api", NOW)
    assert offer.quota_headroom == 64


def test_a_quota_of_zero_says_its_code_and_what_to_ask_for():
    left = {G: quotas.Left(quotas.Quota(G, "Running On-Demand G and VT instances"), 0, None)}
    said = reasons(ladder(request(), [facts(left=left)]))
    assert said[SMALL.type] == (f"quota 0 of Running On-Demand G and VT instances, code {G}: ask AWS for 4 vCPUs")


def test_a_quota_that_is_too_small_says_how_large_it_must_be():
    left = {G: quotas.Left(quotas.Quota(G, "G and VT"), 6, 2)}
    said = reasons(ladder(request(), [facts(left=left)]))
    assert said == {SMALL.type: None, BIG.type: f"quota 6 of G and VT, code {G}: ask AWS for 10 vCPUs"}


def test_a_quota_that_is_in_use_says_that_waiting_helps():
    left = {G: quotas.Left(quotas.Quota(G, "G and VT"), 8, 6)}
    said = reasons(ladder(request(), [facts(left=left)]))[SMALL.type]
    assert "2 of 8 vCPUs are left of G and VT, and it needs 4: wait, or ask AWS for 10 vCPUs" in said


def test_a_quota_that_is_not_known_skips_nothing():
    for left in ({}, {G: quotas.Left(quotas.Quota(G, "G and VT"), None, 3)}):
        found = ladder(request(), [facts(left=left)])
        assert [(each.skipped, each.quota_headroom) for each in found] == [(None, None), (None, None)]


def test_what_is_above_the_hourly_cap_is_skipped():
    said = reasons(ladder(request(max_hourly_usd=0.6), [facts()]))
    assert said == {SMALL.type: None, BIG.type: "0.76 USD per hour is above max_hourly_usd, 0.60"}


@pytest.mark.parametrize("cap", [{"max_usd": 5.0}, {"max_hourly_usd": 5.0}])
def test_without_a_price_nothing_is_taken_on_a_budget(cap):
    (name,) = cap
    said = reasons(ladder(request(**cap), [facts(listed={SMALL.type: price(0.5)})]))
    assert said == {SMALL.type: None, BIG.type: f"its price is not known, and {name} is 5.00"}


def test_without_a_price_and_without_a_budget_it_comes_last_and_says_that_nobody_told():
    found = ladder(request(), [facts(listed={BIG.type: price(9.0)})])
    assert [(each.type, each.price_source) for each in found] == [(BIG.type, "pricing-api"), (SMALL.type, "none")]
    assert found[1].skipped is None


def test_a_type_that_is_not_sold_in_our_zones_says_where_it_is():
    sold = {SMALL.type: ("us-east-1b", "us-east-1d"), BIG.type: ("us-east-1d",), FOUR.type: ()}
    found = ladder(request(), [facts(sold=sold)])
    assert found[0].zones == ("us-east-1b",)
    assert reasons(found)[BIG.type] == (
        "not sold in the environment's zones (us-east-1a, us-east-1b); AWS sells it in us-east-1d"
    )


def test_a_region_without_the_right_number_of_gpus_shows_what_there_is():
    found = ladder(request("T4:8"), [facts()])
    assert reasons(found) == {
        SMALL.type: "it has 1 of them, and 8 were asked for",
        FOUR.type: "it has 4 of them, and 8 were asked for",
    }


def test_a_gpu_that_the_default_image_does_not_drive_needs_an_image_of_the_users():
    v100 = Machine("p3dn.24xlarge", 96, 768.0, 8, "V100", 32.0)
    here = facts(machines=(v100,), sold={v100.type: ZONES[HERE]}, listed={v100.type: price(31.2)})
    assert "ami=" in reasons(ladder(request("V100-32GB:8"), [here]))[v100.type]
    assert ladder(request("V100-32GB:8", ami="ami-0abcdef1234567890"), [here])[0].skipped is None


def test_an_arm_machine_is_not_taken():
    arm = Machine("g5g.xlarge", 4, 8.0, 1, "T4g", 16.0, x86=False)
    assert "Arm" in reasons(ladder(request("T4G"), [facts(machines=(arm,), sold={arm.type: ZONES[HERE]})]))[arm.type]


def spot(by_zone: dict[str, float]) -> dict[str, SpotPrices]:
    return {each.type: SpotPrices(by_zone, NOW) for each in (SMALL, BIG, FOUR)}


def test_spot_costs_what_the_dearest_of_its_zones_costs_and_is_taken_where_it_is_sold():
    found = ladder(
        request(market="spot"), [facts(spot=spot({"us-east-1b": 0.2, "us-east-1d": 0.9}), left={}, listed={})]
    )
    assert (found[0].zones, found[0].usd_per_hour) == (("us-east-1b",), pytest.approx(0.21))
    assert (found[0].price_source, found[0].market) == ("spot-history", "spot")
    both = ladder(request(market="spot"), [facts(spot=spot({"us-east-1a": 0.3, "us-east-1b": 0.2}), left={})])
    assert both[0].usd_per_hour == pytest.approx(0.31)


def test_spot_without_a_price_in_our_zones_is_not_sold_there():
    found = ladder(request(market="spot"), [facts(spot=spot({"us-east-1d": 0.9}), left={})])
    assert reasons(found)[SMALL.type] == "no spot price in us-east-1a, us-east-1b: it is not sold like that there now"


def test_spot_whose_history_cannot_be_read_is_reckoned_with_the_list_price():
    found = ladder(request(market="spot"), [facts(spot=None, left={})])
    assert (found[0].usd_per_hour, found[0].price_source, found[0].skipped) == (0.51, "pricing-api", None)


def test_a_machine_that_aws_does_not_sell_in_a_market_says_so():
    only = Machine("g4dn.xlarge", 4, 16.0, 1, "T4", 16.0, ("on-demand",))
    found = ladder(request(market="spot"), [facts(machines=(only,), spot=spot({"us-east-1a": 0.1}), left={})])
    assert found[0].skipped == "AWS does not sell it spot"


# --- the ladder, of AWS ----------------------------------------------------------------------------------------------


@pytest.fixture
def usual(proxy, told):
    """Quotas and prices as an account of some age has them."""
    told.quotas |= {G: 64, P: 0, "L-3819A6DF": 64, "L-1216C47A": 64}
    told.listed |= {(region, "gp3"): "0.08" for region in ZONES}
    told.listed |= {(HERE, "g4dn.xlarge"): "0.526", (HERE, "g4dn.2xlarge"): "0.752", (THERE, "g4dn.xlarge"): "0.658"}
    return told


def test_every_region_is_asked_and_comes_in_its_order(usual, proxy, tmp_path):
    found = offers.search(request(max_usd=50), {THERE: ZONES[THERE], HERE: ZONES[HERE]}, cache=tmp_path, disk_gib=100)
    taken = [(each.region, each.type, each.zones, each.usd_per_hour) for each in found.offers if not each.skipped]
    disk = 100 * 0.08 / 730
    assert taken == [
        (THERE, "g4dn.xlarge", ("eu-central-1a",), pytest.approx(0.658 + disk, abs=1e-6)),
        (HERE, "g4dn.xlarge", ("us-east-1a", "us-east-1b"), pytest.approx(0.526 + disk, abs=1e-6)),
        (HERE, "g4dn.2xlarge", ("us-east-1a", "us-east-1b"), pytest.approx(0.752 + disk, abs=1e-6)),
    ]
    assert {each.quota_headroom for each in found.offers} == {64}
    assert found.remarks == ()


def test_a_public_address_is_part_of_the_price(usual, tmp_path):
    place = {HERE: ZONES[HERE]}
    without, with_one = (offers.find(request(), place, cache=tmp_path, public_ip=each)[0] for each in (False, True))
    assert with_one.usd_per_hour - without.usd_per_hour == pytest.approx(0.005)


def test_a_ladder_only_reads(usual, proxy, tmp_path):
    before = proxy.requests
    offers.find(request(), ZONES, cache=tmp_path)
    offers.find(request(market="spot"), ZONES, cache=tmp_path)
    seen = {each.operation for each in proxy.log if each.request > before}
    assert seen
    assert all(each.startswith(("Describe", "Get")) for each in seen)


def test_the_second_ladder_of_a_day_asks_only_for_quota_and_what_runs(usual, proxy, tmp_path):
    first = offers.find(request(max_usd=50), ZONES, cache=tmp_path)
    before = proxy.requests
    assert offers.find(request(max_usd=50), ZONES, cache=tmp_path) == first
    seen = sorted(each.operation for each in proxy.log if each.request > before and each.phase == "received")
    assert seen == ["DescribeInstances", "DescribeInstances", "GetServiceQuota", "GetServiceQuota"]


def test_a_quota_of_zero_is_found_without_asking_for_a_price(usual, proxy, tmp_path):
    before = proxy.requests
    found = offers.find(request("H100:8"), {HERE: ZONES[HERE]}, cache=tmp_path)
    assert [each.type for each in found] == ["p5.48xlarge"]
    assert "quota 0 of Running On-Demand P instances" in found[0].skipped
    assert (found[0].quota_headroom, found[0].price_source) == (0, "snapshot")
    assert proxy.count("GetProducts", since=before) == 0


def test_spot_is_asked_of_the_spot_market_only(usual, proxy, tmp_path):
    usual.spot |= {("us-east-1a", "g4dn.xlarge"): "0.21", ("us-east-1b", "g4dn.xlarge"): "0.24"}
    before = proxy.requests
    found = offers.find(request(market="spot", max_usd=9), {HERE: ZONES[HERE]}, cache=tmp_path)
    taken = [each for each in found if not each.skipped]
    assert [(each.type, each.market, each.price_source) for each in taken] == [("g4dn.xlarge", "spot", "spot-history")]
    assert taken[0].usd_per_hour == pytest.approx(0.24 + 100 * 0.08 / 730, abs=1e-6)
    assert proxy.count("DescribeSpotPriceHistory", since=before) == 1
    assert all(each.market == "spot" for each in found)


def test_cpu_has_a_ladder_of_general_machines_by_price(usual, tmp_path):
    usual.listed |= {(HERE, "m5.xlarge"): "0.192", (HERE, "m6a.xlarge"): "0.1728"}
    found = offers.find(request("cpu", max_usd=9), {HERE: ZONES[HERE]}, cache=tmp_path)
    assert [each.type for each in found if not each.skipped] == ["m6a.xlarge", "m5.xlarge"]
    assert {(each.gpus, each.gpu_memory_gib) for each in found} == {(0, None)}


def test_without_the_permission_for_quotas_the_plan_goes_on_and_says_so(usual, proxy, tmp_path):
    proxy.fault("GetServiceQuota", status=400, code="AccessDeniedException", times=None)
    found = offers.search(request(), {HERE: ZONES[HERE]}, cache=tmp_path)
    assert found.offers[0].skipped is None
    assert found.offers[0].quota_headroom is None
    assert ["servicequotas:GetServiceQuota" in each for each in found.remarks] == [True]


def test_nobody_is_told_in_one_sentence_to_log_in(usual, nobody, tmp_path):
    with pytest.raises(PermanentError, match="there are no AWS credentials") as caught:
        offers.find(request(), ZONES, cache=tmp_path)
    assert "aws sso login" in caught.value.remedy


@pytest.mark.parametrize(
    ("operation", "code", "says"),
    [
        ("DescribeInstanceTypes", "UnauthorizedOperation", "ec2:DescribeInstanceTypes"),
        ("DescribeInstanceTypeOfferings", "UnauthorizedOperation", "ec2:DescribeInstanceTypeOfferings"),
        ("DescribeInstanceTypes", "RequestExpired", "have expired"),
        ("DescribeInstanceTypes", "AuthFailure", "not accept the credentials"),
        ("DescribeInstanceTypes", "OptInRequired", "enabled for this account"),
    ],
)
def test_what_must_be_mended_stops_the_plan_with_the_next_step(usual, proxy, tmp_path, operation, code, says):
    proxy.fault(operation, status=403, code=code, times=None)
    with pytest.raises(PermanentError, match=says):
        offers.find(request(), ZONES, cache=tmp_path)


def test_where_aws_is_not_reached_the_snapshot_makes_the_ladder_and_says_its_date(usual, proxy, tmp_path):
    proxy.fault("*", drop_before=True, times=None)
    found = offers.search(request("L4"), {THERE: ZONES[THERE]}, cache=tmp_path)
    assert [each.type for each in found.offers][:2] == ["g6.xlarge", "g6.2xlarge"]
    assert {each.price_source for each in found.offers} == {"snapshot"}
    assert any(f"{snapshot.taken():%Y-%m-%d}" in each for each in found.remarks)
    with pytest.raises(TemporaryError, match="not reached"):
        offers.find(request("L4"), {"xx-none-1": ("xx-none-1a",)}, cache=tmp_path)


def test_a_region_that_has_no_such_gpu_is_a_remark(usual, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "GPU_PATTERNS", ("t2.micro",))
    found = offers.search(request("L4"), {HERE: ZONES[HERE]}, cache=tmp_path)
    assert found == offers.Found((), (f"{HERE} sells no machine with L4.",))


def test_reserved_capacity_is_refused(usual):
    with pytest.raises(UnsupportedHere, match="reserved"):
        offers.find(request(market="reserved"), ZONES)


def test_without_a_directory_nothing_is_remembered(usual, proxy):
    offers.find(request(), {HERE: ZONES[HERE]})
    before = proxy.requests
    offers.find(request(), {HERE: ZONES[HERE]})
    assert proxy.count("DescribeInstanceTypes", since=before) > 0
