"""The exact prefix trie over the catalogue's semantic IDs, as flat CSR tensors.

Nodes of depth l are numbered in lexicographic order of their prefixes. For depth l < L the children of node v are the
nodes `child_start[l][v] .. child_start[l][v + 1] - 1` of depth l + 1, reached by the codes `child_code[l]` at the same
places. A leaf (depth L) owns `leaf_items[item_start[v] : item_start[v + 1]]`, ordered by prior. Nothing is approximated:
a beam that follows the trie names a catalogue item or does not exist. Immutable; a changed catalogue is a new trie.

Shapes: I items in the trie, L levels, n_l nodes at depth l.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.errors import RankloomError


@dataclass(frozen=True)
class Trie:
    """See the module's docstring. Build with `Trie.build`.

    Attributes:
        codebook_sizes: codes per level.
        child_start: per depth l < L, (n_l + 1,) int64.
        child_code: per depth l < L, (n_{l+1},) int64.
        item_start: (n_L + 1,) int64.
        leaf_items: (I,) int64 catalogue rows.
    """

    codebook_sizes: tuple[int, ...]
    child_start: tuple[Tensor, ...]
    child_code: tuple[Tensor, ...]
    item_start: Tensor
    leaf_items: Tensor

    @classmethod
    def build(
        cls,
        codes: NDArray[np.integer],
        codebook_sizes: Sequence[int],
        prior: NDArray[np.floating] | None = None,
        *,
        rows: NDArray[np.integer] | None = None,
    ) -> Trie:
        """Builds the trie of (I, L) codes.

        Args:
            prior: (I,) orders the items of one SID, higher first; ties by row.
            rows: catalogue rows to include; all of them without it.

        Raises:
            RankloomError: a code lies outside its codebook.
        """
        codes = np.asarray(codes)
        chosen = np.arange(len(codes)) if rows is None else np.asarray(rows)
        codes = codes if rows is None else codes[chosen]
        n_levels = len(codebook_sizes)
        if codes.ndim != 2 or codes.shape[1] != n_levels:
            raise RankloomError(
                f"semantic IDs of shape {codes.shape} do not fit {n_levels} codebooks", code="sid-shape"
            )
        if len(codes) and (
            codes.min() < 0 or any(codes[:, level].max() >= size for level, size in enumerate(codebook_sizes))
        ):
            raise RankloomError("a semantic ID has a code outside its codebook", code="sid-range")
        order = _order(codes, codebook_sizes, chosen, None if prior is None else np.asarray(prior, np.float64)[chosen])
        codes = np.take(codes, order, axis=0)
        changed = np.zeros(len(codes), dtype=bool)
        changed[:1] = True
        # the rows that open a node of the depth above; the root opens at the first row, if there is one
        above = np.zeros(1, dtype=np.int64)
        child_start: list[Tensor] = []
        child_code: list[Tensor] = []
        for level in range(n_levels):
            changed[1:] |= codes[1:, level] != codes[:-1, level]
            opens = np.flatnonzero(changed)
            if len(opens) == len(codes):
                begin = above
            else:
                # every row that opens a node above opens one here too: its first child
                begin = (np.cumsum(changed) - 1)[above]
            start = np.append(begin if len(codes) else np.zeros_like(above), len(opens))
            child_start.append(torch.from_numpy(start))
            column = codes[:, level] if len(opens) == len(codes) else codes[opens, level]
            child_code.append(torch.from_numpy(column.astype(np.int64)))
            above = opens
        return cls(
            codebook_sizes=tuple(int(size) for size in codebook_sizes),
            child_start=tuple(child_start),
            child_code=tuple(child_code),
            item_start=torch.from_numpy(np.append(above, len(codes))),
            leaf_items=torch.from_numpy((order if rows is None else chosen[order]).astype(np.int64, copy=False)),
        )

    @property
    def n_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def n_leaves(self) -> int:
        return len(self.item_start) - 1

    @property
    def n_items(self) -> int:
        return len(self.leaf_items)

    def n_nodes(self, depth: int) -> int:
        """Nodes at a depth; depth 0 is the root."""
        return 1 if depth == 0 else len(self.child_code[depth - 1])

    def leaf_codes(self) -> Tensor:
        """(n_leaves, L) the semantic ID of every leaf, in order."""
        columns = [self.child_code[-1]]
        parent = torch.repeat_interleave(torch.arange(self.n_nodes(self.n_levels - 1)), self.child_start[-1].diff())
        for level in reversed(range(self.n_levels - 1)):
            columns.append(self.child_code[level][parent])
            if level:
                above = torch.repeat_interleave(torch.arange(self.n_nodes(level)), self.child_start[level].diff())
                parent = above[parent]
        return torch.stack(columns[::-1], dim=1)

    def leaf_of_item(self, n_rows: int) -> Tensor:
        """(n_rows,) leaf of each catalogue row, -1 for rows that are not in the trie."""
        leaf = torch.full((n_rows,), -1, dtype=torch.long)
        leaf[self.leaf_items] = torch.repeat_interleave(torch.arange(self.n_leaves), self.item_start.diff())
        return leaf

    def ancestors(self) -> tuple[Tensor, ...]:
        """Per depth 1..L, (n_leaves,) the node of that depth above each leaf."""
        nodes = [torch.arange(self.n_leaves)]
        for level in reversed(range(1, self.n_levels)):
            parent = torch.repeat_interleave(torch.arange(self.n_nodes(level)), self.child_start[level].diff())
            nodes.append(parent[nodes[-1]])
        return tuple(nodes[::-1])

    def node_of_prefix(self, prefix: Sequence[int]) -> int | None:
        """The node that a prefix of codes names, or None when no item starts with it."""
        node = 0
        for level, code in enumerate(prefix):
            begin, end = int(self.child_start[level][node]), int(self.child_start[level][node + 1])
            place = begin + int(torch.searchsorted(self.child_code[level][begin:end].contiguous(), code))
            if place >= end or int(self.child_code[level][place]) != code:
                return None
            node = place
        return node

    def leaf_range(self, depth: int, node: int) -> tuple[int, int]:
        """The half-open range of leaves under a node."""
        begin, end = node, node + 1
        for level in range(depth, self.n_levels):
            begin, end = int(self.child_start[level][begin]), int(self.child_start[level][end])
        return begin, end

    def items_under(self, depth: int, node: int) -> Tensor:
        """Catalogue rows below a node."""
        begin, end = self.leaf_range(depth, node)
        return self.leaf_items[int(self.item_start[begin]) : int(self.item_start[end])]

    def nbytes(self) -> int:
        """Memory of the arrays."""
        tensors = (*self.child_start, *self.child_code, self.item_start, self.leaf_items)
        return sum(t.numel() * t.element_size() for t in tensors)


def _order(
    codes: NDArray[np.integer],
    codebook_sizes: Sequence[int],
    chosen: NDArray[np.integer],
    weight: NDArray[np.float64] | None,
) -> NDArray[np.int64]:
    """(I,) the order of a trie: by codes, then higher weight, then catalogue row.

    Codes and place go into one integer where they fit, as they do for ten million IDs of three codes of 8192: one
    sort of integers is many times faster than one per level.
    """
    n = len(codes)
    # places by weight and row: what orders the items of one SID
    inner = None
    if weight is not None or not (chosen[1:] > chosen[:-1]).all():
        inner = np.lexsort((chosen,) if weight is None else (chosen, -weight))
    bits = max(0, n - 1).bit_length()
    if math.prod(int(size) for size in codebook_sizes) << bits > 2**63:
        own = codes if inner is None else codes[inner]
        order = np.lexsort([own[:, level] for level in reversed(range(own.shape[1]))])
    else:
        key = np.zeros(n, dtype=np.int64)
        for level, size in enumerate(codebook_sizes):
            key *= int(size)
            column = codes[:, level] if inner is None else codes[inner, level]
            key += column.astype(np.int64, copy=False)
        key <<= bits
        key += np.arange(n)
        key.sort()
        order = key & ((1 << bits) - 1)
    return np.asarray(order if inner is None else inner[order], dtype=np.int64)
