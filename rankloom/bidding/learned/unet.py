"""A temporal U-Net over a day of states (Decision Diffuser's shape, as in DiffBid and CBD), small enough for one core.

Shapes: B days, P plan columns, T ticks (48: halved twice), C condition columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class _ResidualBlock(nn.Module):
    """Two convolutions along the day; diffusion step and condition scale and shift the middle (FiLM, Perez et al. 2018).

    A shift alone adds the same to every state; that a wish matters in some states and not in others (spending evenly asks for less after much
    was spent, for more after little) is a product of the two.
    """

    def __init__(self, inner: int, outer: int, embedding: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv_1 = nn.Conv1d(inner, outer, kernel, padding=kernel // 2)
        self.norm_1 = nn.GroupNorm(8, outer)
        self.conv_2 = nn.Conv1d(outer, outer, kernel, padding=kernel // 2)
        self.norm_2 = nn.GroupNorm(8, outer)
        self.scale_shift = nn.Linear(embedding, 2 * outer)
        self.skip = nn.Conv1d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x_BCT: Tensor, embedding_BE: Tensor) -> Tensor:
        scale_BC, shift_BC = self.scale_shift(embedding_BE).chunk(2, dim=-1)
        h = functional.silu(self.norm_1(self.conv_1(x_BCT))) * (1 + scale_BC)[..., None] + shift_BC[..., None]
        out: Tensor = functional.silu(self.norm_2(self.conv_2(h))) + self.skip(x_BCT)
        return out


class TemporalUNet(nn.Module):
    """(noised day, known mask, diffusion step, condition) -> day.

    Args:
        columns: plan columns P.
        condition: condition columns C.
        widths: channels at full, half and quarter length, multiples of 8 (CBD: 128, 256, 512).
    """

    def __init__(self, *, columns: int, condition: int, widths: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        if any(width % 8 for width in widths):
            raise ValueError(f"widths must be multiples of 8, not {list(widths)}")
        self.embedding = 2 * widths[0]
        self.step_mlp = nn.Sequential(
            nn.Linear(self.embedding, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding)
        )
        self.condition_mlp = nn.Sequential(
            nn.Linear(condition, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding)
        )
        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        inner = columns + 1
        for level, width in enumerate(widths):
            self.down.append(_ResidualBlock(inner, width, self.embedding))
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv1d(width, width, 3, stride=2, padding=1))
            inner = width
        self.middle = _ResidualBlock(inner, inner, self.embedding)
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for width in reversed(widths[:-1]):
            self.grow.append(nn.ConvTranspose1d(inner, width, 4, stride=2, padding=1))
            self.up.append(_ResidualBlock(2 * width, width, self.embedding))
            inner = width
        self.out = nn.Conv1d(inner, columns, 1)

    def forward(self, x_BTP: Tensor, known_BT: Tensor, step_B: Tensor, condition_BC: Tensor) -> Tensor:
        """Args: known_BT: 1 where x holds clean observed states. Returns (B, T, P)."""
        half = self.embedding // 2
        frequency = torch.exp(-math.log(10_000.0) * torch.arange(half) / (half - 1))
        angle_BE = step_B.float()[:, None] * frequency
        embedding_BE = functional.silu(
            self.step_mlp(torch.cat([angle_BE.sin(), angle_BE.cos()], dim=-1)) + self.condition_mlp(condition_BC)
        )
        h = torch.cat([x_BTP, known_BT[..., None]], dim=-1).transpose(1, 2)
        skips = []
        for level, block in enumerate(self.down):
            h = block(h, embedding_BE)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        h = self.middle(h, embedding_BE)
        for grow, block in zip(self.grow, self.up, strict=True):
            h = block(torch.cat([grow(h), skips.pop()], dim=1), embedding_BE)
        out: Tensor = self.out(h).transpose(1, 2)
        return out
