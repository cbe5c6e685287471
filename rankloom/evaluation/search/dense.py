"""Nearest sentence vectors, and their reciprocal rank fusion with BM25: what a shop would run without training anything.

Shapes: B cases of a block, I items, D width of vectors.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.lexical import BM25
from rankloom.evaluation.search.systems import DEPTH, ScoringSearch, Shelf, places
from rankloom.evaluation.systems import FloatArray
from rankloom.semantic.minilm import SentenceEmbedder
from rankloom.semantic.text import TextEmbedder

_FUSION: Final = 60.0  # Cormack et al. 2009


class Dense(ScoringSearch):
    """Cosine of the query and the item's title, brand and category in a pretrained space, over the whole catalogue.

    Args:
        embedder: MiniLM where None. Vectors are kept, so one `Dense` serves several kinds of queries.
    """

    def __init__(self, embedder: TextEmbedder | None = None, *, name: str = "minilm") -> None:
        self.embedder = embedder or SentenceEmbedder("minilm")
        self.name = name
        self.vector_ID: FloatArray | None = None
        self._of_query: dict[str, FloatArray] = {}

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Embeds the shelf once; nothing is tuned."""
        if self.vector_ID is None:
            self.vector_ID = self.embedder.fit(list(shelf.texts), seed)

    def scores(self, asked: SearchCases, part: slice) -> FloatArray:
        assert self.vector_ID is not None
        queries = asked.query[part]
        fresh = [query for query in dict.fromkeys(asked.query) if query not in self._of_query]
        if fresh:
            self._of_query.update(zip(fresh, self.embedder.embed(fresh), strict=True))
        query_BD = np.stack([self._of_query[query] for query in queries])
        score_BI: FloatArray = (query_BD @ self.vector_ID.T).astype(np.float32)
        return score_BI


class Fusion(ScoringSearch):
    """Reciprocal rank fusion of BM25 and dense retrieval, the thousand best of each."""

    name = "rrf"

    def __init__(self, lexical: BM25, dense: Dense) -> None:
        self.lexical, self.dense = lexical, dense
        self.variant = f"{lexical.variant} {lexical.name} and {dense.name}"

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """The parts are fitted already."""

    def scores(self, asked: SearchCases, part: slice) -> FloatArray:
        total: FloatArray | None = None
        for system in (self.lexical, self.dense):
            score_BI = system.scores(asked, part)
            place_BI = places(score_BI)
            own = np.where((place_BI < DEPTH) & np.isfinite(score_BI), 1 / (_FUSION + 1 + place_BI), 0)
            total = own if total is None else total + own
        assert total is not None
        return np.where(total > 0, total, -np.inf).astype(np.float32)
