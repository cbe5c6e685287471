"""BM25, tuned, alone and with popularity: the floor that everyone checks first.

The index is bm25s (Lù 2024) on Snowball stems of title, brand and category. Shapes: B cases of a block, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.systems import DEPTH, ScoringSearch, Shelf, only_best
from rankloom.evaluation.search.words import Chinese, all_terms, optional, terms
from rankloom.evaluation.systems import FloatArray, seen_pairs

# the defaults of bm25s, Lucene's form of the score
DEFAULT_K1: Final = 1.5
DEFAULT_B: Final = 0.75
K1S: Final = (0.3, 0.9, 1.5, 2.5)
BS: Final = (0.0, 0.3, 0.6, 0.75, 0.9)
POPULARITIES: Final = (0.1, 0.25, 0.5, 1.0, 2.0, 4.0)


class Index:
    """BM25 scores of every item for a query.

    Args:
        corpus: terms of the items.
    """

    def __init__(self, corpus: Sequence[list[str]], k1: float, b: float, *, chinese: Chinese = "bigrams") -> None:
        self.chinese, self.n_items = chinese, len(corpus)
        self.engine: Any = optional("bm25s", "bm25s").BM25(k1=k1, b=b, method="lucene")
        self.engine.index(list(corpus), show_progress=False)
        self._kept: dict[str, FloatArray] = {}

    def scores(self, query: str) -> FloatArray:
        """(I,) float32, 0 where no term is shared. The last queries' scores are kept: many people type the same."""
        found = self._kept.get(query)
        if found is None:
            known = [term for term in terms(query, chinese=self.chinese) if term in self.engine.vocab_dict]
            found = np.zeros(self.n_items, np.float32)
            if known:
                found = np.asarray(self.engine.get_scores(known), dtype=np.float32)
            if len(self._kept) > 500:
                self._kept.clear()
            self._kept[query] = found
        return found


class BM25(ScoringSearch):
    """BM25 plus `popularity` times log(1 + TRAIN count), among the thousand best of BM25.

    Args:
        tuned: choose k1 and b, and the weight of popularity where one is given, for the MRR@10 of the VALID cases;
            otherwise those given.
    """

    def __init__(
        self,
        *,
        k1: float = DEFAULT_K1,
        b: float = DEFAULT_B,
        popularity: float = 0.0,
        tuned: bool = False,
        chinese: Chinese = "bigrams",
    ) -> None:
        self.k1, self.b, self.popularity, self.tuned, self.chinese = k1, b, popularity, tuned, chinese
        self.name = "bm25+popularity" if popularity else "bm25"
        self.variant = "tuned" if tuned else "default"

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Indexes the shelf; where `tuned` and there are VALID cases, chooses on them."""
        corpus = all_terms(shelf.texts, chinese=self.chinese)
        self.log_count_I = np.log1p(shelf.count_I).astype(np.float32)
        chosen = (self.k1, self.b, self.popularity)
        if self.tuned and len(valid):
            best = -1.0
            weights = POPULARITIES if self.popularity else (0.0,)
            for k1 in K1S:
                for b in BS:
                    index = Index(corpus, k1, b, chinese=self.chinese)
                    for weight, figure in zip(weights, _mrr(index, valid, weights, self.log_count_I), strict=True):
                        if figure > best:
                            best, chosen = figure, (k1, b, weight)
        self.k1, self.b, self.popularity = chosen
        self.index = Index(corpus, self.k1, self.b, chinese=self.chinese)

    def scores(self, asked: SearchCases, part: slice) -> FloatArray:
        score_BI = only_best(self.lexical(asked, part), DEPTH)
        if self.popularity:
            score_BI += self.popularity * self.log_count_I
        return score_BI

    def lexical(self, asked: SearchCases, part: slice) -> FloatArray:
        """(B, I) the index's scores, -inf where no term is shared."""
        score_BI = np.stack([self.index.scores(query) for query in asked.query[part]])
        score_BI[score_BI <= 0] = -np.inf
        return score_BI


def _mrr(
    index: Index, valid: SearchCases, weights: Sequence[float], log_count_I: FloatArray, *, k: int = 10
) -> list[float]:
    """MRR@k of the VALID cases for each weight of popularity."""
    total = np.zeros(len(weights))
    size = 256
    for begin in range(0, len(valid), size):
        part = slice(begin, begin + size)
        base_BI = np.stack([index.scores(query) for query in valid.query[part]])
        base_BI[base_BI <= 0] = -np.inf
        base_BI[seen_pairs(valid.sequences, valid.cases, part)] = -np.inf
        only_best(base_BI, DEPTH)
        target_B = valid.cases.target[part]
        for number, weight in enumerate(weights):
            score_BI = base_BI + weight * log_count_I
            own_B = np.take_along_axis(score_BI, target_B[:, None].astype(np.int64), 1)
            # equal scores count half: nothing is won by the order of item numbers
            rank_B = (score_BI > own_B).sum(1) + 0.5 * ((score_BI == own_B).sum(1) - 1)
            hit = np.isfinite(own_B[:, 0]) & (rank_B < k)
            total[number] += (hit / (rank_B + 1)).sum()
    return list(total / max(1, len(valid)))
