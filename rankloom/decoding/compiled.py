"""One level of the beam search by compiled kernels: what `_continuations` and `_best` of beam.py do, request by request.

The kernels (frontier_kernels.py) never spell out the children of all beams. Where they cannot answer, because a model's
logits are no numbers, nothing is returned and the eager way answers.

Shapes: B requests, W beams, K codes, P beams of the next level.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rankloom.decoding import frontier_kernels as kernels
from rankloom.decoding.children import Indices, Next, Scores
from rankloom.decoding.exposure import Lift
from rankloom.decoding.masks import RequestMasks
from rankloom.decoding.memory import EVIDENCE, Guide
from rankloom.semantic.trie import Trie

_NO_INDICES: Final = np.zeros(0, np.int64)
_NO_AMOUNTS: Final = np.zeros(0, np.float64)
_NO_COUNTS: Final = np.zeros(0, np.int32)
_NO_NAMES: Final = (_NO_INDICES, _NO_INDICES, _NO_AMOUNTS, _NO_INDICES, _NO_AMOUNTS)
_NO_FLOATS: Final = np.zeros(0, np.float32)
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
    logits_BWK: Scores,
    beam_B: Indices,
    masks: RequestMasks,
    *,
    over_children: bool,
    guide: Guide | None,
    lift: Lift | None,
) -> Next | None:
    """The best legal continuations; None where the logits have no log-softmax.

    Args:
        logits_BWK: of the next code.
        over_children: normalise over the trie's children and not over the codebook.
    """
    batch = len(node_BW)
    beams = beam_B.tolist()
    most = max(1, min(max(beams, default=1), trie.n_nodes(level + 1)))
    # node, parent and code of one request lie together
    out_B3P, score_BP = np.empty((batch, 3, most), np.int64), np.empty((batch, most), np.float32)
    lying = trie.lying[level]
    wide = 1
    for b in range(batch):
        counts = masks.unique[masks.which_B[b]].counts
        named, parent, amount, above, above_amount = _NO_NAMES
        if guide is not None:
            named, parent, amount = guide.named(level + 1, b)
            above, _, above_amount = guide.named(level, b)
        shift = _NO_FLOATS if lift is None else lift.nodes[level].numpy()[int(lift.moment_B[b])]
        found = kernels.extend(
            logits_BWK[b], node_BW[b], score_BW[b], *lying, over_children, shift,
            _NO_COUNTS if counts is None else counts[level], masks.blocked(level + 1, b), named, parent, amount, above, above_amount,
            0.0 if guide is None else guide.share, EVIDENCE, min(beams[b], most), out_B3P[b], score_BP[b],
        )  # fmt: skip
        if found < 0:
            return None
        wide = max(wide, found)
    if wide < most:
        out_B3P, score_BP = out_B3P[:, :, :wide], np.ascontiguousarray(score_BP[:, :wide])
    node_BP, parent_BP, code_BP = (np.ascontiguousarray(out_B3P[:, row]) for row in range(3))
    return Next(node_BP, parent_BP, code_BP, score_BP)
