"""The CUDA driver's own interface, as far as it takes to run one kernel: no toolkit, no library of anybody's.

`libcuda.so.1` comes with the driver. The kernel is PTX text that the driver compiles for whatever GPU is there; it
adds one to each of a few thousand numbers, and the numbers are read back and compared.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final

LIBRARIES: Final = ("libcuda.so.1", "libcuda.so")
COUNT: Final = 4096
"""How many numbers the kernel counts up."""
THREADS: Final = 256
MEMORY_SHARE: Final = 0.8
"""Of what is free: a kernel driver and a display keep some, and it is touched, which takes a moment."""
PATTERN: Final = 0x5A5A1234
KERNEL: Final = b"""
.version 4.3
.target sm_50
.address_size 64
.visible .entry count_up(.param .u64 numbers, .param .u32 count)
{
    .reg .pred %p<2>;
    .reg .b32 %r<7>;
    .reg .b64 %rd<5>;
    ld.param.u64 %rd1, [numbers];
    ld.param.u32 %r1, [count];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd2, %rd1;
    mul.wide.u32 %rd3, %r5, 4;
    add.s64 %rd4, %rd2, %rd3;
    ld.global.u32 %r6, [%rd4];
    add.s32 %r6, %r6, 1;
    st.global.u32 [%rd4], %r6;
DONE:
    ret;
}
"""
_POINTER = POINTER(c_uint64)
_SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuCtxCreate_v2": (POINTER(c_void_p), c_uint, c_int),
    "cuCtxDestroy_v2": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuLaunchKernel": (
        c_void_p, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_void_p,
        POINTER(c_void_p), POINTER(c_void_p),
    ),
    "cuMemGetInfo_v2": (POINTER(c_size_t), POINTER(c_size_t)),
    "cuMemAlloc_v2": (_POINTER, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemsetD32_v2": (c_uint64, c_uint, c_size_t),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
}  # fmt: skip


class CudaError(Exception):
    """One step of the driver failed; the message is a clause that says which."""


class Cuda:
    """The driver of this machine.

    Args:
        library: the loaded library, or what stands for it in a test; None: this machine's.

    Raises:
        CudaError: there is none, or it does not start.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = _loaded() if library is None else library
        for name, arguments in _SIGNATURES.items():
            try:
                function = getattr(self._library, name)
            except AttributeError as error:
                raise CudaError(f"the CUDA driver has no {name}") from error
            function.argtypes, function.restype = arguments, c_int
        self._do("the CUDA driver does not start", "cuInit", 0)

    def version(self) -> str:
        """The CUDA version that the driver supports, such as ``12.4``."""
        found = c_int()
        self._do("the CUDA driver does not tell its version", "cuDriverGetVersion", byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    def count(self) -> int:
        """How many GPUs the driver shows."""
        found = c_int()
        self._do("the CUDA driver does not count its GPUs", "cuDeviceGetCount", byref(found))
        return found.value

    def test(self, number: int) -> int:
        """Run the kernel on one GPU, check what it did, and use most of its memory; returns the bytes that were used.

        Raises:
            CudaError: naming the step.
        """
        device, context = c_int(), c_void_p()
        self._do(f"GPU {number} cannot be opened", "cuDeviceGet", byref(device), number)
        self._do(f"GPU {number} gives no context", "cuCtxCreate_v2", byref(context), 0, device)
        try:
            self._run_kernel(number)
            return self._use_memory(number)
        finally:
            self._library.cuCtxDestroy_v2(context)

    def _run_kernel(self, number: int) -> None:
        module, function, memory = c_void_p(), c_void_p(), c_uint64()
        self._do(f"GPU {number} does not take a kernel", "cuModuleLoadData", byref(module), KERNEL)
        self._do(f"GPU {number} does not find its kernel", "cuModuleGetFunction", byref(function), module, b"count_up")
        numbers = (c_uint * COUNT)(*range(COUNT))
        size = ctypes.sizeof(numbers)
        self._do(f"GPU {number} gives no memory", "cuMemAlloc_v2", byref(memory), size)
        try:
            self._do(f"nothing can be copied to GPU {number}", "cuMemcpyHtoD_v2", memory, numbers, size)
            count = c_uint(COUNT)
            arguments = (c_void_p * 2)(ctypes.addressof(memory), ctypes.addressof(count))
            self._do(
                f"GPU {number} does not start a kernel", "cuLaunchKernel",
                function, COUNT // THREADS, 1, 1, THREADS, 1, 1, 0, None, arguments, None,
            )  # fmt: skip
            self._do(f"a kernel on GPU {number} failed", "cuCtxSynchronize")
            self._do(f"nothing can be copied from GPU {number}", "cuMemcpyDtoH_v2", numbers, memory, size)
        finally:
            self._library.cuMemFree_v2(memory)
        if list(numbers) != list(range(1, COUNT + 1)):
            raise CudaError(f"GPU {number} computes wrongly")

    def _use_memory(self, number: int) -> int:
        free, total, memory = c_size_t(), c_size_t(), c_uint64()
        self._do(f"GPU {number} does not tell its memory", "cuMemGetInfo_v2", byref(free), byref(total))
        words = int(free.value * MEMORY_SHARE) // 4
        what = f"{words * 4 / (1 << 30):.1f} GiB of the memory of GPU {number}"
        self._do(f"{what} cannot be had", "cuMemAlloc_v2", byref(memory), words * 4)
        try:
            self._do(f"{what} cannot be written", "cuMemsetD32_v2", memory, PATTERN, words)
            self._do(f"{what} cannot be written", "cuCtxSynchronize")
            for place in (0, words // 2, words - 1):
                found = c_uint()
                self._do(
                    f"{what} cannot be read", "cuMemcpyDtoH_v2", byref(found), c_uint64(memory.value + place * 4), 4
                )
                if found.value != PATTERN:
                    raise CudaError(f"{what} does not keep what is written to it")
        finally:
            self._library.cuMemFree_v2(memory)
        return words * 4

    def _do(self, problem: str, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise CudaError(f"{problem} ({name} answered {code})")


def _loaded() -> Any:
    problem = ""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            problem = problem or str(error)
    raise CudaError(f"the CUDA driver cannot be loaded ({problem})")
