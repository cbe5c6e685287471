"""A finite scalar quantisation level on the last residual (OneMall: two residual K-means levels, then a learned FSQ level).

A small network projects the residual to a few dimensions; each is bounded and rounded to a fixed number of values, and the
mixed-radix number of the roundings is the code (Mentzer et al. 2023, "Finite Scalar Quantization"). There is no codebook to
learn, hence none to collapse; encoder and decoder are trained on reconstruction through a straight-through rounding. Both are
a linear map plus a two-layer correction; the linear maps start at principal axes scaled to use all values and at their least
squares inverse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from rankloom.config import QuantizerConfig
from rankloom.progress import Progress
from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.sizes import batch_size_for, fsq_levels_for
from rankloom.semantic.quantizers.straight_through import straight_through

_BLOCK = 16_384


def bound(z_ND: Tensor, levels_D: Tensor) -> Tensor:
    """Squashes each dimension so that rounding gives exactly its number of values, about zero (even numbers lean down)."""
    half = (levels_D - 1) * (1 + 1e-3) / 2
    offset = torch.where(levels_D % 2 == 0, 0.5, 0.0)
    return torch.tanh(z_ND + torch.atanh(offset / half)) * half - offset


def scalar_quantise(z_ND: Tensor, levels_D: Tensor) -> Tensor:
    """(N, D) whole numbers -floor(L / 2) .. ceil(L / 2) - 1, with the gradient of `bound`."""
    bounded = bound(z_ND, levels_D)
    return straight_through(bounded, bounded.round())


class _Corrected(nn.Module):
    """A linear map plus a two-layer correction that starts at zero."""

    def __init__(self, source: int, hidden: int, target: int) -> None:
        super().__init__()
        self.linear = nn.Linear(source, target)
        self.inner = nn.Linear(source, hidden)
        self.outer = nn.Linear(hidden, target)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.outer(F.silu(self.inner(x)))
        return out


class _Net(nn.Module):
    """Residual to dimensions and back."""

    def __init__(self, width: int, hidden: int, n_dims: int) -> None:
        super().__init__()
        self.encoder = _Corrected(width, hidden, n_dims)
        self.decoder = _Corrected(n_dims, hidden, width)


class FSQ:
    """See the module's docstring.

    Args:
        levels: values per dimension, each at least 2; their product is the codebook size of the one level.
        hidden: width of the corrections.
        epochs: of training, at least 0 (only the linear start).
        learning_rate: of Adam at its highest.
    """

    def __init__(
        self, levels: Sequence[int], *, hidden: int = 128, epochs: int = 60, learning_rate: float = 2e-3
    ) -> None:
        self.levels = tuple(levels)
        self.codebook_sizes: tuple[int, ...] = (math.prod(self.levels),)
        self.hidden = hidden
        self.epochs = epochs
        self.learning_rate = learning_rate
        self._levels_D = torch.tensor(self.levels)
        self.scale = 1.0
        self._fitted: _Net | None = None

    @classmethod
    def from_config(cls, config: QuantizerConfig, n_items: int) -> Self:
        return cls(config.fsq_levels or fsq_levels_for(n_items), hidden=config.fsq_hidden, epochs=config.fsq_epochs)

    @property
    def _net(self) -> _Net:
        assert self._fitted is not None, "fit or from_arrays first"
        return self._fitted

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        # the loss and the learning rate should not depend on how small the residual is
        self.scale = float(np.sqrt((vectors**2).mean(dtype=np.float64))) or 1.0
        x_NV = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32)) / self.scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            self._fitted = self._fresh(x_NV.shape[1])
        self._start(x_NV)
        size = batch_size_for(len(x_NV))
        per_epoch = math.ceil(len(x_NV) / size)
        steps = self.epochs * per_epoch
        if steps:
            optimizer = torch.optim.Adam(self._net.parameters(), lr=self.learning_rate)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            with Progress("fitting FSQ", steps, unit="steps", quiet=quiet) as progress:
                for _ in range(self.epochs):
                    for rows in torch.split(torch.from_numpy(rng.permutation(len(x_NV))), size):
                        batch = x_NV[rows]
                        digits = scalar_quantise(self._net.encoder(batch), self._levels_D)
                        loss = F.mse_loss(self._net.decoder(self._unit(digits)), batch)
                        optimizer.zero_grad()
                        torch.autograd.backward(loss)
                        optimizer.step()
                        schedule.step()
                        progress.advance(note=f"loss {float(loss.detach()):.3f}")
        return self.encode(vectors)

    @torch.no_grad()
    def encode(self, vectors: FloatArray) -> CodeArray:
        codes = np.zeros((len(vectors), 1), dtype=np.int32)
        radix = torch.tensor([math.prod(self.levels[:d]) for d in range(len(self.levels))])
        for begin in range(0, len(vectors), _BLOCK):
            part = np.ascontiguousarray(vectors[begin : begin + _BLOCK], dtype=np.float32)
            digits = scalar_quantise(self._net.encoder(torch.from_numpy(part) / self.scale), self._levels_D)
            shifted = digits.long() + self._levels_D // 2
            codes[begin : begin + _BLOCK, 0] = (shifted * radix).sum(1).numpy()
        return codes

    @torch.no_grad()
    def decode(self, codes: CodeArray) -> FloatArray:
        rest = torch.from_numpy(codes[:, 0].astype(np.int64))
        digits = []
        for size in self.levels:
            digits.append(rest % size - size // 2)
            rest = rest // size
        unit = self._unit(torch.stack(digits, dim=1).float())
        out: FloatArray = (self._net.decoder(unit) * self.scale).numpy()
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            "levels": np.asarray(self.levels, dtype=np.int32),
            "scale": np.asarray([self.scale], dtype=np.float64),
            **{name: value.numpy() for name, value in self._net.state_dict().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        hidden, source = arrays["encoder.inner.weight"].shape
        own = cls([int(size) for size in arrays["levels"]], hidden=hidden)
        own.scale = float(arrays["scale"][0])
        own._fitted = own._fresh(source)
        weights = {name: value for name, value in arrays.items() if name not in ("levels", "scale")}
        own._net.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
        return own

    def _fresh(self, width: int) -> _Net:
        return _Net(width, self.hidden, len(self.levels))

    def _unit(self, digits_ND: Tensor) -> Tensor:
        """Digits scaled to about -1 .. 1."""
        return digits_ND / (self._levels_D // 2)

    @torch.no_grad()
    def _start(self, x_NV: Tensor) -> None:
        mean = x_NV.mean(0)
        _, spread, axes_t = torch.linalg.svd(x_NV - mean, full_matrices=False)
        n = min(len(self.levels), len(spread))
        deviation = (spread[:n] / math.sqrt(len(x_NV))).clamp_min(1e-6)
        encoder, decoder = self._net.encoder.linear, self._net.decoder.linear
        # tanh(0.85 z) is nearly the distribution function of a normal z, so all values are used about equally
        encoder.weight[:n] = 0.85 * axes_t[:n] / deviation[:, None]
        encoder.bias.copy_(-(encoder.weight @ mean))
        digits = self._unit(scalar_quantise(encoder(x_NV), self._levels_D))
        design = torch.cat([digits, torch.ones(len(digits), 1)], dim=1)
        solved = torch.linalg.lstsq(design, x_NV, driver="gelsd").solution
        decoder.weight.copy_(solved[:-1].T)
        decoder.bias.copy_(solved[-1])
