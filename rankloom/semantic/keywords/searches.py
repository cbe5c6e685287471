"""Keywords from the log: words of queries that led to takes of items that hold them.

A word that people type and whose results they take is one that matters to them; a word that is only in titles may be there
to be found. Takes are those of the training period alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rankloom.data.sequences import TRAIN, Sequences
from rankloom.semantic.keywords.folding import Folded, fold
from rankloom.semantic.keywords.phrases import may_be_phrase, phrases_of
from rankloom.semantic.keywords.segmentation import Segmenter


@dataclass(slots=True)
class SearchedTerms:
    """Attributes:
    takes: term -> takes that a query with it led to, of items that hold it.
    whole: those of them whose query was the term alone.
    groups: (term, group) -> takes of that group's items.
    """

    takes: Counter[str] = field(default_factory=Counter)
    whole: Counter[str] = field(default_factory=Counter)
    groups: Counter[tuple[str, int]] = field(default_factory=Counter)


def training_searches(sequences: Sequences) -> Counter[tuple[str, int]]:
    """(query, catalogue row) -> takes in the training period."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    pairs = zip(sequences.query[rows].tolist(), sequences.item[rows].tolist(), strict=True)
    return Counter((sequences.queries[query], item) for query, item in pairs)


def mine_searches(
    searches: Counter[tuple[str, int]],
    item_texts: Sequence[Folded],
    group_of_item: NDArray[np.int32],
    segmenter: Segmenter,
    *,
    max_words: int = 3,
) -> SearchedTerms:
    """What the log says of the words and phrases of its queries.

    Args:
        searches: (query, item) -> takes.
        item_texts: I folded texts of title and columns, in which a term has to stand.
    """
    found = SearchedTerms()
    terms_of: dict[str, tuple[str, set[str]]] = {}
    for (query, item), takes in searches.items():
        if query not in terms_of:
            folded = fold(query)
            own = phrases_of(folded, segmenter, max_words)
            if may_be_phrase(folded.text) and folded.text.count(" ") < max_words:
                own.add(folded.text)
            terms_of[query] = (folded.text, own)
        whole, terms = terms_of[query]
        for term in terms:
            if not holds(item_texts[item], term):
                continue
            found.takes[term] += takes
            found.groups[term, int(group_of_item[item])] += takes
            if term == whole:
                found.whole[term] += takes
    return found


def holds(text: Folded, term: str) -> bool:
    """Whether `term` stands in `text` as words of their own."""
    at = text.text.find(term)
    while at >= 0:
        if text.boundary(at) and text.boundary(at + len(term)):
            return True
        at = text.text.find(term, at + 1)
    return False
