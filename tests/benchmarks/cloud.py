"""AWS, emulated: what a lease adds to Terraform by hand, how soon its meter stops, and what the ladder saves.

Everything is real but AWS: Terraform, its provider, the keeper, and the node, which is a process. So the seconds of a
real machine's boot are in none of these numbers, neither in ours nor in those by hand.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from mlinfra_prefect.errors import EngineMissing
from mlinfra_prefect.terraform import find_engine
from tests.benchmarks.cloud_by_hand import Hand, no_provider
from tests.benchmarks.cloud_place import CloudBench, cloud_bench
from tests.benchmarks.homes import CACHE, Holder
from tests.benchmarks.lines import Line, differences, ratios
from tests.benchmarks.side_by_side import Effort

ADDED_SECONDS = 1.0
OF_BARE = 0.6
METER_SECONDS = 1.0
SKIPPED_SECONDS = 1.0
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
G_QUOTA = "L-DB2E81BA"
"""Of G and VT instances on demand, in vCPUs."""


@dataclass
class Found:
    """What the rounds have measured, in seconds; `calls` are numbers: of control, and of S3."""

    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    calls: list[tuple[int, int]] = field(default_factory=list)
    plan: list[float] = field(default_factory=list)
    apply: list[float] = field(default_factory=list)
    bare: list[tuple[float, float, float]] = field(default_factory=list)


def everything(effort: Effort, scarce: Effort, refused: Effort) -> list[Line]:
    """All lines of one emulated account; nothing where there is no Terraform or no provider for it."""
    try:
        engine = find_engine(None, cache_dir=CACHE).path
    except EngineMissing as error:
        sys.stderr.write(f"aws: not measured, {error}\n")
        return []
    if why := no_provider(engine):
        sys.stderr.write(f"aws: not measured, {why}\n")
        return []
    with cloud_bench() as cloud:
        hand = Hand(engine, cloud.here.project.parent / "hand")
        return [*_leases(cloud, hand, effort), *_zones(cloud, hand, scarce), *_quota(cloud, refused)]


# --- leases -----------------------------------------------------------------------------------------------------------


def _leases(cloud: CloudBench, hand: Hand, effort: Effort) -> list[Line]:
    """`lease()` → ready, and finished → the call that ends the machine, beside the same by hand.

    Each round: a fresh process leases twice and trains on each; then the stack of the last one is planned and its saved
    plan applied by hand, and the root that people write is initialised, planned and applied. `init` of our stack was
    paid by the first lease of this host, which may have been another day's.
    """
    found = Found()
    for number in effort.each():
        attempt = _leased_twice(cloud, found)
        root = cloud.here.context.open_scratch_stack(attempt, "aws").module
        for turn in ("fleet", "bare") if number % 2 == 0 else ("bare", "fleet"):
            if turn == "fleet":
                planned, applied = hand.fleet(root, attempt)
                found.plan.append(planned)
                found.apply.append(applied)
            else:
                found.bare.append(hand.bare(attempt))
    return _told(found)


def _leased_twice(cloud: CloudBench, found: Found) -> Path:
    """Lease and train twice; returns the stack's directory of the last attempt."""
    here = cloud.here
    here.wait_until_quiet()
    holder = here.holder("--platform", "aws", "--times", "2", "--train")
    for ready in (found.first, found.later):
        before = cloud.aws.proxy.requests
        leased = holder.says()
        ready.append(leased["ready"])
        since = cloud.aws.proxy.requests
        finished = holder.says()["finished"] - time.time() + time.monotonic()
        found.stopped.append(cloud.ended_at(since) - finished)
        calls = cloud.calls(before)
    found.calls.append(calls)
    holder.end()
    here.wait_until_quiet()
    return Path(leased["attempt"])


