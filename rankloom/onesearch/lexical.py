"""What the words of a query say of an item: evidence for the reward model and its relevance.

For every (query, item): BM25 as a share of the most that the query's words could give, the same as a share of what the best
item of the catalogue gives, and the share of the query's weight (idf) that the title with its brand, and the category path,
have. Every word of the catalogue counts, not those alone that the generator has tokens for.

Shapes: Q queries, I items, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from rankloom.semantic.words import words

EVIDENCE: Final = ("bm25", "bm25 of the best", "title", "category")
K1: Final = 1.5
B: Final = 0.75
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Lexical:
    """
    Attributes:
        place: the column of each word.
        idf_V: what each word weighs.
        gain_IV: csr, what each word gives each item, at most 1 + K1, without its weight.
        title_IV, category_IV: csr of 0 and 1, who has a word there.
    """

    place: dict[str, int]
    idf_V: FloatArray
    gain_IV: sparse.csr_matrix
    title_IV: sparse.csr_matrix
    category_IV: sparse.csr_matrix

    @classmethod
    def of(cls, titles: Sequence[str], brands: Sequence[str], categories: Sequence[str]) -> Lexical:
        """The words of a catalogue."""
        title = [words(f"{own} {brand}") for own, brand in zip(titles, brands, strict=True)]
        category = [words(own) for own in categories]
        place: dict[str, int] = {}
        for own in (*title, *category):
            for word in own:
                place.setdefault(word, len(place))
        count_IV = _counts([a + b for a, b in zip(title, category, strict=True)], place)
        holders = np.bincount(count_IV.indices, minlength=len(place))
        length = np.asarray(count_IV.sum(1)).ravel()
        relative = length / max(float(length.mean()) if len(length) else 0.0, 1e-9)
        gain = count_IV.copy()
        row = np.repeat(np.arange(len(title)), np.diff(count_IV.indptr))
        gain.data = gain.data * (K1 + 1) / (gain.data + K1 * (1 - B + B * relative[row]))
        return cls(
            place,
            np.log1p(len(title) / (0.5 + holders)).astype(np.float32),
            gain,
            _counts(title, place, once=True),
            _counts(category, place, once=True),
        )

    def evidence(self, queries: Sequence[str]) -> FloatArray:
        """(Q, I, 4) in the order of `EVIDENCE`, each 0 to 1. A query of unknown words has zeros."""
        asked = _counts([words(query) for query in queries], self.place, once=True)
        weighted = asked @ sparse.diags(self.idf_V)
        total = np.asarray(weighted.sum(1))
        share = sparse.diags(1 / np.maximum(total.ravel(), 1e-9)) @ weighted
        bm25 = (share @ self.gain_IV.T).toarray() / (K1 + 1)
        best = bm25 / np.maximum(bm25.max(1, keepdims=True, initial=0), 1e-9)
        parts = (bm25, best, (share @ self.title_IV.T).toarray(), (share @ self.category_IV.T).toarray())
        return np.stack(parts, axis=2).astype(np.float32)


def _counts(texts: Sequence[Sequence[str]], place: dict[str, int], *, once: bool = False) -> sparse.csr_matrix:
    """(N, V) how often each text has each word; unknown words are left out."""
    known = [[place[word] for word in own if word in place] for own in texts]
    column = np.asarray([number for own in known for number in own], dtype=np.int64)
    row = np.repeat(np.arange(len(known)), [len(own) for own in known])
    out = sparse.csr_matrix((np.ones(len(column), np.float32), (row, column)), shape=(len(known), len(place)))
    out.sum_duplicates()
    if once:
        out.data[:] = 1.0
    return out
