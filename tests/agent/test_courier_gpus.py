"""The test of a node's GPUs: what nvidia-smi and the CUDA driver say decides, and every failure names its step.

No GPU is here: the driver is an object that answers as `libcuda` does. That the kernel computes is not shown by this.
"""

# ruff: noqa: N802 (the names are libcuda's)

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlinfra_prefect.agent.acceptance import NOTHING_TESTED, Acceptance, Card, Examination, examined, parsed
from mlinfra_prefect.agent.archive import build_archive
from mlinfra_prefect.agent.cuda import _SIGNATURES, COUNT, PATTERN, Cuda, CudaError

TWO = "NVIDIA L4, 22888, 580.95.05\nNVIDIA L4, 22888, 580.95.05\n"


class Function:
    """One function of a library, as ctypes shows it."""

    def __init__(self, act: Callable[..., int]) -> None:
        self.act, self.argtypes, self.restype = act, (), None

    def __call__(self, *arguments: Any) -> int:
        assert len(arguments) == len(self.argtypes)
        for kind, argument in zip(self.argtypes, arguments, strict=True):
            kind.from_param(argument)  # as ctypes itself would check
        return self.act(*arguments)


class FakeDriver:
    """Two GPUs that keep memory and count up; ``fail`` names the function that answers 719."""

    def __init__(self, fail: str = "", *, gpus: int = 2, wrong: bool = False, forgets: bool = False) -> None:
        self.memory: dict[int, bytearray | int] = {}
        self.freed = self.contexts = 0
        for name in _SIGNATURES:
            act = getattr(self, f"_{name}", lambda *_: 0)
            setattr(self, name, Function((lambda *_: 719) if name == fail else act))
        self._gpus, self._wrong, self._forgets = gpus, wrong, forgets

    def _cuDriverGetVersion(self, found: Any) -> int:
        found._obj.value = 12040
        return 0

    def _cuDeviceGetCount(self, found: Any) -> int:
        found._obj.value = self._gpus
        return 0

    def _cuCtxCreate_v2(self, context: Any, *_: Any) -> int:
        self.contexts += 1
        context._obj.value = 1
        return 0

    def _cuCtxDestroy_v2(self, _: Any) -> int:
        self.contexts -= 1
        return 0

    def _cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        free._obj.value, total._obj.value = 1 << 20, 2 << 20
        return 0

    def _cuMemAlloc_v2(self, memory: Any, size: int) -> int:
        memory._obj.value = 4096 * (len(self.memory) + 1)
        self.memory[memory._obj.value] = bytearray(size)
        return 0

    def _cuMemFree_v2(self, memory: Any) -> int:
        self.freed += 1
        return 0

    def _cuMemcpyHtoD_v2(self, memory: Any, source: Any, size: int) -> int:
        self.memory[memory.value][:] = bytes(source)
        return 0

    def _cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        place = ctypes.cast(rest[8][0], ctypes.POINTER(ctypes.c_uint64))[0]
        count = ctypes.cast(rest[8][1], ctypes.POINTER(ctypes.c_uint))[0]
        assert (count, rest[0] * rest[3]) == (COUNT, COUNT)
        numbers = (ctypes.c_uint * COUNT).from_buffer(self.memory[place])
        for number in range(COUNT):
            numbers[number] += 2 if self._wrong and number == COUNT - 1 else 1
        return 0

    def _cuMemsetD32_v2(self, memory: Any, value: int, words: int) -> int:
        assert (value, words) == (PATTERN, len(self.memory[memory.value]) // 4)
        self.memory[memory.value][:] = (0 if self._forgets else value).to_bytes(4, sys.byteorder) * words
        return 0

    def _cuMemcpyDtoH_v2(self, target: Any, place: Any, size: int) -> int:
        start = max(each for each in self.memory if each <= place.value)
        offset = place.value - start
        data = bytes(self.memory[start][offset : offset + size])
        if isinstance(target, ctypes.Array):
            ctypes.memmove(target, data, size)
        else:
            target._obj.value = int.from_bytes(data, sys.byteorder)
        return 0


def run(driver: FakeDriver, smi: str = TWO, gpus: int = 2, gib: float = 24.0) -> Acceptance:
    return examined(gpus, gib, ask=lambda: smi, cuda=lambda: Cuda(driver))


def test_gpus_that_work_are_accepted_with_their_versions() -> None:
    """Every GPU runs the kernel and uses its memory; nothing is left behind."""
    driver = FakeDriver()
    found = run(driver)
    assert (found.state, found.driver, found.cuda, found.gpus) == ("passed", "580.95.05", "12.4", ("NVIDIA L4",) * 2)
    assert found.fit
    assert (driver.contexts, driver.freed) == (0, 4)
    assert Acceptance.from_payload(found.to_payload()) == found


@pytest.mark.parametrize("step", sorted(set(_SIGNATURES) - {"cuMemFree_v2", "cuCtxDestroy_v2"}))
def test_a_step_that_fails_is_named_and_leaves_nothing(step: str) -> None:
    """One sentence, with the function and what the driver answered."""
    driver = FakeDriver(step)
    found = run(driver)
    assert found.state == "failed"
    assert f"{step} answered 719" in found.sentence
    assert found.sentence.startswith("The node's GPUs do not work: ")
    assert driver.contexts == 0


@pytest.mark.parametrize(
    ("driver", "sentence"),
    [
        (FakeDriver(wrong=True), "GPU 0 computes wrongly"),
        (FakeDriver(forgets=True), "does not keep what is written"),
        (FakeDriver(gpus=1), "CUDA shows 1 GPU, and 2 were paid for"),
    ],
)
def test_a_gpu_that_answers_and_does_not_work_is_refused(driver: FakeDriver, sentence: str) -> None:
    """Results are compared, memory is read back, the driver's own count counts."""
    found = run(driver)
    assert (found.state, sentence in found.sentence) == ("failed", True), found


@pytest.mark.parametrize(
    ("smi", "gib", "sentence"),
    [
        ("", 1, "has 0 GPUs, and 2 were paid for"), ("NVIDIA L4, 22888, 580.1\n", 1, "has 1 GPU"),
        (TWO, 40.0, "GPU 0 (NVIDIA L4) has 22.4 GiB, and 40 were paid for"),
        ("No devices were found", 1, "it printed 'No devices were found'"), ("a, b, c", 1, "could not convert"),
    ],
)  # fmt: skip
def test_what_nvidia_smi_says_decides_before_cuda_is_asked(smi: str, gib: float, sentence: str) -> None:
    """Count and memory of what was paid for; an answer that is none is quoted."""
    found = examined(2, gib, ask=lambda: smi, cuda=lambda: pytest.fail("asked"))
    assert (found.state, sentence in found.sentence) == ("failed", True), found


def test_a_card_may_show_a_little_less_than_it_is_sold_with() -> None:
    """Error correction and the driver take their part: 15 GiB of a card of 16."""
    assert run(FakeDriver(), "Tesla T4, 15360, 535.1\n" * 2, gib=16.0).fit
    assert not run(FakeDriver(), "Tesla T4, 14000, 535.1\n" * 2, gib=16.0).fit


def test_names_with_commas_do_not_shift_a_column() -> None:
    """CSV is read as CSV."""
    assert parsed('"GPU, rev 2", 100, 1.0\n\n') == (Card("GPU, rev 2", 100.0, "1.0"),)


def test_an_emulated_driver_leaves_cuda_out_and_says_so() -> None:
    """Only the driver's own word does that."""
    found = examined(1, 16.0, ask=lambda: "NVIDIA L4, 22888, emulated", cuda=lambda: pytest.fail("asked"))
    assert (found.state, found.not_run) == ("passed", "CUDA: not run: emulated driver")


def test_without_gpus_nothing_is_asked() -> None:
    """A node for `cpu` has no driver."""
    assert examined(0, 0.0, ask=lambda: pytest.fail("asked"), cuda=lambda: pytest.fail("asked")) is NOTHING_TESTED


def test_a_machine_without_the_driver_s_library_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is looked for by its name, and its absence is said."""

    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    found = examined(2, 24.0, ask=lambda: TWO, cuda=Cuda)
    assert "CUDA driver cannot be loaded (libcuda.so.1: cannot open" in found.sentence


def test_a_driver_that_lacks_a_function_is_too_old() -> None:
    """An attribute that is not there is named."""
    driver = FakeDriver()
    del driver.cuMemsetD32_v2
    with pytest.raises(CudaError, match="has no cuMemsetD32_v2"):
        Cuda(driver)


@pytest.mark.parametrize(
    ("smi", "state", "said"),
    [
        ('echo "NVIDIA L4, 22888, emulated"', "passed", "emulated"),
        ("echo broken >&2; exit 9", "failed", "ended with 9: broken"),
        ("kill -9 $PPID", "failed", "The GPU test ended with -9: it said nothing"),
    ],
)
def test_the_test_runs_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smi: str, state: str, said: str
) -> None:
    """A driver that takes its caller with it fails the node, and not the courier."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{smi}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = ended(Examination(sys.executable, build_archive(tmp_path / "archive"), 1, 24.0))
    assert (found.state, said in found.sentence) == (state, True), found


def test_a_test_that_hangs_is_killed_and_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that never answers costs a bounded time."""
    monkeypatch.setattr("mlinfra_prefect.agent.acceptance.SECONDS", 0.3)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = ended(Examination(sys.executable, build_archive(tmp_path / "archive"), 1, 24.0))
    assert (found.state, "did not end within" in found.sentence) == ("failed", True)


def ended(examination: Examination) -> Acceptance:
    import time

    until = time.monotonic() + 30
    while time.monotonic() < until:
        found = examination.ended()
        if found is not None:
            return found
        time.sleep(0.02)
    pytest.fail("it never ended")
