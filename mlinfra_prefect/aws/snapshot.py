"""Types and list prices as they were on one day, for where AWS's own cannot be had: `snapshot.json`, in the wheel.

It serves a plan without the Pricing API (no permission, no way out of the network), and says so: every price from here
carries the day it was taken. It is never consulted while AWS answers.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from mlinfra_prefect.aws.catalogue import CPU_TYPES, Machine, same_gpu
from mlinfra_prefect.model.accelerator import Accelerator


@functools.cache
def _snapshot() -> dict[str, Any]:
    read: dict[str, Any] = json.loads((files(__package__) / "snapshot.json").read_text("ascii"))
    return read


def taken() -> datetime:
    """The day its prices were published, in UTC."""
    return datetime.fromisoformat(_snapshot()["taken"]).replace(tzinfo=UTC)


def machines(region: str, accelerator: Accelerator) -> tuple[Machine, ...]:
    """Return the types that had a price in a region, and this kind of GPU (in any number) or none for `cpu`."""
    found = []
    for type_, told in _snapshot()["types"].items():
        machine = Machine(type=type_, **{name: value for name, value in told.items() if name != "usd_per_hour"})
        fits = type_ in CPU_TYPES if accelerator.name == "cpu" else same_gpu(machine, accelerator)
        if fits and region in told["usd_per_hour"]:
            found.append(machine)
    return tuple(found)


def usd_per_hour(region: str, type_: str) -> float | None:
    """The on-demand list price of a type (Linux, shared tenancy); None: not in the snapshot."""
    price = _snapshot()["types"].get(type_, {}).get("usd_per_hour", {}).get(region)
    return None if price is None else float(price)


def disk_usd_per_gib_month(region: str) -> float:
    """The price of a gp3 volume; in a region that is not in the snapshot the dearest one that is."""
    known = _snapshot()["gp3_usd_per_gib_month"]
    return float(known.get(region, max(known.values())))


def address_usd_per_hour() -> float:
    """The price of a public IPv4 address, the same in every region."""
    return float(_snapshot()["public_ipv4_usd_per_hour"])
