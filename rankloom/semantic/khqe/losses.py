"""The losses of the aligned encoder (OneSearch, arXiv 2509.03236, KHQE): three contrasts, a margin of ranks, relevance.

    L = w1 L_q2q + w2 L_i2i + w3 L_q2i + w4 L_rank + w5 L_rel

The paper names the five and what each is for; its weights, margin and temperature are not published and are settings here
(`khqe`, `alignment`). Plain functions of unit vectors. Shapes: B pairs or triples of a batch, D width of vectors.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

_NEVER: Final = -1e9


def in_batch_contrast(left_BD: Tensor, right_BD: Tensor, left_B: Tensor, right_B: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE: each pair against the other rights of the batch, and against the other lefts.

    Args:
        left_B: who the left of each pair is. The same one elsewhere in the batch is no negative; likewise `right_B`.
    """
    logits = left_BD @ right_BD.T / temperature
    same = (right_B[:, None] == right_B[None]) | (left_B[:, None] == left_B[None])
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, _NEVER)
    target = torch.arange(len(left_B))
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def content_kept(aligned_BD: Tensor, content_BC: Tensor) -> Tensor:
    """How far the cosines among a batch have moved from those before alignment. Not in OneSearch: keeps what has no pairs in place."""
    kept: Tensor = F.mse_loss(aligned_BD @ aligned_BD.T, content_BC @ content_BC.T) * len(aligned_BD) ** 0.5
    return kept


def rank_margin(query_BD: Tensor, better_BD: Tensor, worse_BD: Tensor, steps_B: Tensor, margin: float) -> Tensor:
    """Mean of max(0, margin * steps - (cos(query, better) - cos(query, worse))): show < click < order for one query.

    Args:
        steps_B: how many levels lie between the two, 1 or 2.
    """
    ahead = (query_BD * better_BD).sum(1) - (query_BD * worse_BD).sum(1)
    return F.relu(margin * steps_B - ahead).mean()


def relevance_fit(query_BD: Tensor, item_BD: Tensor, score_B: Tensor, slope: Tensor, middle: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(slope * (cos - middle)) against a relevance score.

    Args:
        score_B: 0 (irrelevant) to 1.
        slope, middle: what turns a cosine into a relevance; learned beside the encoder, and not needed after it.
    """
    cosine_B = (query_BD * item_BD).sum(1)
    return F.binary_cross_entropy_with_logits(slope * (cosine_B - middle), score_B)
