"""What an emulated AWS does badly when a test asks for it: the methods of `Emulator`, and the same by name as JSON.

Two kinds. What AWS itself answers (no capacity, a quota, a profile not seen yet, a machine that does not end, an
instance that appears late) is held here, and the parts that answer ask for it. What happens to a request on its way
(refused, slowed, dropped) is a rule of the fault proxy.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.testing.aws.capacity import NoCapacity, Pool, no_capacity
from mlinfra_prefect.testing.aws.quotas import QUOTAS, Quota
from mlinfra_prefect.testing.aws.wire import Refused
from mlinfra_prefect.testing.faults import FaultProxy, Rule

_THROTTLED = {"ec2": ("RequestLimitExceeded", 503), "s3": ("SlowDown", 503)}


class Faults:
    """The faults of one emulator. Safe for threads. Each method adds to what holds already; `clear_faults` ends all."""

    proxy: FaultProxy

    def __init__(self) -> None:
        self._held = threading.RLock()
        self._forget()

    def _forget(self) -> None:
        self._no_capacity: list[tuple[NoCapacity, int]] = []
        self._quotas: dict[tuple[str, str], float] = {}
        self._unseen_profiles = 0
        self._lies: list[tuple[tuple[str, ...], int | None]] = []
        self._late = 0.0
        self._broken_gpus = 0

    # --- what AWS answers --------------------------------------------------------------------------------------------

    def no_capacity(
        self, *, types: Sequence[str] = (), zones: Sequence[str] = (), markets: Sequence[str] = (),
        regions: Sequence[str] = (), left: int = 0,
    ) -> None:  # fmt: skip
        """Take the capacity out of pools, until `clear_faults`.

        RunInstances then answers InsufficientInstanceCapacity. CreateFleet of type instant answers 200 with one of
        ``Errors`` for each pool without capacity that it tried (``InsufficientInstanceCapacity``, on spot
        ``UnfulfillableCapacity``), uses the other pools, and without any is a fleet without instances.

        Args:
            types: instance types, or patterns such as ``p5.*``; none: all.
            zones: availability zones, or patterns; none: all.
            markets: ``on-demand``, ``spot``; none: both.
            regions: regions, or patterns; none: all.
            left: how many instances these pools still have before they have none.
        """
        with self._held:
            self._no_capacity.append((NoCapacity(tuple(types), tuple(zones), tuple(markets), tuple(regions)), left))

    def quota(self, code: str, value: float, *, region: str = "") -> None:
        """Set a quota of EC2, in vCPUs; what is above it is refused, and Service Quotas says this value.

        A fleet's error, and RunInstances' answer, is ``VcpuLimitExceeded``, on spot ``MaxSpotInstanceCountExceeded``.

        Args:
            code: such as L-DB2E81BA (G and VT on demand); see `QUOTAS`.
            value: of the quota.
            region: empty: of every region.

        Raises:
            InvalidInput: there is no such code here.
        """
        if code not in {each.code for each in QUOTAS}:
            raise InvalidInput("code", f"{code} is no quota of the emulator.", ", ".join(each.code for each in QUOTAS))
        with self._held:
            self._quotas[code, region] = value

    def profile_not_seen(self, times: int = 1) -> None:
        """Let EC2 not see instance profiles yet, as just after they were made: InvalidParameterValue.

        Args:
            times: how many launches (CreateFleet, in every pool, or RunInstances) find no profile.
        """
        with self._held:
            self._unseen_profiles = times

    def terminate_lies(self, *, times: int | None = None, instances: Sequence[str] = ()) -> None:
        """Let TerminateInstances and DeleteFleets answer well and end nothing.

        Args:
            times: how many requests; None: all, until `clear_faults`.
            instances: ids, or patterns: only requests that name one of these (a fleet names its own); none: all.
        """
        with self._held:
            self._lies.append((tuple(instances), times))

    def late(self, seconds: float) -> None:
        """Hide instances from every Describe call and from the tag API for so long after their launch; 0: no more."""
        with self._held:
            self._late = seconds

    def broken_gpus(self, times: int = 1) -> None:
        """Let the next so many machines with GPUs have a driver that does not answer: bad hardware, of any pool."""
        with self._held:
            self._broken_gpus = times

    # --- what happens to a request -----------------------------------------------------------------------------------

    def throttle(self, operation: str, *, service: str = "ec2", times: int | None = 3) -> Rule:
        """Refuse an operation as too frequent: RequestLimitExceeded on EC2, and what others say instead.

        Args:
            operation: its name, or a pattern such as ``Describe*``.
            service: whose way of saying it: ec2, s3, or another.
            times: how often; None: for ever.
        """
        code, status = _THROTTLED.get(service, ("ThrottlingException", 400))
        return self.proxy.fault(operation, status=status, code=code, times=times)

    def fail(
        self, operation: str, *, status: int = 500, code: str = "InternalError", times: int | None = 1,
        executed: bool = False, match: str = "",
    ) -> Rule:  # fmt: skip
        """Answer an operation with an error.

        Args:
            operation: its name, or a pattern.
            status: the HTTP status.
            code: the error's code.
            times: how often; None: for ever.
            executed: carry it out first, and answer the error all the same.
            match: only where the path holds this text.
        """
        return self.proxy.fault(operation, status=status, code=code, times=times, executed=executed, match=match)

    def drop(self, operation: str, *, executed: bool, times: int | None = 1, match: str = "") -> Rule:
        """Close the connection without an answer: after the operation was carried out (`executed`), or instead."""
        return self.proxy.fault(operation, drop_after=executed, drop_before=not executed, times=times, match=match)

    def slow(self, operation: str, *, before: float = 0.0, after: float = 0.0, times: int | None = None) -> Rule:
        """Let an operation take longer: seconds before it is carried out, and seconds before that is answered."""
        return self.proxy.fault(operation, delay_before=before, delay_after=after, times=times)

    # --- all of it ---------------------------------------------------------------------------------------------------

    def clear_faults(self) -> None:
        """End every fault, quotas included. What a fault did already stays done."""
        with self._held:
            self._forget()
        self.proxy.clear()

    def apply_fault(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Call one of these methods by name: what another process asks over the control endpoint.

        Raises:
            InvalidInput: there is no such method, or it has no such argument.
        """
        if name not in FAULTS:
            raise InvalidInput("fault", f"{name} is no fault of the emulator.", f"These are: {', '.join(FAULTS)}.")
        try:
            getattr(self, name)(**arguments)
        except TypeError as error:
            raise InvalidInput("arguments", str(error)) from None

    # --- for the parts that answer -----------------------------------------------------------------------------------

    def capacity_refusal(self, pool: Pool, planned: Sequence[Pool] = (), *, fleet: bool) -> Refused | None:
        """Return how EC2 refuses a pool for want of capacity, or None; `planned`: of instances about to be started."""
        with self._held:
            lacking = any(
                rule.fits(pool) and left <= sum(rule.fits(each) for each in planned) for rule, left in self._no_capacity
            )
        return no_capacity(pool, fleet=fleet) if lacking else None

    def capacity_taken(self, pool: Pool) -> None:
        """Count an instance against what pools still have."""
        with self._held:
            self._no_capacity = [(rule, left - rule.fits(pool)) for rule, left in self._no_capacity]

    def quota_value(self, quota: Quota | None, region: str) -> float | None:
        """Return the value of a quota in a region."""
        if quota is None:
            return None
        with self._held:
            return self._quotas.get((quota.code, region), self._quotas.get((quota.code, ""), quota.value))

    def profile_unseen(self) -> bool:
        """Whether the launch that asks now does not see its profile; counts down."""
        with self._held:
            unseen = self._unseen_profiles > 0
            self._unseen_profiles -= unseen
        return unseen

    def lies(self, instance_ids: Collection[str]) -> bool:
        """Whether a request to end these instances is to be answered and not carried out; counts down."""
        with self._held:
            for number, (patterns, times) in enumerate(self._lies):
                if not patterns or any(fnmatchcase(each, pattern) for each in instance_ids for pattern in patterns):
                    if times is not None:
                        self._lies[number : number + 1] = [(patterns, times - 1)] if times > 1 else []
                    return True
        return False

    def gpus_broken(self) -> bool:
        """Whether the machine that starts now has a driver that does not answer; counts down."""
        with self._held:
            broken = self._broken_gpus > 0
            self._broken_gpus -= broken
        return broken

    @property
    def late_seconds(self) -> float:
        """How long after their launch instances are hidden."""
        return self._late


FAULTS = (
    "no_capacity", "quota", "profile_not_seen", "terminate_lies", "late", "broken_gpus", "throttle", "fail", "drop",
    "slow", "clear_faults",
)  # fmt: skip
"""What can be asked by name."""
