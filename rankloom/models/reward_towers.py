"""OneSearch's reward model: three towers, CTR, CVR and CTCVR, on what the generator itself reads of a person and a query.

After SIM (Pi et al. 2020): the candidate attends over the person's history, of which the items nearest to the query are
searched out first (the caller does that). Not the thousands of features of a ranker: query, history, profile of the person,
and the item with its vector and how often it was taken. What is said of the pair (cosines, words, counts) comes as a few
scalars. A shared bottom, then one small network a tower.

    R = l1 CTR + l2 CVR + l3 CTCVR + l4 * 10 * relevance

Shapes: B contexts, M candidates of one, H items of a history, A width of vectors, E width inside, F scalars, T words of a profile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import Section

TOWERS: Final = ("ctr", "cvr", "ctcvr")


class TowerConfig(Section):
    """Sizes of the reward model."""

    width: int = Field(default=32, ge=4)
    hidden: int = Field(default=64, ge=4)
    dropout: float = Field(default=0.1, ge=0, lt=1)


@dataclass
class RewardInput:
    """
    Attributes:
        query_BA: the query's vector.
        user_BA: recency-weighted mean of the history's vectors.
        history_BHA, real_BH: vectors of the searched-out history.
        item_BMA: the candidates' vectors.
        scalar_BMF: what is said of the pair, by words, vectors and counts.
        profile_BT: tokens of the person's profile, 0 for none; None where nobody has one.
    """

    query_BA: Tensor
    user_BA: Tensor
    history_BHA: Tensor
    real_BH: Tensor
    item_BMA: Tensor
    scalar_BMF: Tensor
    profile_BT: Tensor | None = None


class RewardTowers(nn.Module):
    """(B, M, 3) logits. See the module's docstring.

    Args:
        n_scalars: F.
        n_tokens: tokens that a profile may hold, 0 where nobody has one.
    """

    def __init__(self, config: TowerConfig, vector_dim: int, *, n_scalars: int, n_tokens: int = 0) -> None:
        super().__init__()
        self.config = config
        width, hidden = config.width, config.hidden
        self.query = nn.Linear(vector_dim, width, bias=False)
        self.user = nn.Linear(vector_dim, width, bias=False)
        self.item = nn.Linear(vector_dim, width, bias=False)
        self.key = nn.Linear(vector_dim, width, bias=False)
        self.bottom = nn.Sequential(
            nn.Linear(7 * width + n_scalars, hidden), nn.LeakyReLU(), nn.Dropout(config.dropout)
        )
        self.towers = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, hidden // 2), nn.LeakyReLU(), nn.Linear(hidden // 2, 1)) for _ in TOWERS
        )
        # the scalars also reach each tower directly: a linear ranker is the least that it can be
        self.direct = nn.Linear(n_scalars, len(TOWERS), bias=False)
        nn.init.zeros_(self.direct.weight)
        self.profile = nn.EmbeddingBag(n_tokens, width, mode="mean", padding_idx=0) if n_tokens else None

    def forward(self, own: RewardInput) -> Tensor:
        item_BME = self.item(own.item_BMA)
        n_candidates = item_BME.shape[1]
        query_BME = self.query(own.query_BA)[:, None].expand(-1, n_candidates, -1)
        user_BE = self.user(own.user_BA)
        if self.profile is not None and own.profile_BT is not None:
            user_BE = user_BE + self.profile(own.profile_BT)
        user_BME = user_BE[:, None].expand(-1, n_candidates, -1)
        key_BHE = self.key(own.history_BHA)
        score = item_BME @ key_BHE.transpose(1, 2) / math.sqrt(key_BHE.shape[-1])
        score = score.masked_fill(~own.real_BH[:, None], torch.finfo(score.dtype).min)
        interest_BME = torch.softmax(score, -1) @ key_BHE
        interest_BME = torch.where(own.real_BH.any(1)[:, None, None], interest_BME, 0.0)
        parts = [
            item_BME, query_BME, user_BME, interest_BME, item_BME * query_BME, item_BME * user_BME, item_BME * interest_BME,
            own.scalar_BMF,
        ]  # fmt: skip
        shared = self.bottom(torch.cat(parts, -1))
        return torch.cat([tower(shared) for tower in self.towers], -1) + self.direct(own.scalar_BMF)  # type: ignore[no-any-return]


def tower_loss(logit_BM3: Tensor, clicked_BM: Tensor, ordered_BM: Tensor, shown_BM: Tensor) -> Tensor:
    """Sum of three cross-entropies: clicks and orders among what was shown (or drawn as if), orders among clicks."""
    labels = (clicked_BM, ordered_BM, ordered_BM)
    inside = (shown_BM, clicked_BM, shown_BM)
    total = logit_BM3.new_zeros(())
    for tower, (label, seen) in enumerate(zip(labels, inside, strict=True)):
        if bool(seen.any()):
            total = total + F.binary_cross_entropy_with_logits(logit_BM3[..., tower][seen], label[seen].float())
    return total


def joined_reward(
    logit_BM3: Tensor, relevance_BM: Tensor, weights: tuple[float, float, float, float], relevance_times: float = 10.0
) -> Tensor:
    """(B, M) R of the module's docstring."""
    probability = torch.sigmoid(logit_BM3)
    behaviour = (probability * probability.new_tensor(weights[:3])).sum(-1)
    return behaviour + relevance_times * weights[3] * relevance_BM
