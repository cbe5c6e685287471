"""The behaviour-built user ID of OneSearch: two IDs made of what a person took, in place of a number that only hashes them.

For a history s_1 .. s_m, oldest first, with weights lambda_i = exp(sqrt i) / sum_t exp(sqrt t), each level of the ID is
ceil(sum_i lambda_i * code_i): once over the short history, once over the long one; ten tokens with five levels.

Averaging numbers of clusters has no geometric meaning: they are in no order. What comes out is a fingerprint, the same for
the same history. `centroid` is the form with a meaning: the weighted mean of the items' reconstructed vectors, quantised.
`hashed` is what the paper replaces and its ablation: codes drawn by a checksum of the person's id.

Shapes: B people, M places of a history (right-aligned, False where none), L levels.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

UidMode = Literal["behaviour", "hashed", "centroid", "none"]
Codes = NDArray[np.int64]


def recency_weights(real_BM: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(B, M) lambda_i of the real places, which sum to 1 (to 0 where there are none)."""
    place = np.where(real_BM, real_BM.cumsum(1), 0)
    # exp(sqrt 1000) is e^32: the largest is taken out first
    root = np.sqrt(place)
    weight = np.where(real_BM, np.exp(root - root.max(1, keepdims=True, initial=0)), 0.0)
    total: NDArray[np.float64] = weight / np.maximum(weight.sum(1, keepdims=True), 1e-300)
    return total


def behaviour_codes(code_BML: NDArray[Any], real_BM: NDArray[np.bool_]) -> Codes:
    """(B, L) the published form, -1 without a history."""
    mean = (recency_weights(real_BM)[:, :, None] * np.where(real_BM[:, :, None], code_BML, 0)).sum(1)
    # a mean of equal codes is that code: what rounding puts above it is cut off before the ceiling
    codes = np.ceil(mean - 1e-9).astype(np.int64)
    return np.where(real_BM.any(1, keepdims=True), codes, -1)


def centroid_codes(
    vector_BMA: NDArray[Any], real_BM: NDArray[np.bool_], encode: Callable[[NDArray[np.float32]], NDArray[Any]]
) -> Codes:
    """(B, L) codes of the weighted mean of reconstructed vectors, -1 without a history."""
    mean = (recency_weights(real_BM)[:, :, None] * np.where(real_BM[:, :, None], vector_BMA, 0)).sum(1)
    codes = encode(mean.astype(np.float32)).astype(np.int64)
    return np.where(real_BM.any(1, keepdims=True), codes, -1)


def hashed_codes(user_ids: Sequence[str], codebook_sizes: Sequence[int], *, salt: str = "") -> Codes:
    """(B, L) codes drawn by a checksum of the id: the same person, the same codes, whatever they do."""
    draws = [[zlib.crc32(f"{salt}{level}\t{user}".encode()) for level in range(len(codebook_sizes))] for user in user_ids]
    drawn = np.asarray(draws, dtype=np.int64).reshape(len(user_ids), len(codebook_sizes))
    return drawn % np.asarray(codebook_sizes, dtype=np.int64)
