"""Residual levels with one more stage on what they leave over: RQ + FSQ (OneMall), RQ + OPQ (OneSearch)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.quantizers.base import CodeArray, FloatArray, Quantizer


class ResidualStack:
    """`last` quantises the residual x - base.decode(base.encode(x)); the codes stand side by side.

    `base` may be balanced: the residual at the fit is that of the codes that the items were given.
    """

    def __init__(self, base: Quantizer, last: Quantizer) -> None:
        self.base = base
        self.last = last
        self.codebook_sizes = (*base.codebook_sizes, *last.codebook_sizes)

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        first = self.base.fit(vectors, rng, quiet=quiet)
        last = self.last.fit(vectors - self.base.decode(first), rng, quiet=quiet)
        return np.concatenate([first, last], axis=1)

    def encode(self, vectors: FloatArray) -> CodeArray:
        first = self.base.encode(vectors)
        return np.concatenate([first, self.last.encode(vectors - self.base.decode(first))], axis=1)

    def decode(self, codes: CodeArray) -> FloatArray:
        n_base = len(self.base.codebook_sizes)
        out = self.base.decode(codes[:, :n_base])
        return out + self.last.decode(codes[:, n_base:]) if codes.shape[1] > n_base else out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {
            f"{name}.{key}": value
            for name, part in (("base", self.base), ("last", self.last))
            for key, value in part.arrays().items()
        }
