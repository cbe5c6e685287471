"""Which way the hot paths run: as plain torch and NumPy (`eager`), as kernels that numba compiles (`compiled`), or as one
captured CUDA graph (`graph`), and in which precision they multiply.

numba is an extra, `pip install "rankloom[compiled]"`; the eager way always works and is the twin that the others must
equal. Kernels know shapes and weights only as arguments, so a new catalogue, trie or model needs no compiling; what is
compiled is kept on disk for later processes. A graph is of one model and one catalogue (decoding/graph_engine.py).

bfloat16 halves what a product reads, and with AMX, the matrix unit of newer server processors, multiplies some six times as
fast. The kernels are fp32 throughout, so that on the CPU a precision that is asked for has the eager way.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

from rankloom.errors import RankloomError

Engine = Literal["auto", "eager", "compiled", "graph"]
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
    return engine in ("auto", "compiled") and available()


def use_graph(engine: Engine, device: str) -> bool:
    """Whether searches are captured graphs for a model on this type of device; `auto` is where the model sits on CUDA.

    Raises:
        RankloomError: `graph` is asked for and the model is not on a CUDA device.
    """
    if engine == "graph" and device != "cuda":
        raise no_cuda(f"the graph engine needs the model on a CUDA device, and it is on {device}")
    return device == "cuda" and engine in ("auto", "graph")


def no_cuda(fact: str) -> RankloomError:
    """What is said where the graph engine is asked for and cannot be."""
    return RankloomError(
        fact,
        place="decoding.engine",
        action="run on a machine with CUDA and a torch built for it, or set decoding.engine to auto, compiled or eager",
        code="engine-missing",
    )


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


def use_bf16(precision: Precision, device: str = "cpu") -> bool:
    """What `precision` comes to on this type of device, for the products of the eager way and of graphs; `auto` is bf16 on the
    CPU where AMX makes it pay."""
    return precision == "bf16" or (precision == "auto" and device == "cpu" and has_amx())
