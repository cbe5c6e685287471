"""What may not happen inside a captured CUDA graph, as a mode that refuses it; and a recorder for the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

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


class _Tape(Rules):
    """Notes every operation with what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self.notes.append((func, args, kwargs or {}, out))
        return out


class _Taped:
    def __init__(self, tape: _Tape, out: tuple[Tensor, ...]) -> None:
        self.tape, self.out = tape, out

    @torch.no_grad()
    def run(self) -> tuple[Tensor, ...]:
        now: dict[int, Tensor] = {}

        def current(noted: Any) -> Any:
            return tree_map_only(Tensor, lambda own: now.get(id(own), own), noted)

        for func, args, kwargs, noted in self.tape.notes:
            out = func(*current(args), **current(kwargs))
            for own, known in zip(tree_leaves(out), tree_leaves(noted), strict=True):
                if isinstance(own, Tensor):
                    now[id(known)] = own
        result: tuple[Tensor, ...] = current(self.out)
        return result


class TapeRecorder:
    """Notes the operations of the work once, under the rules of a graph; a run is only what was noted, of whatever lies in the
    inputs, as with a CUDA graph: Python that looks at a batch would be seen to have looked at the first one."""

    def __init__(self) -> None:
        self.graphs: list[Any] = []

    @torch.no_grad()
    def record(self, work: Callable[[], tuple[Tensor, ...]]) -> _Taped:
        with _Tape() as tape:
            out = work()
        self.graphs.append(_Taped(tape, out))
        return self.graphs[-1]  # type: ignore[no-any-return]
