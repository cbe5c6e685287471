"""Recording work on a CUDA device once and running it again as one launch: the only file that calls `torch.cuda`'s graphs.

What is recorded reads and writes the same memory every time, so inputs are written into it before a run and what comes out
is read before the next one. Graphs that never run at the same time may share a pool of memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import torch
from torch import Tensor

_WARM_UPS: Final = 3
"""Runs before the recording, in which libraries choose their kernels and allocate what they keep."""


class Recording(Protocol):
    """Work that can be run again."""

    def run(self) -> tuple[Tensor, ...]:
        """What the work returns, for what lies in its inputs now; valid until the next run."""
        ...


class Recorder(Protocol):
    """Makes recordings on one device."""

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> Recording:
        """Runs `work` a few times and keeps it. It must hold to the rules of graph_search.py."""
        ...


class CudaRecorder:
    """Recordings as CUDA graphs, which share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pool: Any = None

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> Recording:
        with torch.cuda.device(self.device), torch.inference_mode():
            if self.pool is None:
                self.pool = torch.cuda.graph_pool_handle()
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    work()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # other threads may go on using the device meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                out = work()
        return _CudaRecording(graph, out)


class _CudaRecording:
    def __init__(self, graph: Any, out: tuple[Tensor, ...]) -> None:
        self.graph, self.out = graph, out

    def run(self) -> tuple[Tensor, ...]:
        self.graph.replay()
        return self.out
