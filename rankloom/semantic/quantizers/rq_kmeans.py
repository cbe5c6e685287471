"""Residual-quantised K-means (OneRec technical report, tokenizer): each level clusters what the levels before left over.

Options: balanced clusters on chosen levels, and codebooks of any sizes (decreasing ones as in OneSearch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.kmeans import kmeans, nearest


class RQKMeans:
    """See the module's docstring.

    Args:
        codebook_sizes: codes per level, first level first.
        balanced_levels: levels with clusters of equal size; negative numbers count from the last.
    """

    def __init__(
        self, codebook_sizes: Sequence[int], *, balanced_levels: Sequence[int] = (), iterations: int = 25
    ) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        self.balanced = {level % len(self.codebook_sizes) for level in balanced_levels}
        self.iterations = iterations
        self.centroids: list[FloatArray] = []

    def fit(self, vectors: FloatArray, rng: np.random.Generator) -> CodeArray:
        residual = vectors.astype(np.float32)
        codes = np.zeros((len(vectors), len(self.codebook_sizes)), dtype=np.int32)
        self.centroids = []
        for level, size in enumerate(self.codebook_sizes):
            centroids, assignment = kmeans(
                residual, size, rng, iterations=self.iterations, balanced=level in self.balanced
            )
            self.centroids.append(centroids)
            codes[:, level] = assignment
            residual = residual - centroids[assignment]
        return codes

    def encode(self, vectors: FloatArray) -> CodeArray:
        residual = vectors.astype(np.float32)
        codes = np.zeros((len(vectors), len(self.codebook_sizes)), dtype=np.int32)
        for level, centroids in enumerate(self.centroids):
            assignment = nearest(residual, centroids)
            codes[:, level] = assignment
            residual = residual - centroids[assignment]
        return codes

    def decode(self, codes: CodeArray) -> FloatArray:
        total = np.zeros((len(codes), self.centroids[0].shape[1]), dtype=np.float32)
        for level, centroids in enumerate(self.centroids):
            total += centroids[codes[:, level]]
        return total

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {f"centroids.{level}": value for level, value in enumerate(self.centroids)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> RQKMeans:
        levels = [arrays[f"centroids.{level}"] for level in range(len(arrays))]
        own = cls([len(level) for level in levels])
        own.centroids = [level.astype(np.float32) for level in levels]
        return own


def codebook_sizes_for(n_items: int, n_levels: int = 3) -> tuple[int, ...]:
    """Sizes for a catalogue: a power of two near (400 x items)^(1/3), at least 8 and at most 8192 (OneRec).

    12,000 items give 256 a level: room for about a thousand times the catalogue, so that collisions stay few while each
    code keeps enough items to be learned.
    """
    root = (400 * max(1, n_items)) ** (1 / 3)
    size = int(2 ** np.clip(np.ceil(np.log2(root) - 0.25), 3, 13))
    return (size,) * n_levels
