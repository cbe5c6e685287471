"""The children of the beams of a level as one flat list, beam after beam, of which only what is asked for is spelled out.

A beam of ten million items has a hundred thousand children at a level, of which a few hundred matter: those that survive,
those that the memory names, those that a request excludes. So the list is kept by beam (where its children begin in the
trie, how many there are); a place in the list is looked up, and a node of the trie finds its place.

Shapes: B requests, W beams, N living (request, beam) pairs, C children of them, P asked for, M named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.offsets import Integers
from rankloom.semantic.trie import Trie

Indices = NDArray[np.int64]
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Named:
    """Some nodes of one depth, named for one request each: (M,) ascending pairs and the nodes' parents."""

    request_M: Indices
    node_M: Indices
    parent_M: Indices

    def of(self, request: int) -> Named:
        """Those of one request."""
        if not len(self.node_M):
            return self
        own = self.range(request)
        return Named(self.request_M[own], self.node_M[own], self.parent_M[own])

    def range(self, request: int) -> slice:
        """The places of one request's."""
        first, last = self.request_M.searchsorted((request, request + 1)).tolist()
        return slice(first, last)


@dataclass
class Next:
    """(B, P) beams of the next level, each request's best first: -1 (parents and codes 0, scores -inf) where it has fewer."""

    node_BP: Indices
    parent_BP: Indices
    code_BP: Indices
    score_BP: Scores


class Children:
    """See the module's docstring.

    Args:
        level: of the codes that lead to the children, from 0.
        node_BW: nodes of depth `level`, -1 for beams that do not exist.
    """

    def __init__(self, trie: Trie, level: int, node_BW: Indices) -> None:
        self.trie, self.level = trie, level
        node = node_BW.reshape(-1)
        self.batch, self.width = node_BW.shape
        self.pair_N = np.flatnonzero(node >= 0)
        self.node_N = node[self.pair_N]
        self.request_N = self.pair_N // self.width
        self.begin_N, self.size_N = trie.children(level, self.node_N)
        end = self.size_N.cumsum()
        self.first_N = end - self.size_N
        self.total = int(end[-1]) if len(end) else 0

    def codes(self) -> Integers:
        """(C,) the code of every child, in the trie's own type."""
        return self.trie.codes_of_ranges(self.level, self.begin_N, self.size_N)

    def spread(self, value_N: NDArray[Any]) -> NDArray[Any]:
        """(C,) each pair's value for all of its children."""
        return np.repeat(value_N, self.size_N)

    def counts(self) -> Indices:
        """(B,) children of each request."""
        return np.bincount(self.request_N, weights=self.size_N, minlength=self.batch).astype(np.int64)

    def owner(self, place_P: Indices) -> Indices:
        """(P,) which of the N pairs the children at these places of the list belong to."""
        return self.first_N.searchsorted(place_P, "right") - 1

    def nodes(self) -> Indices:
        """(C,) the node of depth `level + 1` of every child."""
        return self.spread(self.begin_N - self.first_N) + np.arange(self.total)

    def find(self, named: Named) -> tuple[Indices, Indices, Indices]:
        """Which of the named nodes of depth `level + 1` are in the list, the pairs they belong to, and their places."""
        n_nodes = self.trie.n_nodes(self.level)
        parent_M = named.request_M * n_nodes + named.parent_M
        key_N = self.request_N * n_nodes + self.node_N
        begin_N = parent_M.searchsorted(key_N)
        size_N = parent_M.searchsorted(key_N, "right") - begin_N
        owner = np.repeat(np.arange(len(key_N)), size_N)
        which = np.repeat(begin_N - size_N.cumsum() + size_N, size_N) + np.arange(len(owner))
        return which, owner, named.node_M[which] + (self.first_N - self.begin_N)[owner]


def runs(*keys_M: Indices) -> NDArray[np.bool_]:
    """(M,) where a run of equal keys begins."""
    first = np.zeros(len(keys_M[0]), dtype=np.bool_)
    first[:1] = True
    for key in keys_M:
        first[1:] |= key[1:] != key[:-1]
    return first
