"""What may not happen inside a captured CUDA graph, as a mode that refuses it; and recorders that run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

VALUES: Final = {"_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"}
"""Ask for a value on the host."""
SHAPES: Final = {
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "argwhere",
}
"""Give a shape that depends on values."""
CONSTANTS: Final = {"lift", "lift_fresh", "lift_fresh_copy"}
"""Make a tensor of numbers on the host, which would be copied in every run."""


def without_data(mode: FakeTensorMode, given: Tensor) -> Tensor:
    """A tensor of that shape on a device that is not the CPU, and without data: `meta`, which every torch has."""
    return FakeTensor(mode, given.detach().to("meta"), torch.device("meta"))


class BrokenRuleError(Exception):
    """An operation that no captured graph can have."""


class Rules(TorchDispatchMode):
    """Refuses what a captured graph cannot do; counts what is done."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.ops.append(name)
        if name in VALUES | SHAPES | CONSTANTS:
            raise BrokenRuleError(name)
        if name == "repeat_interleave" and func._overloadname == "Tensor":
            raise BrokenRuleError("repeat_interleave by a tensor")
        if name in ("index", "index_put", "index_put_") and any(
            own is not None and own.dtype == torch.bool for own in args[1]
        ):
            raise BrokenRuleError(f"{name} by truth")
        out = func(*args, **(kwargs or {}))
        devices = {own.device.type for own in (*args, out) if isinstance(own, Tensor) and (own.ndim or own is out)}
        if len(devices) > 1:
            raise BrokenRuleError(f"{name} from one device to another")
        return out


class _Ruled:
    def __init__(self, work: Callable[[], tuple[Tensor, ...]]) -> None:
        self.work = work

    @torch.no_grad()
    def run(self) -> tuple[Tensor, ...]:
        with Rules():
            return self.work()


class RuledRecorder:
    """Runs the work itself, under the rules of a graph."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> _Ruled:
        recording = _Ruled(work)
        self.graphs.append(recording)
        # what it allocates and learns, it does before anything is asked
        recording.run()
        return recording


class _Traced:
    def __init__(self, graph: Any) -> None:
        self.graph = graph

    @torch.no_grad()
    def run(self) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = self.graph()
        return out


class TracedRecorder:
    """Traces the work once; a run is only what was traced, of whatever lies in the inputs, as with a CUDA graph: Python that
    looks at a batch would be seen to have looked at the first one."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    @torch.no_grad()
    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> _Traced:
        self.graphs.append(make_fx(work)())
        return _Traced(self.graphs[-1])
