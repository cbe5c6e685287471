"""Filters and exclusions folded into the trie: which nodes a request may still walk to, exactly.

A filter (the same for many requests) becomes a count of allowed items per node; without one the trie itself knows how many
there are. An exclusion (a request's seen items, its `exclude` list) takes its items out of those counts. A node is open
for a request when at least one allowed item that the request does not exclude lies below it; so a beam never enters a dead
end, and nothing is filtered afterwards.

Shapes: B requests, I catalogue rows, n_l nodes at depth l, N pairs of a request and a node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.decoding.children import Children, Indices, Named, runs
from rankloom.semantic.trie import Trie


@dataclass(frozen=True)
class NodeCounts:
    """One filter on one trie.

    Attributes:
        allowed_I: (I,) bool, rows that pass the filter.
        counts: per depth 1..L, (n_l,) allowed items below each node; None where all of the trie is allowed.
    """

    allowed_I: Tensor
    counts: tuple[NDArray[np.int32], ...] | None


class MaskIndex:
    """What filters and exclusions need to know of one trie: the leaf of each row, -1 for rows that it does not name."""

    def __init__(self, trie: Trie, n_rows: int) -> None:
        self.trie = trie
        self.n_rows = n_rows
        self.leaf_of_row = trie.leaf_of_item(n_rows)
        self.unfiltered = NodeCounts(self.leaf_of_row >= 0, None)

    def compile(self, allowed_I: Tensor) -> NodeCounts:
        """Counts of allowed items per node, bottom up. Rows outside the trie never count."""
        allowed = allowed_I & self.unfiltered.allowed_I
        counts = self.trie.sums(allowed.numpy()[self.trie.leaf_items.numpy()].astype(np.int32))
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
        return RequestMasks(self, unique, np.array(which, dtype=np.int64), excluded or [])


@dataclass
class RequestMasks:
    """Masks of a batch. `open` answers for any (request, node) pairs, `legal` for the children of a level's beams."""

    index: MaskIndex
    unique: list[NodeCounts]
    which_B: Indices
    excluded: list[Tensor]
    _blocked: list[Named] = field(default_factory=list)
    """Per depth 1..L the nodes all of whose allowed items the request excludes."""

    def __post_init__(self) -> None:
        request, row = self._excluded_rows()
        if not len(row):
            self._blocked = [Named(row, row, row)] * self.index.trie.n_levels
            return
        leaf = self.index.leaf_of_row.numpy()[row]
        # in the order of the leaves, nodes of every depth come in order
        order = np.lexsort((leaf, request))
        request, above = request[order], np.zeros(len(order), dtype=np.int64)
        for depth, node in enumerate(self.index.trie.path(leaf[order]), start=1):
            first = np.flatnonzero(runs(request, node))
            taken = np.diff(first, append=len(node))
            first = first[taken >= self._totals(depth, request[first], node[first])]
            self._blocked.append(Named(request[first], node[first], above[first]))
            above = node

    def _excluded_rows(self) -> tuple[Indices, Indices]:
        """The distinct (request, catalogue row) pairs that exclusions take out of what the filters allow."""
        rows = [own.numpy().astype(np.int64, copy=False) for own in self.excluded]
        request = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
        row = np.concatenate(rows) if rows else request
        inside = (row >= 0) & (row < self.index.n_rows)
        pairs = np.sort(request[inside] * self.index.n_rows + row[inside])
        request, row = np.divmod(pairs[runs(pairs)], max(1, self.index.n_rows))
        # an excluded item that the filter already drops must not be subtracted twice
        allowed = self._ask(request, lambda own, at: own.allowed_I.numpy()[row[at]], np.bool_)
        return request[allowed], row[allowed]

    def _totals(self, depth: int, request_N: Indices, node_N: Indices) -> Indices:
        """(N,) allowed items below nodes of a depth, before exclusions."""

        def of(own: NodeCounts, at: Any) -> Any:
            if own.counts is None:
                return self.index.trie.n_items_under(depth, node_N[at])
            return own.counts[depth - 1].take(node_N[at])

        return self._ask(request_N, of, np.int64)

    def _ask(self, request_N: Indices, answer: Callable[[NodeCounts, Any], Any], kind: Any) -> NDArray[Any]:
        """(N,) what `answer(filter, places)` says, each place by the filter of its request."""
        if len(self.unique) == 1:
            return np.asarray(answer(self.unique[0], slice(None)), dtype=kind)
        out = np.zeros(len(request_N), dtype=kind)
        which = self.which_B[request_N]
        for number, own in enumerate(self.unique):
            at = np.flatnonzero(which == number)
            out[at] = answer(own, at)
        return out

    def open(self, depth: int, request_N: Indices, node_N: Indices) -> NDArray[np.bool_]:
        """Bool per pair: may this request walk to this node of this depth (1..L)?"""
        passes = self._totals(depth, request_N, node_N) > 0
        blocked = self._blocked[depth - 1]
        n_nodes = self.index.trie.n_nodes(depth)
        passes &= ~np.isin(request_N * n_nodes + node_N, blocked.request_M * n_nodes + blocked.node_M)
        return passes

    def blocked(self, depth: int, request: int) -> Indices:
        """(X,) nodes of a depth 1..L all of whose allowed items a request excludes, ascending."""
        return self._blocked[depth - 1].of(request).node_M

    def legal(self, children: Children) -> NDArray[np.bool_] | None:
        """(C,) what `open` says of the children of a level's beams; None where all are open."""
        place = children.find(self._blocked[children.level])[2]
        if all(own.counts is None for own in self.unique):
            if not len(place):
                return None
            legal = np.ones(children.total, dtype=np.bool_)
        else:
            request, node = children.spread(children.request_N), children.nodes()
            legal = self._totals(children.level + 1, request, node) > 0
        legal[place] = False
        return legal

    def allowed_items(self) -> Tensor:
        """(I,) bool when all requests share one filter, else (B, I)."""
        if len(self.unique) == 1:
            return self.unique[0].allowed_I
        return torch.stack([own.allowed_I for own in self.unique])[torch.from_numpy(self.which_B)]
