"""What the words of a query say of an item: evidence for the reward model, and the relevance S_rel of PARS.

For every (query, item): BM25 as a share of the most that the query's words could give, the same as a share of what the best
item of the catalogue gives, and the share of the query's weight (idf) that the title with its brand, and the category path,
have. Every word of the catalogue counts, not those alone that the generator has tokens for. A word of the query that no item
has weighs as the rarest would, and nothing covers it.

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
        unknown: what a word weighs that no item has.
        gain_IV: csr, what each word gives each item, at most 1 + K1, without its weight.
        title_IV, category_IV, has_IV: csr of 0 and 1, who has a word in title or brand, in the category path, in any.
    """

    place: dict[str, int]
    idf_V: FloatArray
    unknown: float
    gain_IV: sparse.csr_matrix
    title_IV: sparse.csr_matrix
    category_IV: sparse.csr_matrix
    has_IV: sparse.csr_matrix

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
            float(np.log1p(len(title) / 0.5)),
            gain,
            _counts(title, place, once=True),
            _counts(category, place, once=True),
            count_IV.sign(),
        )

    def evidence(self, queries: Sequence[str]) -> FloatArray:
        """(Q, I, 4) in the order of `EVIDENCE`, each 0 to 1. A query of unknown words has zeros."""
        share = self._shares(queries)
        bm25 = (share @ self.gain_IV.T).toarray() / (K1 + 1)
        best = bm25 / np.maximum(bm25.max(1, keepdims=True, initial=0), 1e-9)
        parts = (bm25, best, (share @ self.title_IV.T).toarray(), (share @ self.category_IV.T).toarray())
        return np.stack(parts, axis=2).astype(np.float32)

    def coverage(self, queries: Sequence[str]) -> FloatArray:
        """(Q, I) the share of a query's weight that an item has in its title, brand or category path, 0 to 1: S_rel by words.

        The paper's relevance comes from a language model's judgements; a file of graded labels may take this place.
        """
        return np.asarray((self._shares(queries) @ self.has_IV.T).toarray(), dtype=np.float32)

    def _shares(self, queries: Sequence[str]) -> sparse.csr_matrix:
        """(Q, V) the share of each query's weight that each known word of it has; the rest is of unknown words."""
        asked = [set(words(query)) for query in queries]
        weighted = _counts([sorted(own) for own in asked], self.place) @ sparse.diags(self.idf_V)
        strange = np.asarray([sum(word not in self.place for word in own) for own in asked], dtype=np.float64)
        total = np.asarray(weighted.sum(1)).ravel() + strange * self.unknown
        return sparse.csr_matrix(sparse.diags(1 / np.maximum(total, 1e-9)) @ weighted)


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
