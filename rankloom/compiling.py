"""Which way the hot paths run: as plain torch and NumPy (`eager`), or as kernels that numba compiles (`compiled`), and in
which precision the eager way multiplies.

numba is an extra, `pip install "rankloom[compiled]"`; the eager way always works and is the twin that the compiled one must
equal. Kernels know shapes and weights only as arguments, so a new catalogue, trie or model needs no compiling; what is
compiled is kept on disk for later processes.

bfloat16 halves what a product reads, and with AMX, the matrix unit of newer server processors, multiplies some six times as
fast. The kernels are fp32 throughout, so that a precision that is asked for has the eager way.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

from rankloom.errors import RankloomError

Engine = Literal["auto", "eager", "compiled"]
Precision = Literal["auto", "fp32", "bf16"]


@functools.cache
def available() -> bool:
    """Whether numba is installed; it is not imported for that."""
    return importlib.util.find_spec("numba") is not None


def use_compiled(engine: Engine) -> bool:
    """What `engine` comes to here; `auto` is compiled where it can be.

    Raises:
        RankloomError: `compiled` is asked for and numba is not installed.
    """
    if engine == "compiled" and not available():
        raise RankloomError(
            "the compiled engine needs numba, which is not installed",
            place="decoding.engine",
            action='pip install "rankloom[compiled]", or set decoding.engine to auto or eager',
            code="engine-missing",
        )
    return engine != "eager" and available()


@functools.cache
def has_amx() -> bool:
    """Whether the processor has AMX tiles and torch knows of them."""
    import torch

    # a private name, which a version of torch may lack
    asked = getattr(getattr(torch, "cpu", None), "_is_amx_tile_supported", None)
    try:
        return asked is not None and bool(asked())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def use_bf16(precision: Precision) -> bool:
    """What `precision` comes to here, for the products of the eager way; `auto` is bf16 where AMX makes it pay."""
    return precision == "bf16" or (precision == "auto" and has_amx())
