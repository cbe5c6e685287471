"""Collaborative alignment: content vectors moved so that items used together lie together (OneRec TR, tokenizer).

A residual projection is trained with symmetric in-batch InfoNCE on item pairs from the training period, plus a
content-preserving loss (the cosine relations among a batch's items must stay what the content says), which also places
items that have no pairs. Frozen afterwards, so that a new item is aligned by the same function.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import AlignmentConfig
from rankloom.progress import Progress
from rankloom.semantic.khqe.losses import content_kept, in_batch_contrast
from rankloom.semantic.pairs import Pairs
from rankloom.semantic.quantizers.base import FloatArray


class Projection(nn.Module):
    """A linear map plus a gated two-layer correction, to unit vectors."""

    def __init__(self, source: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(source, dim, bias=False)
        self.hidden = nn.Linear(source, 2 * dim)
        self.correct = nn.Linear(2 * dim, dim)
        nn.init.orthogonal_(self.linear.weight)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.linear(x) + self.correct(F.gelu(self.hidden(x))), dim=-1)


class Aligner:
    """Fits the projection and applies it. `fit` on content vectors and pairs, then `transform` anything."""

    def __init__(self, source: int, config: AlignmentConfig, seed: int) -> None:
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.projection = Projection(source, config.dim)
        self.seed = seed

    def fit(self, content: FloatArray, pairs: Pairs, *, quiet: bool = False) -> FloatArray:
        """Trains on (i, j, weight) pairs; returns the (N, dim) aligned vectors of the content."""
        i, j, weight = pairs
        config = self.config
        x = torch.from_numpy(np.ascontiguousarray(content))
        if len(i) and config.epochs:
            rng = np.random.default_rng(self.seed)
            share = weight.astype(np.float64)
            share = share / share.sum()
            # half by strength, half evenly, so that the tail of the catalogue is aligned too
            share = 0.5 * share + 0.5 / len(share)
            per_epoch = max(1, min(len(i), 8 * len(content)) // config.batch_size)
            steps = config.epochs * per_epoch
            optimizer = torch.optim.AdamW(self.projection.parameters(), lr=config.learning_rate, weight_decay=1e-3)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            with Progress("aligning item vectors", steps, unit="steps", quiet=quiet) as progress:
                for _ in range(steps):
                    chosen = rng.choice(len(i), config.batch_size, p=share)
                    loss = self._loss(x, torch.from_numpy(i[chosen]), torch.from_numpy(j[chosen]))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
                    schedule.step()
                    progress.advance(note=f"loss {float(loss.detach()):.3f}")
        return self.transform(content)

    def _loss(self, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.projection(x[left]), self.projection(x[right])
        contrast = in_batch_contrast(a, b, left, right, self.config.temperature)
        total: Tensor = contrast + self.config.content_weight * content_kept(a, x[left])
        return total

    @torch.no_grad()
    def transform(self, content: FloatArray) -> FloatArray:
        """(N, dim) aligned unit vectors."""
        out: FloatArray = self.projection(torch.from_numpy(np.ascontiguousarray(content))).numpy()
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {name: value.numpy() for name, value in self.projection.state_dict().items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], config: AlignmentConfig) -> Aligner:
        own = cls(arrays["linear.weight"].shape[1], config, 0)
        own.projection.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in arrays.items()})
        return own