def _told(found: Found) -> list[Line]:
    bare = [sum(each) for each in found.bare]
    init, plan, apply = (statistics.median(each) for each in zip(*found.bare, strict=True))
    by_hand = [planned + applied for planned, applied in zip(found.plan, found.apply, strict=True)]
    lines: list[Line] = []
    for which, ours in (("first", found.first), ("later", found.later)):
        lines += [
            differences(
                f"aws, {which}: lease to ready - the same saved plan by hand", ours, found.apply,
                aim=ADDED_SECONDS, names="lease | the saved plan by hand",
            ),
            differences(
                f"aws, {which}: lease to ready - plan and apply of the same stack by hand", ours, by_hand,
                aim=None, names="lease | plan and apply",
            ),
            ratios(
                f"aws, {which}: lease to ready / init, plan and apply of an aws_instance", ours, bare,
                aim=OF_BARE, names="lease | by hand",
            ),
        ]  # fmt: skip
    fleet = statistics.median(bare) - init - statistics.median(by_hand)
    ready = statistics.median(found.later)
    parts = (
        f"by hand init {init:.3f} s, plan {plan:.3f} s, apply {apply:.3f} s; our stack's plan "
        f"{statistics.median(found.plan):.3f} s, apply {statistics.median(found.apply):.3f} s; so of "
        f"{statistics.median(bare):.3f} s the init that is paid once takes {init:.3f} s away, the fleet {fleet:.3f} s, "
        f"and a lease adds {ready - statistics.median(by_hand):.3f} s, the node's start in it"
    )
    lines.append(ratios("aws: apply of our stack / of an aws_instance, by hand", found.apply,
                        [each[2] for each in found.bare], aim=None, names="fleet | aws_instance"))  # fmt: skip
    lines.append(Line("aws: init that is paid once per host and not per lease", "s",
                      tuple(each[0] for each in found.bare), made_of=parts))  # fmt: skip
    control, of_s3 = (statistics.median(each) for each in zip(*found.calls, strict=True))
    stopped = tuple(found.stopped)
    return [
        *lines,
        Line("aws: training finished to the call that ends the machine", "s", stopped),
        Line("aws: training finished to the call that ends the machine, p95", "s", stopped, METER_SECONDS, p95=True),
        Line("aws: API calls of a lease, from asking to its receipt", "n", tuple(float(sum(e)) for e in found.calls),
             made_of=f"control {control:.0f}, S3 {of_s3:.0f}; those of its node are in it"),
    ]  # fmt: skip


# --- what there is not ------------------------------------------------------------------------------------------------


def _zones(cloud: CloudBench, hand: Hand, effort: Effort) -> list[Line]:
    """No capacity in two of three zones: one fleet finds the third; by hand it is one apply for each zone."""
    ours: list[float] = []
    theirs: list[float] = []
    cloud.aws.no_capacity(zones=ZONES[:2])
    try:
        for _ in effort.each():
            cloud.here.wait_until_quiet()
            holder = cloud.here.holder("--platform", "aws")
            leased = holder.says()
            ours.append(leased["ready"])
            holder.end(within=120)
            cloud.here.wait_until_quiet()
            theirs.append(hand.zone_by_zone(Path(leased["attempt"]), ZONES))
    finally:
        cloud.aws.clear_faults()
    return [
        ratios(
            "aws: no capacity in two of three zones, lease to ready / zone by zone by hand", ours, theirs, aim=None,
            names="lease | three applies, without init",
        )
    ]  # fmt: skip


def _quota(cloud: CloudBench, effort: Effort) -> list[Line]:
    """A quota of zero: from asking until every offer is skipped and the lease refused, with nothing made."""
    first: list[float] = []
    later: list[float] = []
    here = cloud.here
    cloud.aws.quota(G_QUOTA, 0.0)
    try:
        for number in effort.each():
            # A cache of its own: what a region sells and its prices are remembered for a day.
            env = {**here.env, "MLINFRA_CACHE": str(here.project.parent / f"cache-{number}")}
            argv = [sys.executable, "holder.py", "--platform", "aws", "--refused", "L4", "--times", "2"]
            here.holders.append(holder := Holder(argv, here.project, env))
            for kept in (first, later):
                said = holder.says()
                if "quota" not in said["why"]:
                    raise RuntimeError(f"refused for another reason: {said['why']}")
                kept.append(said["refused"])
            holder.end()
    finally:
        cloud.aws.clear_faults()
    return [
        Line("aws, first: a quota of zero, asked to skipped and refused", "s", tuple(first), SKIPPED_SECONDS),
        Line("aws, later: a quota of zero, asked to skipped and refused", "s", tuple(later), SKIPPED_SECONDS),
    ]
