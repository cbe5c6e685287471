"""Semantic IDs of queries: the seam between this package and whatever encodes queries.

A query's text goes through the tokenizer's own encoder, alignment and quantiser. Where the tokenizer was trained with KHQE
(`khqe.enabled`) these know queries and items alike, as in the paper; else the query is read as if it were an item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rankloom.semantic.quantizers.base import CodeArray, FloatArray
from rankloom.semantic.tokenizer import Tokenizer

QueryEncoder = Callable[[Sequence[str]], tuple[FloatArray, CodeArray]]
"""Texts to (N, A) vectors in the space that was quantised, and (N, L) codes."""


def item_encoder(tokenizer: Tokenizer) -> QueryEncoder:
    """Queries through the encoder of items."""

    def encode(texts: Sequence[str]) -> tuple[FloatArray, CodeArray]:
        width, levels = tokenizer.aligned.shape[1], tokenizer.semantic_ids.n_levels
        if not texts:
            return np.zeros((0, width), np.float32), np.zeros((0, levels), np.int32)
        vectors = tokenizer.query_vectors(list(texts), "aligned")
        return vectors, tokenizer.quantizer.encode(vectors)

    return encode
