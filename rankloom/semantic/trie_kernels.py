"""Where the children of a node begin and end, by a compiled kernel; see offsets.py, whose arrays it reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from rankloom.kernels import jit, place


@jit
def span(start: Any, further: Any, runs: Any, run: Any, node: Any) -> Any:
    """The half-open range of the children of a node.

    Args:
        start, further: `Offsets.start` and `Offsets.further_parent`, one of them empty.
        runs: where in `further` each run of `run` nodes begins.
    """
    if len(start):
        return np.int64(start[node]), np.int64(start[node + 1])
    own = node // run
    before = place(further, node, runs[own], runs[own + 1])
    until = before
    while until < len(further) and further[until] == node:
        until += 1
    return np.int64(node + before), np.int64(node + 1 + until)
