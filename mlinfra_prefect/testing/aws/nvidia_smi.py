"""The stand-in ``nvidia-smi`` of an emulated machine: answers what scripts ask for, from the type's data.

A program of its own, run by path with nothing but the standard library. It knows ``-L``, ``--query-gpu=… --format=csv``
with ``-i``, and the plain call; anything else is refused as by the real one. It drives no GPU.

    python nvidia_smi.py '[{"name": "NVIDIA L4", "memory_mib": 22888}]' [ARGUMENT...]
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

DRIVER = CUDA = "emulated"
"""Says to a GPU test that there is no CUDA behind it."""
_UNITS = {"memory.total": "MiB", "memory.used": "MiB", "memory.free": "MiB", "utilization.gpu": "%", "power.draw": "W"}


def values(index: int, gpu: dict[str, Any]) -> dict[str, str]:
    """Return what can be asked about one GPU. Pure."""
    uuid = hashlib.sha256(f"{index}{gpu['name']}".encode()).hexdigest()
    return {
        "index": str(index), "name": gpu["name"], "gpu_name": gpu["name"], "driver_version": DRIVER,
        "uuid": f"GPU-{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:32]}",
        "memory.total": str(gpu["memory_mib"]), "memory.used": "1", "memory.free": str(gpu["memory_mib"] - 1),
        "utilization.gpu": "0", "temperature.gpu": "30", "power.draw": "20.00", "pstate": "P8", "count": "1",
        "compute_cap": gpu.get("compute_cap", "8.6"), "pci.bus_id": f"00000000:00:{0x1E + index:02X}.0",
        "ecc.errors.uncorrected.volatile.total": "0", "mig.mode.current": "Disabled", "compute_mode": "Default",
    }  # fmt: skip


def queried(gpus: list[dict[str, Any]], fields: list[str], styles: list[str], chosen: str) -> str:
    """Return the table of a query as CSV. Pure.

    Raises:
        KeyError: a field that is not known.
    """

    def shown(value: str, field: str) -> str:
        unit = _UNITS.get(field)
        return f"{value} {unit}" if unit and "nounits" not in styles else value

    rows = [values(number, gpu) for number, gpu in enumerate(gpus)]
    lines = [
        ", ".join(shown(row[field], field) for field in fields)
        for row in rows
        if not chosen or row["index"] in chosen.split(",")
    ]
    if "noheader" not in styles:
        lines.insert(0, ", ".join(f"{field} [{_UNITS[field]}]" if field in _UNITS else field for field in fields))
    return "\n".join(lines)


def answered(gpus: list[dict[str, Any]], arguments: list[str]) -> tuple[int, str]:
    """Return the exit status and the output of one call. Pure."""
    options: dict[str, str] = {}
    rest = iter(arguments)
    for each in rest:
        name, _, value = each.partition("=")
        options[name] = value or (next(rest, "") if name in {"-i", "--id", "--query-gpu", "--format"} else "")
    if "--query-gpu" in options:
        fields = [each.strip() for each in options["--query-gpu"].split(",")]
        chosen = options.get("-i") or options.get("--id", "")
        try:
            return 0, queried(gpus, fields, options.get("--format", "").split(","), chosen)
        except KeyError as error:
            return 2, f"Field {error} is not a valid field to query."
    if "-L" in options or "--list-gpus" in options:
        rows = [values(number, gpu) for number, gpu in enumerate(gpus)]
        return 0, "\n".join(f"GPU {row['index']}: {row['name']} (UUID: {row['uuid']})" for row in rows)
    if options:
        return 2, f"Invalid combination of input arguments: {' '.join(arguments)}"
    head = f"| NVIDIA-SMI {DRIVER}   Driver Version: {DRIVER}   CUDA Version: {CUDA} |"
    rest_of_it = [f"| {number}  {gpu['name']}   1MiB / {gpu['memory_mib']}MiB |" for number, gpu in enumerate(gpus)]
    return 0, "\n".join((head, *rest_of_it))


if __name__ == "__main__":
    exit_status, output = answered(json.loads(sys.argv[1]), sys.argv[2:])
    sys.stdout.write(f"{output}\n")
    sys.exit(exit_status)
