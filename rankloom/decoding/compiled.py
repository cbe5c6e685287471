"""One level of the beam search by compiled kernels: what `_continuations` and `_best` of beam.py do, request by request.

The kernels (frontier_kernels.py) never spell out the children of all beams. Where they cannot answer, because a model's
logits are no numbers, nothing is returned and the eager way answers.

Shapes: B requests, W beams, K codes, P beams of the next level.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from torch import Tensor

from rankloom.decoding import frontier_kernels as kernels
from rankloom.decoding.children import Indices, Next, Scores
from rankloom.decoding.exposure import Lift
from rankloom.decoding.masks import RequestMasks
from rankloom.decoding.memory import EVIDENCE, Guide
from rankloom.semantic.trie import Trie

_NO_INDICES: Final = np.zeros(0, np.int64)
_NO_COUNTS: Final = np.zeros(0, np.int32)
_NO_FLOATS: Final = np.zeros(0, np.float32)
_NO_AMOUNTS: Final = np.zeros(0, np.float64)
_MOST_NODES: Final = 2**32
"""Nodes of a depth that the kernels' keys can tell apart."""


def serves(trie: Trie) -> bool:
    """Whether the kernels can tell the nodes of a trie apart."""
    return max(trie.n_nodes(depth) for depth in range(trie.n_levels + 1)) < _MOST_NODES


def advance(
    trie: Trie,
    level: int,
    node_BW: Indices,
    score_BW: Scores,
    logits_BWK: Tensor,
    beam_B: Indices,
    masks: RequestMasks,
    *,
    over_children: bool,
    guide: Guide | None,
    lift: Lift | None,
) -> Next | None:
    """The best legal continuations; None where the logits have no log-softmax.

    Args:
        logits_BWK: float32.
        over_children: normalise over the trie's children and not over the codebook.
    """
    batch, width = node_BW.shape
    logits = np.ascontiguousarray(logits_BWK.numpy())
    log_sum = np.empty((batch, width), np.float32)
    top = np.empty((batch, width), np.float32)
    rows = logits.reshape(batch * width, -1)
    if not kernels.normalisers(rows, log_sum.reshape(-1), top.reshape(-1), over_children):
        return None
    begin, end = trie.spans(level, node_BW)
    most = max(1, min(int(beam_B.max(initial=1)), trie.n_nodes(level + 1)))
    node = np.full((batch, most), -1, np.int64)
    parent = np.zeros((batch, most), np.int64)
    code = np.full((batch, most), -1, np.int64)
    score = np.full((batch, most), -np.inf, np.float32)
    wide = 1
    for b in range(batch):
        own = min(int(beam_B[b]), most)
        counts = masks.unique[masks.which_B[b]].counts
        named: tuple[Any, ...] = (_NO_INDICES, _NO_INDICES, _NO_AMOUNTS, _NO_INDICES, _NO_AMOUNTS)
        if guide is not None:
            names, parents, amounts = guide.named(level + 1, b)
            above, _, above_amounts = guide.named(level, b)
            named = (names, parents, amounts, above, above_amounts)
        shift = _NO_FLOATS if lift is None else lift.nodes[level].numpy()[int(lift.moment_B[b])]
        found = kernels.extend(
            logits[b], log_sum[b], top[b], node_BW[b], score_BW[b], begin[b], end[b], trie.codes[level], over_children,
            shift, _NO_COUNTS if counts is None else counts[level], masks.blocked(level + 1, b), *named,
            0.0 if guide is None else guide.share, EVIDENCE,
            node[b, :own], parent[b, :own], code[b, :own], score[b, :own],
        )  # fmt: skip
        wide = max(wide, found)
    if wide == most:
        return Next(node, parent, code, score)
    return Next(*(np.ascontiguousarray(own[:, :wide]) for own in (node, parent, code, score)))
