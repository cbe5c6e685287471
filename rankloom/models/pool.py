"""The history in the space of item vectors: what the user's state starts from.

The lazy decoder meets the history only through cross-attention, so it has to learn from data alone that somebody who
took something may take something like it. Here this is where it starts: each head is a recency-weighted mean of the item
vectors of the visible history, normed and scaled per dimension, and a query stands beside it as an item made of its
words. The sum is added to the selection query (so that taste starts as a dot product of the items taken and the item
asked about, as in models that tie input and output embeddings: SASRec, GRU4Rec) and, projected, to BOS.

    pool = sum_h s_h * RMS(sum_k w_hk g_h[kind_k] z_k) + s_q * RMS(z_query),   w_h = softmax_k(recency_h[age_k] + kind_h[kind_k])

It costs one weighted sum of the history a request, whatever the beam.

Shapes: B users, P places of the history, T targets, R queries, D width of item vectors, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rankloom.data.schema import EVENT_KINDS
from rankloom.models.context import ContextBatch

# how fast a head forgets at the start of training, per step back
_FORGETTING = (2.0, 0.5, 0.15, 0.03)


class HistoryPool(nn.Module):
    """See the module's docstring.

    Args:
        dim: width of item vectors.
        max_history: places a target sees at most.
    """

    def __init__(self, dim: int, *, max_history: int) -> None:
        super().__init__()
        heads = len(_FORGETTING)
        self.max_history = max_history
        age = torch.arange(max_history, dtype=torch.float32)
        self.recency = nn.Parameter(-torch.tensor(_FORGETTING)[:, None] * age[None])
        self.kind = nn.Parameter(torch.zeros(heads, len(EVENT_KINDS)))
        self.gate = nn.Parameter(torch.ones(heads, len(EVENT_KINDS)))
        self.scale = nn.Parameter(torch.full((heads, dim), 1.0 / heads))
        self.query_scale = nn.Parameter(torch.ones(dim))

    def forward(
        self, batch: ContextBatch, item_BPD: Tensor, place_BT: Tensor, query_BRD: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) pools of targets at the given places; a target at place t sees the interactions before it.

        Args:
            item_BPD: vectors of `batch.item_BT`.
            query_BRD: queries as item vectors; a target reads the one that is its own (`query_from_BQ` equal to its place).
        """
        places = item_BPD.shape[1]
        age_BTP = place_BT[:, :, None] - 1 - torch.arange(places, device=place_BT.device)
        seen = (age_BTP >= 0) & (age_BTP < self.max_history) & (batch.item_BT >= 0)[:, None]
        age_BTP = age_BTP.clamp(0, self.max_history - 1)
        pool = item_BPD.new_zeros(*place_BT.shape, item_BPD.shape[-1])
        for head in range(len(self.scale)):
            weight = self.recency[head][age_BTP] + self.kind[head][batch.kind_BT][:, None]
            weight = torch.softmax(weight.masked_fill(~seen, -1e9), dim=-1) * seen
            weight = weight * self.gate[head][batch.kind_BT][:, None]
            pool = pool + self.scale[head] * _rms(weight.to(item_BPD.dtype) @ item_BPD)
        if query_BRD is not None and batch.query_from_BQ is not None:
            own = batch.query_from_BQ[:, None] == place_BT[:, :, None]
            pool = pool + self.query_scale * _rms(own.to(query_BRD.dtype) @ query_BRD)
        return pool

    def last(self, batch: ContextBatch, item_BPD: Tensor, query_BRD: Tensor | None = None) -> Tensor:
        """(B, D) pools of the targets right after the histories, all heads at once: what serving asks for."""
        age_BP = batch.length_B[:, None] - 1 - torch.arange(item_BPD.shape[1], device=item_BPD.device)
        seen = (age_BP >= 0) & (age_BP < self.max_history) & (batch.item_BT >= 0)
        weight_HBP = self.recency[:, age_BP.clamp(0, self.max_history - 1)] + self.kind[:, batch.kind_BT]
        weight_HBP = torch.softmax(weight_HBP.masked_fill(~seen, -1e9), dim=-1) * seen * self.gate[:, batch.kind_BT]
        mean_BHD = weight_HBP.transpose(0, 1).to(item_BPD.dtype) @ item_BPD
        pool = (self.scale * _rms(mean_BHD)).sum(1)
        asked = self.asked(batch, query_BRD)
        return pool if asked is None else pool + asked

    def asked(self, batch: ContextBatch, query_BRD: Tensor | None) -> Tensor | None:
        """(B, D) what the queries of those targets add; None without queries."""
        if query_BRD is None or batch.query_from_BQ is None:
            return None
        own = batch.query_from_BQ[:, None] == batch.length_B[:, None, None]
        return (self.query_scale * _rms(own.to(query_BRD.dtype) @ query_BRD))[:, 0]


def _rms(x: Tensor) -> Tensor:
    """Unit root mean square; nothing stays nothing."""
    return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-8).to(x.dtype)
