"""Where the children of nodes begin and end, by a compiled kernel; see offsets.py, whose arrays it reads."""

from __future__ import annotations

from typing import Any

from rankloom.kernels import jit, place


@jit
def spans(start: Any, further: Any, bucket: Any, width: Any, node_N: Any, begin_N: Any, end_N: Any) -> None:
    """Writes the half-open ranges of the children of N nodes; empty ones for negative nodes.

    Args:
        start, further: `Offsets.start` and `Offsets.further_parent`, one of them empty.
        bucket: where in `further` each run of `width` nodes begins.
    """
    for i in range(len(node_N)):
        node = node_N[i]
        if node < 0:
            begin_N[i], end_N[i] = 0, 0
        elif len(start):
            begin_N[i], end_N[i] = start[node], start[node + 1]
        else:
            run = node // width
            before = place(further, node, bucket[run], bucket[run + 1])
            until = before
            while until < len(further) and further[until] == node:
                until += 1
            begin_N[i], end_N[i] = node + before, node + 1 + until
