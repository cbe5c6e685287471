"""Optimised product quantisation of the last residual (OneSearch's RQ-OPQ: two codes of 256 after three residual levels).

A rotation turns the residual so that its subspaces can be quantised apart, then each subspace has a K-means codebook of its
own. Both are learned in turns (Ge et al. 2013, "Optimized Product Quantization"): codebooks for the rotation, then the
rotation for the codebooks (an orthogonal Procrustes problem), neither of which can raise the error. The start is the better
of no rotation (plain PQ) and principal axes dealt to subspaces of equal variance product (the paper's parametric solution).
Left out: asymmetric distance tables, which belong to retrieval and not to naming.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rankloom.config import QuantizerConfig
from rankloom.errors import RankloomError
from rankloom.progress import Progress
from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.quantizers.kmeans import kmeans, nearest
from rankloom.semantic.quantizers.sizes import opq_codes_for


class OPQ:
    """See the module's docstring.

    Args:
        n_subspaces: codes per vector, M.
        n_codes: codebook size of each.
        iterations: turns of learning rotation and codebooks; 0 is plain product quantisation.
    """

    def __init__(self, n_subspaces: int, n_codes: int, *, iterations: int = 20) -> None:
        self.codebook_sizes = (n_codes,) * n_subspaces
        self.iterations = iterations
        self.rotation: FloatArray = np.zeros((0, 0), dtype=np.float32)
        self.codebooks: list[FloatArray] = []

    @classmethod
    def from_config(cls, config: QuantizerConfig, n_items: int) -> Self:
        codes = config.opq_codes or opq_codes_for(n_items)
        return cls(config.opq_subspaces, codes, iterations=config.opq_iterations)

    def fit(self, vectors: FloatArray, rng: np.random.Generator, *, quiet: bool = False) -> CodeArray:
        """See `Quantizer.fit`.

        Raises:
            RankloomError: more subspaces than the vectors have dimensions.
        """
        width = vectors.shape[1]
        if len(self.codebook_sizes) > width:
            raise RankloomError(
                f"{len(self.codebook_sizes)} OPQ subspaces do not fit vectors of {width} numbers",
                place="quantizer.opq_subspaces",
                action=f"use at most {width}, or wider vectors (alignment.dim)",
                code="opq-subspaces",
            )
        vectors = vectors.astype(np.float32)
        starts = [np.eye(width, dtype=np.float32)]
        if self.iterations:
            starts.append(_principal_rotation(vectors, _widths(width, len(self.codebook_sizes))))
        with Progress(
            "fitting OPQ", len(starts) * len(self.codebook_sizes) + self.iterations, unit="steps", quiet=quiet
        ) as progress:
            best = np.inf
            for rotation in starts:
                codebooks = []
                for block, size in zip(self._split(vectors @ rotation), self.codebook_sizes, strict=True):
                    codebooks.append(kmeans(block, size, rng)[0])
                    progress.advance()
                error = _error(vectors @ rotation, codebooks)
                if error < best:
                    best, self.rotation, self.codebooks = error, rotation, codebooks
            for _ in range(self.iterations):
                rotated = vectors @ self.rotation
                left, _, right_t = np.linalg.svd(vectors.T @ _quantised(rotated, self.codebooks))
                self.rotation = np.ascontiguousarray(left @ right_t, dtype=np.float32)
                self.codebooks = [
                    kmeans(block, len(book), rng, iterations=3, start=book)[0]
                    for block, book in zip(self._split(vectors @ self.rotation), self.codebooks, strict=True)
                ]
                progress.advance()
        return self.encode(vectors)

    def encode(self, vectors: FloatArray) -> CodeArray:
        rotated = vectors.astype(np.float32) @ self.rotation
        blocks = self._split(rotated)
        codes = [nearest(block, book) for block, book in zip(blocks, self.codebooks, strict=True)]
        return np.stack(codes, axis=1).astype(np.int32)

    def decode(self, codes: CodeArray) -> FloatArray:
        width = len(self.rotation)
        rotated = np.zeros((len(codes), width), dtype=np.float32)
        for m, block in enumerate(self._split(rotated)[: codes.shape[1]]):
            block[:] = self.codebooks[m][codes[:, m]]
        out: FloatArray = rotated @ self.rotation.T
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {"rotation": self.rotation, **{f"codebooks.{m}": book for m, book in enumerate(self.codebooks)}}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> Self:
        books = [arrays[f"codebooks.{m}"].astype(np.float32) for m in range(len(arrays) - 1)]
        own = cls(len(books), len(books[0]))
        own.rotation, own.codebooks = arrays["rotation"].astype(np.float32), books
        return own

    def _split(self, rotated: FloatArray) -> list[FloatArray]:
        """Views of the subspaces, as even in width as can be."""
        return np.array_split(rotated, len(self.codebook_sizes), axis=1)


def _widths(width: int, parts: int) -> list[int]:
    return [width // parts + (part < width % parts) for part in range(parts)]


def _quantised(rotated: FloatArray, codebooks: Sequence[FloatArray]) -> FloatArray:
    blocks = np.array_split(rotated, len(codebooks), axis=1)
    return np.concatenate([book[nearest(block, book)] for block, book in zip(blocks, codebooks, strict=True)], axis=1)


def _error(rotated: FloatArray, codebooks: Sequence[FloatArray]) -> float:
    return float(((rotated - _quantised(rotated, codebooks)) ** 2).sum(dtype=np.float64))


def _principal_rotation(vectors: FloatArray, widths: Sequence[int]) -> FloatArray:
    """(D, D) principal axes, largest variance first to the subspace whose product of variances is smallest."""
    variances, axes = np.linalg.eigh(np.cov(vectors.T.astype(np.float64), bias=True).reshape(len(vectors.T), -1))
    groups: list[list[int]] = [[] for _ in widths]
    logs = np.zeros(len(widths))
    for axis in np.argsort(-variances, kind="stable"):
        full = np.array([len(group) == width for group, width in zip(groups, widths, strict=True)])
        chosen = int(np.where(full, np.inf, logs).argmin())
        groups[chosen].append(int(axis))
        logs[chosen] += np.log(max(variances[axis], 1e-12))
    order = [axis for group in groups for axis in group]
    return np.ascontiguousarray(axes[:, order], dtype=np.float32)
