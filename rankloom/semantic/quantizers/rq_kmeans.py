"""Residual-quantised K-means (OneRec technical report, tokenizer): each level clusters what the levels before left over.

Options: balanced clusters on chosen levels (every level as in the OneRec paper, or the last alone as in OneSearch), and
codebooks of any sizes (decreasing ones as in OneSearch). New vectors always take the nearest centroid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankloom.config import QuantizerConfig
from rankloom.progress import Progress
from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.kmeans import kmeans, nearest
from rankloom.semantic.quantizers.sizes import codebook_sizes_for


class RQKMeans:
    """See the module's docstring.

    Args:
        codebook_sizes: codes per level, first level first.
        balanced_levels: levels with clusters of equal size; negative numbers count from the last.
        iterations: of Lloyd's algorithm per level, at most.
    """

    def __init__(
        self, codebook_sizes: Sequence[int], *, balanced_levels: Sequence[int] = (), iterations: int = 25
    ) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        self.balanced = {level % len(self.codebook_sizes) for level in balanced_levels}
        self.iterations = iterations
        self.centroids: list[FloatArray] = []

    @classmethod
    def from_config(cls, config: QuantizerConfig, n_items: int) -> Self:
        sizes = config.codebook_sizes or codebook_sizes_for(n_items, config.n_levels, decreasing=config.decreasing)
        return cls(sizes, balanced_levels=config.balanced_levels, iterations=config.iterations)

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        residual = vectors.astype(np.float32)
        codes = np.zeros((len(vectors), len(self.codebook_sizes)), dtype=np.int32)
        self.centroids = []
        with Progress("fitting residual K-means", len(self.codebook_sizes), unit="levels", quiet=quiet) as progress:
            for level, size in enumerate(self.codebook_sizes):
                centroids, assignment = kmeans(
                    residual, size, rng, iterations=self.iterations, balanced=level in self.balanced
                )
                self.centroids.append(centroids)
                codes[:, level] = assignment
                residual = residual - centroids[assignment]
                progress.advance()
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
        for level in range(codes.shape[1]):
            total += self.centroids[level][codes[:, level]]
        return total

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {f"centroids.{level}": value for level, value in enumerate(self.centroids)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        levels = [arrays[f"centroids.{level}"] for level in range(len(arrays))]
        own = cls([len(level) for level in levels])
        own.centroids = [level.astype(np.float32) for level in levels]
        return own
