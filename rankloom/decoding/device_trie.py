"""The trie as a captured search reads it: flat tensors on the device, and a window per level that holds any node's children.

Children of a node are neighbours, so a window is a beam's first child and the numbers after it. Its width is the largest
number of children at that level, rounded up to a power of two so that small changes keep it, but never more than the codebook,
whose codes a node cannot have twice. What lies beyond a node's own children is masked.

Shapes: L levels, n_l nodes at depth l.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rankloom.semantic.trie import Trie


@dataclass(frozen=True)
class DeviceTrie:
    """See the module's docstring. Make it with `DeviceTrie.of`.

    Attributes:
        start: per depth 0..L - 1, (n_l + 1,) int32 first child of every node, then n_{l + 1}.
        code: per depth 1..L, (n_l,) int32 last code of every node.
        window: per depth 0..L - 1, places for the children of one node.
        n_nodes: per depth 0..L.
    """

    start: tuple[Tensor, ...]
    code: tuple[Tensor, ...]
    window: tuple[int, ...]
    n_nodes: tuple[int, ...]

    @classmethod
    def of(cls, trie: Trie, device: torch.device | str) -> DeviceTrie:
        """The same trie on a device. See `fits` for those that it can hold."""
        starts = [own.starts() for own in trie.offsets[:-1]]
        fans = [int(np.diff(own).max(initial=1)) for own in starts]
        return cls(
            tuple(torch.from_numpy(own.astype(np.int32)).to(device) for own in starts),
            tuple(torch.from_numpy(own.astype(np.int32)).to(device) for own in trie.codes),
            tuple(min(_up(fan), size) for fan, size in zip(fans, trie.codebook_sizes, strict=True)),
            tuple(trie.n_nodes(depth) for depth in range(trie.n_levels + 1)),
        )

    @property
    def n_levels(self) -> int:
        return len(self.code)


def fits(trie: Trie) -> bool:
    """Whether there is something to search, and its nodes can be told apart in 31 bits."""
    return trie.n_leaves > 0 and max(trie.n_nodes(depth) for depth in range(trie.n_levels + 1)) < 2**31 - 1


def _up(n: int) -> int:
    """The power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()
