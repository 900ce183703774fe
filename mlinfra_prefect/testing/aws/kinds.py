"""Instance types as the emulator needs them: processors, GPUs, the quota they count for. From moto's own catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

_NAMES = {
    "T4": ("Tesla T4", "7.5"), "T4g": ("NVIDIA T4G", "7.5"), "V100": ("Tesla V100-SXM2-16GB", "7.0"),
    "A10G": ("NVIDIA A10G", "8.6"), "L4": ("NVIDIA L4", "8.9"), "L40S": ("NVIDIA L40S", "8.9"),
    "A100": ("NVIDIA A100-SXM4-40GB", "8.0"), "H100": ("NVIDIA H100 80GB HBM3", "9.0"), "H200": ("NVIDIA H200", "9.0"),
    "B200": ("NVIDIA B200", "10.0"), "B300": ("NVIDIA B300", "10.3"),
}  # fmt: skip
"""How the driver calls what EC2 calls by its model, and its compute capability."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU of a type."""

    name: str
    memory_mib: int
    compute_cap: str = "8.6"


@dataclass(frozen=True, slots=True)
class Kind:
    """An instance type."""

    name: str
    vcpus: int
    gpus: tuple[Gpu, ...] = ()

    @property
    def family(self) -> str:
        """The part before the dot, such as ``g5``. Pure."""
        return self.name.partition(".")[0]


@cache
def kind(name: str) -> Kind | None:
    """Return an instance type; None where there is no such type."""
    from moto.ec2.models.instance_types import INSTANCE_TYPES

    found: dict[str, Any] | None = INSTANCE_TYPES.get(name)
    if found is None:
        return None
    gpus = tuple(
        Gpu(_NAMES.get(each["Name"], (f"NVIDIA {each['Name']}", ""))[0], int(each["MemoryInfo"]["SizeInMiB"]),
            _NAMES.get(each["Name"], ("", "8.6"))[1])
        for each in found.get("GpuInfo", {}).get("Gpus", []) if each["Manufacturer"] == "NVIDIA"
        for _ in range(int(each["Count"]))
    )  # fmt: skip
    return Kind(name, int(found["VCpuInfo"]["DefaultVCpus"]), gpus)


@cache
def offered(region: str) -> dict[str, tuple[str, ...]]:
    """Return the zones in which each type is offered, of one region; empty for a region that is not known."""
    from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS

    found: dict[str, list[str]] = {}
    for each in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, []):
        found.setdefault(each["InstanceType"], []).append(each["Location"])
    return {name: tuple(sorted(zones)) for name, zones in found.items()}
