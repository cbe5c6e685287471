"""Which way the hot paths run: as plain torch and NumPy (`eager`), or as kernels that numba compiles (`compiled`).

numba is an extra, `pip install "rankloom[compiled]"`; the eager way always works and is the twin that the compiled one must
equal. Kernels know shapes and weights only as arguments, so a new catalogue, trie or model needs no compiling; what is
compiled is kept on disk for later processes.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Literal

from rankloom.errors import RankloomError

Engine = Literal["auto", "eager", "compiled"]


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
