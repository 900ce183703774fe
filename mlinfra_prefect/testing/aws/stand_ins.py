"""The programs that come first on an emulated machine's PATH, as text: harmless where the real ones are not. Pure.

``shutdown``, ``poweroff`` and their kin write down what was asked, in a file that the emulator reads; it is that which
ends the machine. ``sudo`` runs its command as it is, since user data is root on a real machine and nobody here.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mlinfra_prefect.testing.aws.kinds import Gpu

Power = Literal["off", "reboot", "cancel"]
_OURS = f"python3.{sys.version_info.minor}"
_PYTHONS = tuple(f"python3.{minor}" for minor in range(9, 20))
_ABSENT = '#!/bin/sh\necho "${0##*/}: not on this emulated machine" >&2\nexit 127\n'
_BROKEN = (
    "#!/bin/sh\necho \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. "
    'Make sure that the latest NVIDIA driver is installed and running."\nexit 9\n'
)


@dataclass(frozen=True, slots=True)
class PowerRequest:
    """What a machine asked about its own power. `minutes` from now; 0: at once."""

    power: Power
    minutes: float = 0.0


def power_request(line: str) -> PowerRequest | None:
    """Read one line of the power file: a program and its arguments. None: it asks for nothing. Pure.

    Understood as by systemd: ``shutdown`` without a time means in one minute, ``-c`` takes back what was asked.
    """
    program, *arguments = line.split() or [""]
    flags = {each for each in arguments if each.startswith("-")}
    if program == "systemctl":
        words = [each for each in arguments if not each.startswith("-")]
        if words[:1] not in (["poweroff"], ["halt"], ["reboot"]):
            return None
        return PowerRequest("reboot" if words[0] == "reboot" else "off")
    if program != "shutdown":
        return PowerRequest("reboot" if program == "reboot" else "off")
    if flags & {"-c", "--cancel"}:
        return PowerRequest("cancel")
    power: Power = "reboot" if flags & {"-r", "--reboot"} else "off"
    time = next((each for each in arguments if not each.startswith("-")), "+1")
    minutes = "0" if time == "now" else time.removeprefix("+")
    return PowerRequest(power, float(minutes)) if minutes.isdigit() else None


def stand_ins(power_file: Path, gpus: tuple[Gpu, ...], *, broken: bool = False) -> dict[str, str]:
    """Return the programs by name. Pure.

    Args:
        power_file: where requests about power are written, one a line.
        gpus: what ``nvidia-smi`` finds; none: it is not there.
        broken: it is there, and finds no driver.
    """
    file = shlex.quote(str(power_file))
    noted = f'#!/bin/sh\nprintf \'%s %s\\n\' "${{0##*/}}" "$*" >>{file}\n'
    python = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n'
    programs = dict.fromkeys(("shutdown", "poweroff", "halt", "reboot", "systemctl"), noted)
    # The machine's Python is this one, so what is installed here is what is preinstalled there.
    programs |= dict.fromkeys(_PYTHONS, _ABSENT) | dict.fromkeys(("python3", "python", _OURS), python)
    programs["sudo"] = (
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\nexec env "$@"\n'
    )  # fmt: skip
    programs["nvidia-smi"] = _ABSENT
    if gpus and broken:
        programs["nvidia-smi"] = _BROKEN
    elif gpus:
        told = json.dumps([
            {"name": each.name, "memory_mib": each.memory_mib, "compute_cap": each.compute_cap} for each in gpus
        ])  # fmt: skip
        script = Path(__file__).with_name("nvidia_smi.py")
        words = (sys.executable, "-I", "-S", str(script), told)
        programs["nvidia-smi"] = f'#!/bin/sh\nexec {" ".join(map(shlex.quote, words))} "$@"\n'
    return programs
