"""Which way the hot paths run: as plain torch and NumPy (`eager`), as kernels that numba compiles (`compiled`), or as one
captured CUDA graph (`graph`).

numba is an extra, `pip install "rankloom[compiled]"`; the eager way always works and is the twin that the others must
equal. Kernels know shapes and weights only as arguments, so a new catalogue, trie or model needs no compiling; what is
compiled is kept on disk for later processes. A graph is of one model and one catalogue (decoding/graph_engine.py).
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

from rankloom.errors import RankloomError

Engine = Literal["auto", "eager", "compiled", "graph"]


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
