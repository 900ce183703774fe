"""Whether a node's GPUs are what was paid for, asked before a training is: driver, CUDA, a kernel, memory.

Every failure is one sentence that names the step. It runs in a process of its own, because a broken driver may hang or
crash whoever calls it. Where the driver says that it is emulated there is no CUDA to test: that is reported as not
run, and shown to the user, and nothing else switches a step off.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from .cuda import Cuda, CudaError
from .fields import Fields
from .wire import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ACCEPTANCE_SCHEMA: Final = "mlinfra-prefect/acceptance/1"
SECONDS: Final = 240.0
"""For all of it: the first context on a cold machine with eight GPUs takes most of a minute."""
DRIVER_SECONDS: Final = 60.0
EMULATED: Final = "emulated"
TOLERANCE: Final = 0.9
"""A 16 GiB card with error correction shows 15 GiB."""
NOT_FOUND: Final = 127
NOT_INSTALLED: Final = "it is not installed, so the machine image has no NVIDIA driver"
QUERY: Final = "name,memory.total,driver_version"


@dataclass(frozen=True)
class Acceptance:
    """How the test went.

    ``state``: ``passed``, ``failed`` or ``skipped`` (no GPU was paid for). ``sentence``: what to tell the user.
    ``driver`` and ``cuda``: versions, empty where unknown. ``gpus``: their names. ``not_run``: why steps were left out.
    """

    state: str
    sentence: str
    driver: str = ""
    cuda: str = ""
    gpus: tuple[str, ...] = ()
    not_run: str = ""
    seconds: float = 0.0

    @property
    def fit(self) -> bool:
        """Whether the node may be used."""
        return self.state != "failed"

    @classmethod
    def from_payload(cls, payload: object) -> Acceptance:
        """Check and build; raises SpecError naming the field."""
        fields = Fields(payload, "acceptance")
        fields.choice("schema", (ACCEPTANCE_SCHEMA,))
        found = cls(
            state=fields.choice("state", ("passed", "failed", "skipped")),
            sentence=fields.take("sentence", str),
            driver=fields.take("driver", str, ""),
            cuda=fields.take("cuda", str, ""),
            gpus=fields.strings("gpus", ()),
            not_run=fields.take("not_run", str, ""),
            seconds=fields.number("seconds", 0.0),
        )
        fields.finish()
        return found

    def to_payload(self) -> dict[str, Any]:
        """The JSON object that `from_payload` reads."""
        return {"schema": ACCEPTANCE_SCHEMA, **asdict(self), "gpus": list(self.gpus)}


NOTHING_TESTED: Final = Acceptance("skipped", "No GPU was asked for, so none was tested.")


@dataclass(frozen=True)
class Card:
    """One GPU as the driver tells it; memory in MiB."""

    name: str
    memory_mib: float
    driver: str


def parsed(text: str) -> tuple[Card, ...]:
    """What ``nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader,nounits`` prints. Pure.

    Raises:
        ValueError: it is something else.
    """
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
    if any(len(row) != 3 for row in rows):
        raise ValueError(f"it printed {text.strip()[:200]!r}")
    return tuple(Card(name.strip(), float(memory), driver.strip()) for name, memory, driver in rows)


def examined(gpus: int, memory_gib: float, *, ask: Callable[[], str], cuda: Callable[[], Cuda] = Cuda) -> Acceptance:
    """Test this node's GPUs.

    Args:
        gpus: how many were paid for; with 0 nothing is tested.
        memory_gib: of each.
        ask: what ``nvidia-smi`` prints for `QUERY`; raises OSError or ValueError with a reason.
        cuda: the driver; raises CudaError.
    """
    if gpus == 0:
        return NOTHING_TESTED
    try:
        cards = parsed(ask())
    except (OSError, ValueError) as error:
        return Acceptance("failed", f"The node's GPU driver does not answer: nvidia-smi: {error}.")
    names = tuple(card.name for card in cards)
    driver = cards[0].driver if cards else ""
    if len(cards) < gpus:
        return Acceptance("failed", f"The node has {_gpus(len(cards))}, and {gpus} were paid for.", driver, "", names)
    for number, card in enumerate(cards):
        if card.memory_mib / 1024 < memory_gib * TOLERANCE:
            sentence = (
                f"GPU {number} ({card.name}) has {card.memory_mib / 1024:.1f} GiB, and {memory_gib:g} were paid for."
            )
            return Acceptance("failed", sentence, driver, "", names)
    if driver == EMULATED:
        sentence = f"{_gpus(len(cards))} ({names[0]}) emulated: driver, count and memory were tested, CUDA was not."
        return Acceptance("passed", sentence, driver, "", names, "CUDA: not run: emulated driver")
    try:
        return _with_cuda(gpus, driver, names, cuda)
    except CudaError as error:
        return Acceptance("failed", f"The node's GPUs do not work: {error}.", driver, "", names)


def _with_cuda(gpus: int, driver: str, names: tuple[str, ...], cuda: Callable[[], Cuda]) -> Acceptance:
    opened = cuda()
    version, count = opened.version(), opened.count()
    if count < gpus:
        return Acceptance("failed", f"CUDA shows {_gpus(count)}, and {gpus} were paid for.", driver, version, names)
    used = [opened.test(number) for number in range(count)]
    sentence = (
        f"{_gpus(count)} ({names[0]}) ran a kernel and used {min(used) / (1 << 30):.0f} GiB of memory each "
        f"(driver {driver}, CUDA {version})."
    )
    return Acceptance("passed", sentence, driver, version, names)


def _gpus(count: int) -> str:
    return f"{count} GPU{'' if count == 1 else 's'}"


def main(gpus: str, memory_gib: str) -> int:
    """The verb ``accept``: test, print how it went as JSON, and return 0."""
    began = time.monotonic()
    found = examined(int(gpus), float(memory_gib), ask=_nvidia_smi)
    sys.stdout.write(json.dumps({**found.to_payload(), "seconds": round(time.monotonic() - began, 3)}) + "\n")
    return 0


def _nvidia_smi() -> str:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DRIVER_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError:
        raise OSError(NOT_INSTALLED) from None
    except subprocess.TimeoutExpired:
        raise OSError(f"it did not answer within {DRIVER_SECONDS:.0f} s") from None
    if done.returncode == NOT_FOUND:
        raise OSError(NOT_INSTALLED)
    if done.returncode:
        said = " ".join((done.stdout + done.stderr).split())
        raise OSError(f"it ended with {done.returncode}: {said[:300]}".rstrip(": ."))
    return done.stdout


class Examination:
    """The test in a process of its own, for whoever has other things to do meanwhile."""

    def __init__(self, python: str, archive: Path, gpus: int, memory_gib: float) -> None:
        self._until = time.monotonic() + SECONDS
        self._process = subprocess.Popen(
            [python, "-I", "-S", str(archive), "accept", str(gpus), repr(memory_gib)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def ended(self) -> Acceptance | None:
        """How it went, once it has ended; one that takes too long is killed and failed. Returns at once."""
        if self._process.poll() is None:
            if time.monotonic() < self._until:
                return None
            self.kill()
            return Acceptance("failed", f"The GPU test did not end within {SECONDS:.0f} s.")
        out, err = self._process.communicate()
        try:
            return Acceptance.from_payload(json.loads(out))
        except (ValueError, SpecError):
            last = (err.strip().splitlines() or ["it said nothing"])[-1]
            return Acceptance("failed", f"The GPU test ended with {self._process.returncode}: {last[:300]}.")

    def kill(self) -> None:
        """End it; one that has ended, or was asked how it went, is success."""
        if self._process.returncode is not None:
            return
        self._process.kill()
        self._process.communicate()
