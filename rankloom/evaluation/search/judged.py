"""Lists against graded pairs: NDCG, recall and hit rate of a query with several answers, over the whole catalogue.

What nobody judged counts as nothing (`trec_eval`'s rule), so figures are lower bounds where judging was shallow. A query for which
nothing is to be found counts 0 in NDCG, so that the mean is over all queries asked.

Shapes: Q queries, P judged pairs, K length of a list, G grades.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from rankloom.evaluation.systems import IntArray

UNJUDGED: Final = -1
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Judgements:
    """Graded pairs of Q queries, query by query.

    Attributes:
        offsets: (Q + 1,) int64; query q owns pairs offsets[q]:offsets[q + 1].
        item: (P,) int64, row of the catalogue, ascending within a query.
        grade: (P,) int64, 0 (irrelevant) and up.
    """

    offsets: NDArray[np.int64]
    item: NDArray[np.int64]
    grade: NDArray[np.int64]

    @classmethod
    def of(cls, query_P: Any, item_P: Any, grade_P: Any, n_queries: int) -> Judgements:
        """From pairs in any order; a pair that comes several times keeps its best grade."""
        query, item, grade = (np.asarray(own, dtype=np.int64) for own in (query_P, item_P, grade_P))
        order = np.lexsort((-grade, item, query))
        query, item, grade = query[order], item[order], grade[order]
        first = np.ones(len(query), dtype=bool)
        first[1:] = (query[1:] != query[:-1]) | (item[1:] != item[:-1])
        counts = np.bincount(query[first], minlength=n_queries)
        return cls(np.r_[0, np.cumsum(counts)].astype(np.int64), item[first], grade[first])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def query(self) -> NDArray[np.int64]:
        """(P,) the query of each pair."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, places: NDArray[Any]) -> Judgements:
        """The pairs of some queries, numbered in the order of `places`."""
        length = np.diff(self.offsets)[places]
        offsets = np.r_[0, np.cumsum(length)].astype(np.int64)
        rows = np.repeat(self.offsets[places] - offsets[:-1], length) + np.arange(offsets[-1])
        return Judgements(offsets, self.item[rows], self.grade[rows])

    def at_least(self, grade: int) -> NDArray[np.int64]:
        """(Q,) pairs of each query with this grade or a better one."""
        return np.bincount(self.query[self.grade >= grade], minlength=len(self))

    def grades(self, lists_QK: IntArray) -> NDArray[np.int64]:
        """(Q, K) the grade of what is listed; `UNJUDGED` where nobody judged it, where the list ends, and where an item comes again."""
        width = int(max(self.item.max(initial=0), lists_QK.max(initial=0))) + 1
        key_P = self.query * width + self.item
        key_QK = np.arange(len(self))[:, None] * width + lists_QK
        at = np.minimum(np.searchsorted(key_P, key_QK), max(0, len(key_P) - 1))
        if not len(key_P):
            return np.full(lists_QK.shape, UNJUDGED, dtype=np.int64)
        found = np.where((key_P[at] == key_QK) & (lists_QK >= 0), self.grade[at], UNJUDGED)
        found[_again(lists_QK)] = UNJUDGED
        return found


def ndcg(lists_QK: IntArray, judged: Judgements, gain_G: Sequence[float], k: int) -> FloatArray:
    """(Q,) DCG of the first k over the best that the judged pairs allow; 0 where they allow none.

    Args:
        gain_G: what each grade is worth, grade 0 first.
    """
    gains = np.asarray(gain_G, dtype=np.float64)
    discount = 1 / np.log2(np.arange(2, k + 2))
    grade_QK = judged.grades(lists_QK[:, :k])
    found = np.where(grade_QK >= 0, gains[np.maximum(grade_QK, 0)], 0.0)
    reached = found @ discount[: found.shape[1]]
    # the best list: a query's gains in falling order, the first k of them
    query, worth = judged.query, gains[judged.grade]
    order = np.lexsort((-worth, query))
    place = np.arange(len(order)) - np.repeat(judged.offsets[:-1], np.diff(judged.offsets))
    kept = place < k
    best = np.bincount(query[order][kept], weights=worth[order][kept] * discount[place[kept]], minlength=len(judged))
    out: FloatArray = np.divide(reached, best, out=np.zeros(len(judged)), where=best > 0)
    return out


def recall(lists_QK: IntArray, judged: Judgements, least: int, k: int) -> FloatArray:
    """(Q,) share of a query's pairs of grade `least` or better that are among the first k; 0 where it has none."""
    total = judged.at_least(least)
    hits = (judged.grades(lists_QK[:, :k]) >= least).sum(1)
    out: FloatArray = np.divide(hits, total, out=np.zeros(len(judged)), where=total > 0)
    return out


def hit_rate(lists_QK: IntArray, judged: Judgements, least: int, k: int) -> FloatArray:
    """(Q,) 1 where anything of grade `least` or better is among the first k."""
    right_QK: NDArray[np.bool_] = judged.grades(lists_QK[:, :k]) >= least
    out: FloatArray = np.any(right_QK, axis=1).astype(np.float64)
    return out


def folds(n: int, n_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """(n,) the fold of each query, of sizes that differ by at most one, drawn once."""
    drawn: NDArray[np.int64] = np.random.default_rng(seed).permutation(n) % n_folds
    return drawn


def _again(lists_QK: IntArray) -> NDArray[np.bool_]:
    """(Q, K) places whose item stands further up too."""
    order = np.argsort(lists_QK, axis=1, kind="stable")
    ordered = np.take_along_axis(lists_QK, order, 1)
    same = np.zeros(lists_QK.shape, dtype=bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    out = np.zeros(lists_QK.shape, dtype=bool)
    np.put_along_axis(out, order, same, 1)
    return out
