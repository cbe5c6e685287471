"""Filters and exclusions folded into the trie: which nodes a request may still walk to, exactly.

A filter (the same for many requests) becomes a count of allowed items per node. An exclusion (a request's seen items,
its `exclude` list) takes its items out of those counts. A node is open for a request when at least one allowed item
that the request does not exclude lies below it; so a beam never enters a dead end, and nothing is filtered afterwards.

Shapes: B requests, I catalogue rows, n_l nodes at depth l.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rankloom.semantic.trie import Trie


@dataclass(frozen=True)
class NodeCounts:
    """One filter on one trie.

    Attributes:
        allowed_I: (I,) bool, rows that pass the filter.
        counts: per depth 1..L, (n_l,) allowed items below each node.
    """

    allowed_I: Tensor
    counts: tuple[Tensor, ...]


class MaskIndex:
    """What filters and exclusions need to know of one trie: the leaf of each row and the ancestors of each leaf."""

    def __init__(self, trie: Trie, n_rows: int) -> None:
        self.trie = trie
        self.n_rows = n_rows
        self.leaf_of_row = trie.leaf_of_item(n_rows)
        self.ancestors = trie.ancestors()
        everything = torch.zeros(n_rows, dtype=torch.bool)
        everything[trie.leaf_items] = True
        self.unfiltered = self.compile(everything)

    def compile(self, allowed_I: Tensor) -> NodeCounts:
        """Counts of allowed items per node, bottom up. Rows outside the trie never count."""
        allowed = allowed_I & (self.leaf_of_row >= 0)
        leaf = self.leaf_of_row[allowed]
        counts = []
        for depth, ancestor in enumerate(self.ancestors, start=1):
            counts.append(torch.bincount(ancestor[leaf], minlength=self.trie.n_nodes(depth)))
        return NodeCounts(allowed, tuple(counts))

    def requests(self, filters: list[NodeCounts | None], excluded: list[Tensor] | None = None) -> RequestMasks:
        """Masks of B requests, each with its own filter (None: no filter) and excluded catalogue rows."""
        distinct: dict[int, int] = {}
        unique: list[NodeCounts] = []
        which = []
        for own in filters:
            own = self.unfiltered if own is None else own
            if id(own) not in distinct:
                distinct[id(own)] = len(unique)
                unique.append(own)
            which.append(distinct[id(own)])
        return RequestMasks(self, unique, torch.tensor(which, dtype=torch.long), excluded or [])


@dataclass
class RequestMasks:
    """Masks of a batch; `open(depth, request, node)` answers for any list of (request, node) pairs."""

    index: MaskIndex
    unique: list[NodeCounts]
    which_B: Tensor
    excluded: list[Tensor]
    _blocked: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = [torch.unique(own[own >= 0]) if len(own) else own for own in self.excluded]
        request = torch.repeat_interleave(
            torch.arange(len(rows)), torch.tensor([len(own) for own in rows], dtype=torch.long)
        )
        row = torch.cat(rows).long() if rows else torch.zeros(0, dtype=torch.long)
        inside = row < self.index.n_rows
        request, row = request[inside], row[inside]
        if len(row):
            # an excluded item that the filter already drops must not be subtracted twice
            allowed = torch.stack([own.allowed_I for own in self.unique])[self.which_B[request], row]
            request, row = request[allowed], row[allowed]
        leaf = self.index.leaf_of_row[row]
        for depth, ancestor in enumerate(self.index.ancestors, start=1):
            n_nodes = self.index.trie.n_nodes(depth)
            key = request * n_nodes + ancestor[leaf]
            pairs, taken = torch.unique(key, return_counts=True)
            total = (
                torch.stack([own.counts[depth - 1] for own in self.unique])[
                    self.which_B[pairs // n_nodes], pairs % n_nodes
                ]
                if len(pairs)
                else taken
            )
            self._blocked.append(pairs[taken >= total])

    def open(self, depth: int, request: Tensor, node: Tensor) -> Tensor:
        """Bool per pair: may this request walk to this node of this depth (1..L)?"""
        counts = self.unique[0].counts[depth - 1] if len(self.unique) == 1 else None
        if counts is not None:
            passes = counts[node] > 0
        else:
            passes = torch.stack([own.counts[depth - 1] for own in self.unique])[self.which_B[request], node] > 0
        blocked = self._blocked[depth - 1]
        if len(blocked):
            key = request * self.index.trie.n_nodes(depth) + node
            place = torch.searchsorted(blocked, key).clamp_max(len(blocked) - 1)
            passes &= blocked[place] != key
        return passes

    def allowed_items(self) -> Tensor:
        """(I,) bool when all requests share one filter, else (B, I)."""
        if len(self.unique) == 1:
            return self.unique[0].allowed_I
        return torch.stack([own.allowed_I for own in self.unique])[self.which_B]
