"""Keyword fusion: e' = norm((1 - share) * e + share * mean of the keywords' vectors), OneSearch's equation with share 1/2.

Plain functions over vectors; the same for items and queries. The mean may be weighted (guard.py). A text without keywords, or
whose keywords all count 0, keeps its vector; a text without a vector of its own (zero) gets its keywords' mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FloatArray = NDArray[np.float32]


def weight_matrix(
    rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], n_keywords: int
) -> sparse.csr_matrix:
    """(N, K) sparse weights from each text's keywords."""
    starts = np.concatenate([[0], np.cumsum([len(own) for own in rows])]).astype(np.int64)
    columns = np.asarray([row for own in rows for row in own], dtype=np.int64)
    values = np.asarray([weight for own in weights for weight in own], dtype=np.float32)
    return sparse.csr_matrix((values, columns, starts), shape=(len(rows), n_keywords))


def fuse(
    vectors_ND: FloatArray, keyword_vectors_KD: FloatArray, weights_NK: sparse.csr_matrix, *, share: float = 0.5
) -> FloatArray:
    """(N, D) unit vectors of texts with their keywords.

    Args:
        vectors_ND: unit vectors of the texts, zero for one without.
        keyword_vectors_KD: unit vectors of the keywords.
        weights_NK: how much each keyword of a text counts, 0 or more; not stored is not there.
        share: of the keywords in the sum, 0 to 1; 0 leaves the vectors alone.
    """
    total_N = np.asarray(weights_NK.sum(1), dtype=np.float32).ravel()
    summed_ND = np.asarray(weights_NK @ keyword_vectors_KD, dtype=np.float32)
    mean_ND = np.divide(summed_ND, total_N[:, None], out=np.zeros_like(summed_ND), where=total_N[:, None] > 0)
    mixed_ND = (1 - share) * vectors_ND + share * mean_ND
    norm = np.linalg.norm(mixed_ND, axis=1, keepdims=True)
    unit_ND = np.divide(mixed_ND, norm, out=np.zeros_like(mixed_ND), where=norm > 1e-8)
    # without keywords, or with ones that the embedder does not know, the text speaks for itself
    has = (np.linalg.norm(mean_ND, axis=1) > 1e-8) & (norm[:, 0] > 1e-8) & (share > 0)
    fused: FloatArray = np.where(has[:, None], unit_ND, vectors_ND).astype(np.float32)
    return fused
