"""Where the children of every node begin, in as few bytes as the shape of a trie allows.

Children are numbered node after node and every node has at least one. Where most nodes have exactly one, as deep in a
large trie, a node's first child is the node's own number plus the further children of the nodes before it: only those
further children are kept, twice, by parent and by place. Else every beginning is kept. Both are exact.

Shapes: n nodes, c children, e = c - n children beyond the first of their node.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer[Any]]
RUN: Final = 256
"""Nodes whose further children are looked for together."""


@dataclass(frozen=True)
class Offsets:
    """See the module's docstring. Make it with `Offsets.of_firsts`.

    Attributes:
        n_nodes, n_children: n and c.
        start: (n + 1,) first child of every node, then c; None where the further children are kept.
        further_parent, further_child: (e,) the node of each further child, and its own number; both ascending.
    """

    n_nodes: int
    n_children: int
    start: Integers | None
    further_parent: Integers | None
    further_child: Integers | None

    @classmethod
    def of_firsts(cls, first_C: NDArray[np.bool_]) -> Offsets:
        """From (c,) bool: which children are the first of their node."""
        n_children = len(first_C)
        n_nodes = int(np.count_nonzero(first_C))
        kind = narrowest(n_children)
        if n_nodes and 2 * (n_children - n_nodes) <= n_nodes:
            child = np.flatnonzero(~first_C)
            parent = child - np.arange(1, len(child) + 1)
            return cls(n_nodes, n_children, None, parent.astype(kind), child.astype(kind))
        start = np.append(np.flatnonzero(first_C), n_children)
        return cls(n_nodes, n_children, start.astype(kind), None, None)

    @classmethod
    def of_root(cls, n_children: int) -> Offsets:
        """Of the one node of depth 0, which alone may have no child."""
        return cls(1, n_children, np.array([0, n_children], dtype=narrowest(n_children)), None, None)

    def span(self, node: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The half-open ranges of children of nodes: where they begin and where they end."""
        if self.start is not None:
            return self.start.take(node).astype(np.int64), self.start.take(node + 1).astype(np.int64)
        assert self.further_parent is not None
        own = node.astype(np.int64, copy=False)
        if not len(self.further_parent):
            return own, own + 1
        wanted = own.astype(self.further_parent.dtype)
        before, until = (self.further_parent.searchsorted(wanted, side) for side in ("left", "right"))
        return own + before, own + 1 + until

    @cached_property
    def runs(self) -> NDArray[np.int64]:
        """Where in `further_parent` each run of `RUN` nodes begins, then e: what keeps a look-up within a few lines of
        memory."""
        if self.further_parent is None:
            return np.zeros(0, np.int64)
        first = np.arange(0, self.n_nodes + RUN, RUN)
        return self.further_parent.searchsorted(first.astype(self.further_parent.dtype)).astype(np.int64)

    def parent(self, child: Integers) -> NDArray[np.int64]:
        """The nodes that children belong to."""
        own = child.astype(np.int64, copy=False)
        if self.start is not None:
            return self.start.searchsorted(own.astype(self.start.dtype), "right") - 1
        assert self.further_child is not None
        return own - self.further_child.searchsorted(own.astype(self.further_child.dtype), "right")

    def starts(self) -> NDArray[np.int64]:
        """(n + 1,) the whole table: first child of every node, then c."""
        if self.start is not None:
            return self.start.astype(np.int64)
        assert self.further_child is not None
        first = np.ones(self.n_children, dtype=np.bool_)
        first[self.further_child] = False
        return np.append(np.flatnonzero(first), self.n_children)

    def parents(self) -> NDArray[np.int64]:
        """(c,) the node of every child."""
        starts = self.starts()
        return np.repeat(np.arange(self.n_nodes), np.diff(starts))

    def nbytes(self) -> int:
        arrays = (self.start, self.further_parent, self.further_child)
        return sum(array.nbytes for array in arrays if array is not None)


def narrowest(largest: int) -> type[np.int32] | type[np.int64]:
    """The signed type of indices up to `largest`."""
    return np.int32 if largest <= np.iinfo(np.int32).max else np.int64
