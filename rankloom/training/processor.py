"""What a processor is good at: bf16 arithmetic, and memory that training need not ask for again and again."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path
from typing import Final, Literal

import torch

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_MAX: Final = -4


def resolve_precision(asked: Literal["auto", "fp32", "bf16"]) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 where the device multiplies it natively (CUDA since Ampere; AVX512-BF16 or AMX), fp32 elsewhere.

    Emulated bf16 would be slower than fp32, so an older processor keeps fp32.
    """
    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if _cpu_multiplies_bf16() else "fp32"


@cache
def _cpu_multiplies_bf16() -> bool:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), set())
    return bool(flags & {"avx512_bf16", "amx_bf16"})


@cache
def keep_freed_memory() -> bool:
    """Lets glibc reuse large blocks instead of returning each to the system and faulting it in again.

    A training step frees and asks for hundreds of megabytes; with the default threshold every logits matrix is mapped
    anew, page by page (benchmarks: full-softmax steps take half the time). Returns whether it applied.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    done = [mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), mallopt(_M_TOP_PAD, 64 << 20)]
    return all(done)


def return_freed_memory() -> None:
    """Gives what `keep_freed_memory` has kept back to the system, now and then: fragments would add up."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
