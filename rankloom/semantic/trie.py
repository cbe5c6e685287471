"""The exact prefix trie over the catalogue's semantic IDs, as flat arrays of the narrowest types that hold them.

Nodes of depth l are numbered in lexicographic order of their prefixes, so the children of a node are neighbours, in order
of their codes, and so are the items of a leaf (depth L), which come by prior. Nothing is approximated: a beam that follows
the trie names a catalogue item or does not exist. Immutable; a changed catalogue is a new trie.

How the arrays lie is the trie's own affair: others ask by node (`children`, `codes_of`, `parent`, `items_of`, ..), with
NumPy arrays of node numbers and what they get back is as long as what they ask. No question touches a whole array.

Shapes: I items in the trie, L levels, n_l nodes at depth l.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.errors import RankloomError
from rankloom.semantic.offsets import RUN, Integers, Offsets, narrowest

_NOTHING: Final = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Trie:
    """See the module's docstring. Build with `Trie.build`.

    Attributes:
        codebook_sizes: codes per level.
        codes: per depth 1..L, (n_l,) the last code of every node.
        offsets: per depth 0..L - 1 the children of its nodes, then the items of the leaves.
        leaf_items: (I,) catalogue rows, leaf after leaf.
    """

    codebook_sizes: tuple[int, ...]
    codes: tuple[Integers, ...]
    offsets: tuple[Offsets, ...]
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
        order, columns = _sorted(
            codes, codebook_sizes, chosen, None if prior is None else np.asarray(prior, np.float64)[chosen]
        )
        # rows that open a node of the depth at hand, and which of the nodes of that depth are first children
        opens = np.zeros(len(codes), dtype=np.bool_)
        opens[:1] = True
        offsets: list[Offsets] = []
        for level, column in enumerate(columns):
            above = opens.copy()
            opens[1:] |= column[1:] != column[:-1]
            if opens.all():
                first = above
            else:
                first, columns[level] = above[opens], column[opens]
            offsets.append(Offsets.of_root(len(first)) if level == 0 else Offsets.of_firsts(first))
        offsets.append(Offsets.of_firsts(opens))
        return cls(
            codebook_sizes=tuple(int(size) for size in codebook_sizes),
            codes=tuple(columns),
            offsets=tuple(offsets),
            leaf_items=torch.from_numpy(
                (order if rows is None else chosen[order]).astype(narrowest(int(chosen.max(initial=0))))
            ),
        )

    @property
    def n_levels(self) -> int:
        return len(self.codebook_sizes)

    @property
    def n_leaves(self) -> int:
        return len(self.codes[-1])

    @property
    def n_items(self) -> int:
        return len(self.leaf_items)

    def n_nodes(self, depth: int) -> int:
        """Nodes at a depth; depth 0 is the root."""
        return 1 if depth == 0 else len(self.codes[depth - 1])

    # -- asked of some nodes ---------------------------------------------------------------------------------------

    def children(self, level: int, node: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first child of nodes of depth `level`, and how many they have; children are neighbours."""
        begin, end = self.offsets[level].span(node)
        return begin, end - begin

    @cached_property
    def lying(self) -> tuple[tuple[Integers, Integers, NDArray[np.int64], int, Integers], ...]:
        """Per depth l < L the arrays themselves, for the compiled kernels: first children or the further ones, of which one
        is empty, runs of these and how many nodes a run has, and the children's codes."""
        return tuple(
            (
                _NOTHING if own.start is None else own.start,
                _NOTHING if own.further_parent is None else own.further_parent,
                own.runs, RUN, codes,
            )
            for own, codes in zip(self.offsets, self.codes, strict=False)
        )  # fmt: skip

    def codes_of(self, level: int, child: Integers) -> NDArray[np.int64]:
        """The codes of level `level` by which nodes of depth `level + 1` are reached."""
        return self.codes[level].take(child).astype(np.int64)

    def codes_of_ranges(self, level: int, begin: NDArray[np.int64], size: NDArray[np.int64]) -> Integers:
        """The codes of ranges of neighbours, one range after the other, of the trie's own type."""
        own = self.codes[level]
        ranges = zip(begin.tolist(), (begin + size).tolist(), strict=True)
        parts = [own[first:end] for first, end in ranges]
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else own[:0]

    def parent(self, level: int, child: Integers) -> NDArray[np.int64]:
        """The nodes of depth `level` that nodes of depth `level + 1` are children of."""
        return self.offsets[level].parent(child)

    def path(self, leaf: Integers) -> list[NDArray[np.int64]]:
        """Per depth 1..L the node above (at L: of) each leaf."""
        nodes = [leaf.astype(np.int64, copy=False)]
        for level in reversed(range(1, self.n_levels)):
            nodes.append(self.parent(level, nodes[-1]))
        return nodes[::-1]

    def places_of(self, leaf: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the items of leaves begin in `leaf_items`, and how many they have."""
        return self.children(self.n_levels, leaf)

    def n_items_under(self, depth: int, node: Integers) -> NDArray[np.int64]:
        """Catalogue items below nodes of a depth."""
        begin, end = self._places_under(depth, node)
        return end - begin

    def _places_under(self, depth: int, node: Integers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if not self.n_items:
            return np.zeros(len(node), np.int64), np.zeros(len(node), np.int64)
        first = last = node.astype(np.int64, copy=False)
        for offsets in self.offsets[depth:]:
            first, last = offsets.span(first)[0], offsets.span(last)[1] - 1
        return first, last + 1

    def items_of(self, leaf: int) -> Tensor:
        """Catalogue rows of one leaf, by prior."""
        return self.items_under(self.n_levels, leaf)

    def items_under(self, depth: int, node: int) -> Tensor:
        """Catalogue rows below a node."""
        begin, end = self._places_under(depth, np.array([node]))
        return self.leaf_items[int(begin[0]) : int(end[0])]

    def leaf_range(self, depth: int, node: int) -> tuple[int, int]:
        """The half-open range of leaves under a node."""
        first = last = np.array([node])
        for offsets in self.offsets[depth:-1]:
            first, last = offsets.span(first)[0], offsets.span(last)[1] - 1
        return int(first[0]), int(last[0]) + 1

    def node_of_prefix(self, prefix: Sequence[int]) -> int | None:
        """The node that a prefix of codes names, or None when no item starts with it."""
        node = 0
        for level, code in enumerate(prefix):
            begin, size = (int(own[0]) for own in self.children(level, np.array([node])))
            own = self.codes[level][begin : begin + size]
            place = int(np.searchsorted(own, code))
            if place >= size or int(own[place]) != code:
                return None
            node = begin + place
        return node

    # -- asked of the whole trie -----------------------------------------------------------------------------------

    def leaf_codes(self) -> Tensor:
        """(n_leaves, L) the semantic ID of every leaf, in order."""
        nodes = self.path(np.arange(self.n_leaves))
        return torch.from_numpy(np.stack([self.codes_of(level, own) for level, own in enumerate(nodes)], axis=1))

    def leaf_of_item(self, n_rows: int) -> Tensor:
        """(n_rows,) leaf of each catalogue row, -1 for rows that are not in the trie; as narrow as `leaf_items`."""
        leaf = np.full(n_rows, -1, dtype=narrowest(self.n_leaves))
        leaf[self.leaf_items.numpy()] = self.offsets[-1].parents()
        return torch.from_numpy(leaf)

    def ancestors(self) -> tuple[Tensor, ...]:
        """Per depth 1..L, (n_leaves,) the node of that depth above each leaf."""
        return tuple(torch.from_numpy(own) for own in self.path(np.arange(self.n_leaves)))

    def sums(self, value_I: NDArray[Any]) -> list[NDArray[Any]]:
        """Per depth 1..L, (n_l,) sums of the values of the items below each node; values in order of `leaf_items`."""
        out: list[NDArray[Any]] = []
        for offsets in self.offsets[:0:-1]:
            below = out[-1] if out else value_I
            # every node below the root has a child, as `reduceat` needs it
            out.append(np.add.reduceat(below, offsets.starts()[:-1], dtype=value_I.dtype) if len(below) else below)
        return out[::-1]

    @cached_property
    def child_start(self) -> tuple[Tensor, ...]:
        """Per depth l < L, (n_l + 1,) int64 first children, for training, which reads them in every step."""
        return tuple(torch.from_numpy(own.starts()) for own in self.offsets[:-1])

    @cached_property
    def child_code(self) -> tuple[Tensor, ...]:
        """Per depth l < L, (n_{l+1},) int64 codes of the children, likewise."""
        return tuple(torch.from_numpy(own.astype(np.int64)) for own in self.codes)

    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = sum(own.nbytes for own in (*self.codes, self.leaf_items.numpy()))
        return arrays + sum(own.nbytes() for own in self.offsets)


def _sorted(
    codes: Integers,
    codebook_sizes: Sequence[int],
    chosen: Integers,
    weight: NDArray[np.float64] | None,
) -> tuple[NDArray[np.int64], list[Integers]]:
    """(I,) the order of a trie (by codes, then higher weight, then catalogue row), and the codes of each level in it.

    Codes and place go into one integer where they fit, as they do for ten million IDs of three codes of 8192: one
    sort of integers is many times faster than one per level, and the sorted codes are read off the integers.
    """
    n = len(codes)
    # places by weight and row: what orders the items of one SID
    inner = None
    if weight is not None or not (chosen[1:] > chosen[:-1]).all():
        inner = np.lexsort((chosen,) if weight is None else (chosen, -weight))
    own = codes if inner is None else codes[inner]
    kinds = [np.min_scalar_type(int(size) - 1) for size in codebook_sizes]
    bits = [(int(size) - 1).bit_length() for size in codebook_sizes]
    place_bits = max(0, n - 1).bit_length()
    if sum(bits) + place_bits > 63:
        order = np.lexsort([own[:, level] for level in reversed(range(own.shape[1]))])
        columns = [own[order, level].astype(kind) for level, kind in enumerate(kinds)]
    else:
        key = np.zeros(n, dtype=np.int64)
        for level, width in enumerate(bits):
            key <<= width
            key |= own[:, level]
        key <<= place_bits
        key |= np.arange(n)
        key.sort()
        order = key & ((1 << place_bits) - 1)
        key >>= place_bits
        columns = []
        for width, kind in zip(reversed(bits), reversed(kinds), strict=True):
            columns.append((key & ((1 << width) - 1)).astype(kind))
            key >>= width
        columns.reverse()
    return np.asarray(order if inner is None else inner[order], dtype=np.int64), columns
