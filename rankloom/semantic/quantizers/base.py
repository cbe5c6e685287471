"""What a quantiser is: vectors in, codes out, and its frozen parts as arrays.

A quantiser is one class in one file. Those that code whole vectors (RQ-KMeans, RQ-VAE) and those that code what others left
over (FSQ, OPQ) look the same from outside; `stack.ResidualStack` puts the second kind on top of the first, and
`registry.py` is the one place that knows all names.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rankloom.config import QuantizerConfig

FloatArray = NDArray[np.float32]
CodeArray = NDArray[np.int32]


class Quantizer(Protocol):
    """One or more levels of codes for (N, D) vectors.

    Attributes:
        codebook_sizes: codes per level, first level first.
    """

    codebook_sizes: tuple[int, ...]

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        """Learns the codebooks; returns the (N, L) codes of the vectors (balanced where asked)."""
        ...

    def encode(self, vectors: FloatArray) -> CodeArray:
        """(N, L) codes from the frozen codebooks, deterministic."""
        ...

    def decode(self, codes: CodeArray) -> FloatArray:
        """(N, D) reconstructions from the first l levels of (N, l) codes, 1 <= l <= L."""
        ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The frozen parts."""
        ...


class NamedQuantizer(Quantizer, Protocol):
    """A quantiser that a configuration can name (registry.py)."""

    @classmethod
    def from_config(cls, config: QuantizerConfig, n_items: int) -> Self:
        """An unfitted quantiser; sizes left to the program follow the catalogue's `n_items`."""
        ...

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        """The fitted quantiser that `arrays` described."""
        ...


def reconstruction_errors(quantizer: Quantizer, vectors: FloatArray, codes: CodeArray) -> list[float]:
    """Per depth l = 1..L, the squared error of decoding the first l codes over the vectors' squared distance to their mean.

    0 is exact; 1 is no better than answering the mean vector for every item.
    """
    total = float(((vectors - vectors.mean(0)) ** 2).sum(dtype=np.float64)) or 1.0
    errors = []
    for depth in range(1, codes.shape[1] + 1):
        left = vectors - quantizer.decode(codes[:, :depth])
        errors.append(float((left**2).sum(dtype=np.float64)) / total)
    return errors
