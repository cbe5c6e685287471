"""The Q-Former that turns a long history into a few soft tokens (OneSearch section on multi-view behaviour; BLIP-2's module).

Of every item of a behaviour's history the centroids of its residual levels are taken and summed level by level, so that
three behaviours of three levels are nine vectors, however long the history is. A few learned queries read those nine by
self-attention among themselves, cross-attention and a feed-forward layer; what they hold afterwards stands in the prompt.

The paper sums. A plain sum grows with the history, so it is divided by the count (`mean`) or its root (`sqrt`, the
default: long histories stay distinguishable from short ones); `sum` is the paper's. Summation and projection commute, so
the centroids are projected once and looked up afterwards.

Shapes: B requests, S behaviours, H items of a history, R residual levels, A width of centroids, D model width, N soft tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.models.layers import GatedFFN, RMSNorm

Scale = Literal["sum", "mean", "sqrt"]
BEHAVIOURS = ("click", "order", "rsu")


class CentroidSums(nn.Module):
    """(B, S, R, D) projected per-level sums of the centroids of the histories' items.

    Args:
        centroids: per residual level (K, A) centroids, kept as they are.
        dim: D.
        scale: what the sum over n items is divided by: 1, n or the root of n.
    """

    def __init__(self, centroids: Sequence[Tensor], dim: int, *, scale: Scale = "sqrt") -> None:
        super().__init__()
        self.scale = scale
        self.n_levels = len(centroids)
        for level, own in enumerate(centroids):
            self.register_buffer(f"centroids_{level}", own.float())
        # one projection for all levels: they live in one space
        self.project = nn.Linear(centroids[0].shape[1], dim, bias=False)

    def forward(self, code_BSHR: Tensor, real_BSH: Tensor) -> Tensor:
        """
        Args:
            code_BSHR: codes of the items, anything where `real_BSH` is False.
        """
        batch, behaviours, length, _ = code_BSHR.shape
        count_BS = real_BSH.sum(-1)
        weight = real_BSH.float()
        if self.scale != "sum":
            count = count_BS.clamp_min(1).float()
            weight = weight / (count if self.scale == "mean" else count.sqrt())[..., None]
        flat_weight = weight.reshape(batch * behaviours, length)
        levels = []
        for level in range(self.n_levels):
            table_KD = self.project(getattr(self, f"centroids_{level}"))
            code = code_BSHR[..., level].reshape(batch * behaviours, length)
            levels.append(F.embedding_bag(code, table_KD, mode="sum", per_sample_weights=flat_weight))
        return torch.stack(levels, dim=1).view(batch, behaviours, self.n_levels, -1)


class QFormer(nn.Module):
    """(B, N, D) soft tokens of (B, S, R, D) sums. See the module's docstring."""

    def __init__(self, dim: int, *, n_soft: int, n_heads: int, n_behaviours: int, n_levels: int, n_layers: int = 1) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_soft, dim) * 0.02)
        self.behaviour = nn.Parameter(torch.randn(n_behaviours, 1, dim) * 0.02)
        self.level = nn.Parameter(torch.randn(1, n_levels, dim) * 0.02)
        self.layers = nn.ModuleList(_QFormerLayer(dim, n_heads) for _ in range(n_layers))
        self.norm = RMSNorm(dim)

    def forward(self, sum_BSRD: Tensor, has_BS: Tensor) -> Tensor:
        """
        Args:
            has_BS: which behaviours have a history; nothing is read of the others. Without any, the tokens are what the
                queries say by themselves.
        """
        batch, behaviours, levels, dim = sum_BSRD.shape
        memory_BMD = (sum_BSRD + self.behaviour + self.level).reshape(batch, behaviours * levels, dim)
        visible_BM = has_BS[:, :, None].expand(batch, behaviours, levels).reshape(batch, -1)
        x_BND = self.queries.expand(batch, -1, -1)
        for layer in self.layers:
            x_BND = layer(x_BND, memory_BMD, visible_BM)
        return self.norm(x_BND)  # type: ignore[no-any-return]


class _QFormerLayer(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.memory_norm, self.ffn_norm = (RMSNorm(dim) for _ in range(4))
        self.own = Attention(dim, n_heads)
        self.cross = Attention(dim, n_heads)
        self.ffn = GatedFFN(dim, 2 * dim)

    def forward(self, x_BND: Tensor, memory_BMD: Tensor, visible_BM: Tensor) -> Tensor:
        normed = self.self_norm(x_BND)
        x_BND = x_BND + self.own(normed, normed)
        crossed = self.cross(self.cross_norm(x_BND), self.memory_norm(memory_BMD), visible_BM)
        # softmax over nothing: a person without any history adds nothing
        x_BND = x_BND + torch.where(visible_BM.any(1)[:, None, None], crossed, 0.0)
        return x_BND + self.ffn(self.ffn_norm(x_BND))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention of (B, N, D) over (B, M, D), with a mask over what is read."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def keys(self, memory_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """(B, H, M, E) keys and values of what is read."""
        batch, length, dim = memory_BMD.shape
        own = self.key_value(memory_BMD).view(batch, length, 2, self.n_heads, dim // self.n_heads)
        key, value = own.permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def read(self, x_BND: Tensor, key_BHME: Tensor, value_BHME: Tensor, visible_BM: Tensor | None = None) -> Tensor:
        """(B, N, D) what N readers take from ready keys and values."""
        batch, readers, dim = x_BND.shape
        query = self.query(x_BND).view(batch, readers, self.n_heads, -1).transpose(1, 2)
        score = query @ key_BHME.transpose(-1, -2) / math.sqrt(query.shape[-1])
        if visible_BM is not None:
            # a very small number and not -inf: a row that sees nothing stays finite
            score = score.masked_fill(~visible_BM[:, None, None], torch.finfo(score.dtype).min)
        mixed = torch.softmax(score, dim=-1) @ value_BHME
        return self.out(mixed.transpose(1, 2).reshape(batch, readers, dim))  # type: ignore[no-any-return]

    def forward(self, x_BND: Tensor, memory_BMD: Tensor, visible_BM: Tensor | None = None) -> Tensor:
        return self.read(x_BND, *self.keys(memory_BMD), visible_BM)
