"""Which instance types meet an accelerator, and in which zones they are sold: AWS's own description, kept for a day.

There is no table of instance types here to grow old: every type that AWS calls ``g…`` or ``p…`` is asked for, and what
GPU it has decides. Rents nothing, and knows neither prices (`prices`) nor quotas (`quotas`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from mlinfra_prefect.aws.remembered import DAY, Facts
from mlinfra_prefect.aws.sdk import client, refused
from mlinfra_prefect.model.accelerator import KNOWN, Accelerator

MIB_IN_GIB: Final = 1024.0
GPU_PATTERNS: Final = ("g*", "p*")
"""Every family with NVIDIA GPUs begins with one of these; EC2 understands the star."""
CPU_TYPES: Final = (
    "m6a.xlarge", "m5.xlarge", "m6i.xlarge", "m7i.xlarge", "m6a.2xlarge", "m5.2xlarge", "m6i.2xlarge", "m7i.2xlarge",
)  # fmt: skip
"""The ladder of `cpu`: general machines of four and eight vCPUs (4 GiB each), in every region and zone."""
SAME_MEMORY: Final = 0.15
"""How far AWS's figure may be from the vendor's: it says 22.4 GiB of an L4 of 24 GB, 44.7 of an L40S of 48."""
PAGE: Final = 100


@dataclass(frozen=True, slots=True)
class Machine:
    """One instance type."""

    type: str
    vcpus: int
    memory_gib: float
    gpus: int = 0
    gpu: str = ""
    """As AWS calls it: ``T4``, ``A100``; empty: none."""
    gpu_memory_gib: float = 0.0
    """Of one GPU."""
    markets: tuple[str, ...] = ("on-demand", "spot")
    x86: bool = True


def read_machine(told: Mapping[str, Any]) -> Machine:
    """Read one of `DescribeInstanceTypes`. Pure.

    A part of a GPU (g6f) counts as none, and so do several kinds of GPU in one machine and GPUs of others than NVIDIA.
    """
    listed = list((told.get("GpuInfo") or {}).get("Gpus") or ())
    gpu = listed[0] if len(listed) == 1 else {}
    count = int(gpu.get("Count") or 0)
    whole = count > 0 and float(gpu.get("GpuPartitionSize") or 1) >= 1 and gpu.get("Manufacturer") == "NVIDIA"
    return Machine(
        type=str(told["InstanceType"]),
        vcpus=int(told["VCpuInfo"]["DefaultVCpus"]),
        memory_gib=round(int(told["MemoryInfo"]["SizeInMiB"]) / MIB_IN_GIB, 2),
        gpus=count if whole else 0,
        gpu=str(gpu.get("Name") or "") if whole else "",
        gpu_memory_gib=round(int(gpu["MemoryInfo"]["SizeInMiB"]) / MIB_IN_GIB, 2) if whole else 0.0,
        markets=tuple(told.get("SupportedUsageClasses") or ("on-demand", "spot")),
        x86="x86_64" in (told.get("ProcessorInfo") or {}).get("SupportedArchitectures", ("x86_64",)),
    )


def same_gpu(machine: Machine, accelerator: Accelerator) -> bool:
    """Whether a machine's GPUs are of that kind and memory, however many it has. Pure."""
    name = accelerator.name.partition("-")[0]
    memory = KNOWN[accelerator.name]
    return (
        machine.gpus > 0
        and machine.gpu.lower() == name.lower()
        and abs(machine.gpu_memory_gib - memory) <= SAME_MEMORY * memory
    )


def meets(machine: Machine, accelerator: Accelerator) -> bool:
    """Whether a machine has exactly that: the kind, its memory, and the number of GPUs. Pure."""
    if accelerator.name == "cpu":
        return machine.gpus == 0 and machine.type in CPU_TYPES
    return machine.gpus == accelerator.count and same_gpu(machine, accelerator)


def machines(region: str, accelerator: Accelerator, facts: Facts) -> tuple[Machine, ...]:
    """Return every instance type of a region that has this kind of GPU, or the ladder of `cpu`.

    Those with another number of GPUs are among them: `meets` tells. Two calls, or none for a day.

    Raises:
        MlinfraError: AWS says no, or is not reached and nothing was kept; the permission is
            ``ec2:DescribeInstanceTypes``.
    """
    patterns = CPU_TYPES if accelerator.name == "cpu" else GPU_PATTERNS
    name = "cpu" if accelerator.name == "cpu" else "gpu"
    kept = facts.get([name], DAY)
    if not kept:
        told = _all(
            region, "describe_instance_types", "InstanceTypes", f"listing the instance types of {region}",
            Filters=[{"Name": "instance-type", "Values": list(patterns)}], MaxResults=PAGE,
        )  # fmt: skip
        kept = facts.put({name: [asdict(read_machine(each)) for each in told]})
    found = [Machine(**{**each, "markets": tuple(each["markets"])}) for each in kept[name].value]
    return tuple(each for each in found if accelerator.name == "cpu" or same_gpu(each, accelerator))


def sold_in(region: str, types: Sequence[str], facts: Facts) -> dict[str, tuple[str, ...]]:
    """Return the zones of a region in which each type is sold, by type; a type that is sold in none has no zones.

    Raises:
        MlinfraError: AWS says no; the permission is ``ec2:DescribeInstanceTypeOfferings``.
    """
    kept = facts.get(types, DAY)
    missing = sorted(set(types) - set(kept))
    if missing:
        told = _all(
            region, "describe_instance_type_offerings", "InstanceTypeOfferings",
            f"listing where instance types are sold in {region}",
            LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": missing}],
        )  # fmt: skip
        kept |= facts.put({type_: _zones(type_, told) for type_ in missing})
    return {type_: tuple(kept[type_].value) for type_ in types}


def _zones(type_: str, told: Iterable[Mapping[str, Any]]) -> list[str]:
    return sorted({str(each["Location"]) for each in told if each["InstanceType"] == type_})


def _all(region: str, operation: str, part: str, doing: str, **arguments: Any) -> list[dict[str, Any]]:
    """Return all pages of a listing."""
    ec2 = client("ec2", region)
    try:
        pages = ec2.get_paginator(operation).paginate(**arguments)
        return [each for page in pages for each in page.get(part, ())]
    except Exception as error:
        raise refused(error, doing) from error
