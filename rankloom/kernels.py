"""What the compiled kernels share: how they are compiled, and an exponential that runs on many numbers at once.

Only kernel modules import this one: it needs numba (`rankloom.compiling.available`).

* no kernel holds Python's lock while it runs, so that requests in several threads run side by side;
* sums may be added in any order, as vector units want it; infinities and NaN keep their meaning;
* what is compiled is kept beside a module until that module's file changes: who changes a kernel that others call, touches
  their files too;
* products of matrices go to SciPy's BLAS, on one thread: they are of a few rows, which are not worth sharing out.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba.extending import intrinsic
from threadpoolctl import ThreadpoolController

F = TypeVar("F", bound=Callable[..., Any])
_OPTIONS: Final = {"nopython": True, "nogil": True, "cache": True, "error_model": "numpy"}


def jit(function: F) -> F:
    """Compiles `function` for the types of its first arguments, once for all processes of a machine."""
    return cast(F, numba.jit(**_OPTIONS, fastmath={"reassoc", "contract", "nsz"})(function))


@functools.cache
def tell_of_compiling(kernel: Callable[..., Any]) -> None:
    """A line on stderr where `kernel` was not compiled on this machine before, since someone is about to wait for it."""
    folder = Path(cast(Any, kernel).stats.cache_path)
    if not any(folder.glob(f"{Path(kernel.__code__.co_filename).stem}.{kernel.__name__}-*.nbi")):
        print("compiling the kernels of decoding, once on this machine (some 20 s; decoding.engine=eager does without)", file=sys.stderr)


@functools.cache
def one_thread() -> None:
    """Lets SciPy's own BLAS, which the kernels multiply with, run on the thread that calls it."""
    for library in ThreadpoolController().select(user_api="blas").lib_controllers:
        if Path(library.filepath).parent.name.startswith("scipy"):
            library.set_num_threads(1)


def _as_float(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def float_of_bits(_: Any, bits: Any) -> Any:
    """The float32 whose bits an int32 holds."""
    return numba.float32(numba.int32), _as_float


@intrinsic  # type: ignore[untyped-decorator, unused-ignore]
def bits_of_float(_: Any, value: Any) -> Any:
    """The int32 that holds the bits of a float32."""
    return numba.int32(numba.float32), _as_float


_LEAST, _MOST = np.float32(-88.0), np.float32(88.0)
_PER_LN2, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693145751953125), np.float32(1.428606765330187e-06)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)
_C3, _C4, _C5, _C6, _C7 = (np.float32(1 / n) for n in (6, 24, 120, 720, 5040))
_BIAS: Final = np.int32(127)
_SMALL: Final = 10**6
"""Multiplications up to which OpenBLAS copies nothing (on processors with AVX-512), a quarter faster at these sizes."""
_FEW: Final = 16
_SHIFT: Final = np.int32(23)
_SIGN, _BELOW_SIGN, SMALLEST = np.int32(31), np.int32(0x7FFFFFFF), np.int32(-(2**31))


@jit
def exp(x: Any) -> Any:
    """e to the x of a float32, to a few units in the last place; 0 up to -88, and no more than e to the 88.

    2^n e^r with the Taylor series of e^r, |r| <= ln 2 / 2: no call of a library, no branch.
    """
    x = min(max(x, _LEAST), _MOST)
    n = np.floor(x * _PER_LN2 + _HALF)
    r = (x - n * _LN2) - n * _LN2_REST
    series = _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))))
    return series * float_of_bits((np.int32(n) + _BIAS) << _SHIFT)


@jit
def ordered(x: Any) -> Any:
    """An int32 that orders as the float32 does."""
    bits = bits_of_float(x)
    return np.int32(bits ^ ((bits >> _SIGN) & _BELOW_SIGN))


@jit
def unordered(order: Any) -> Any:
    """The float32 that `ordered` was asked about."""
    return float_of_bits(np.int32(order ^ ((order >> _SIGN) & _BELOW_SIGN)))


@jit
def place(ascending: Any, wanted: Any, low: Any, high: Any) -> Any:
    """The first place from `low` to `high` whose number is not below the wanted one."""
    while low < high:
        middle = (low + high) // 2
        if ascending[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@jit
def has(ascending: Any, wanted: Any, low: Any, high: Any) -> Any:
    """Whether the wanted number is at one of those places."""
    at = place(ascending, wanted, low, high)
    return at < high and ascending[at] == wanted


@jit
def product(left_RK: Any, right_KN: Any, out_RN: Any) -> None:
    """Writes a matrix product, of as many rows at a time as BLAS multiplies without copying the factors first."""
    inner, wide = right_KN.shape
    rows = _SMALL // max(1, inner * wide)
    if rows < _FEW or rows >= len(left_RK):
        np.dot(left_RK, right_KN, out_RN)
        return
    rows -= rows % _FEW
    for first in range(0, len(left_RK), rows):
        np.dot(left_RK[first : first + rows], right_KN, out_RN[first : first + rows])
