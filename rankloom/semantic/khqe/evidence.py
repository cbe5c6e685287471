"""What words and vectors say of a query and a text, as numbers: the joined evidence of a relevance model (teacher.py).

Three views of the words: of the segmenter (jieba for Chinese, needs the extra `search`), pairs of neighbouring characters
(semantic/words.py), single characters. For each: the share of the query's weight that the text covers, the share of the text's
that the query covers, and BM25 as a share of the most that the query could get. Beside them: the longest stretch of the query
that the text has as it stands, where it begins, numbers that both name, lengths, and any cosines that the caller gives.

Shapes: P pairs, F features.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from rankloom.semantic.keywords.segmentation import Segmenter
from rankloom.semantic.words import words

FloatArray = NDArray[np.float32]
View = Callable[[str], list[str]]
_K1: Final = 0.9
_B: Final = 0.4
_NUMBERS: Final = re.compile(r"\d+(?:\.\d+)?")
_VIEWS: Final = ("word", "pair", "character")
NAMES: Final = (
    *(f"{view}_{name}" for view in _VIEWS for name in ("covered", "said", "bm25")),
    "stretch", "whole", "begins", "numbers", "query_length", "text_length",
)  # fmt: skip
"""Of the features, in their order; cosines given by the caller come after."""


class Evidence:
    """See the module's docstring. Fitted on texts alone, without labels.

    Args:
        segmenter: cuts the words; jieba's own dictionary where None.
    """

    def __init__(self, segmenter: Segmenter | None = None) -> None:
        own = segmenter or Segmenter()
        self.views: tuple[View, ...] = (
            lambda text: [text[start:end] for start, end in own.words(text)],
            words,
            lambda text: [letter for letter in text if letter.isalnum()],
        )
        self.holders: tuple[Counter[str], ...] = ()
        self.n_texts = 0
        self.mean_length: tuple[float, ...] = ()
        self._kept: dict[str, tuple[Counter[str], ...]] = {}

    def fit(self, texts: Sequence[str]) -> Evidence:
        """Counts in how many texts a word stands; returns itself."""
        cut = [self._cut(fold(text)) for text in dict.fromkeys(texts)]
        self.n_texts = len(cut)
        self.holders = tuple(Counter(word for own in cut for word in own[view]) for view in range(len(self.views)))
        self.mean_length = tuple(
            max(1.0, float(np.mean([own[view].total() for own in cut]))) if cut else 1.0 for view in range(len(self.views))
        )
        return self

    def __call__(self, queries: Sequence[str], texts: Sequence[str], cosines: Sequence[FloatArray] = ()) -> FloatArray:
        """(P, F) features of pairs, the cosines last.

        Args:
            cosines: (P,) each, such as those of the aligned encoder.
        """
        rows = [self._row(fold(query), fold(text)) for query, text in zip(queries, texts, strict=True)]
        plain = np.asarray(rows, dtype=np.float32).reshape(len(rows), len(NAMES))
        return np.concatenate([plain, *(own[:, None] for own in cosines)], axis=1)

    def _row(self, query: str, text: str) -> list[float]:
        out: list[float] = []
        for view, (asked, has) in enumerate(zip(self._cut(query), self._cut(text), strict=True)):
            rare = {word: self._rarity(view, word) for word in asked | has}
            shared = [word for word in asked if word in has]
            whole = sum(rare[word] for word in asked) or 1.0
            length = 1 - _B + _B * has.total() / self.mean_length[view]
            gained = sum(rare[word] * has[word] * (_K1 + 1) / (has[word] + _K1 * length) for word in shared)
            out += [
                sum(rare[word] for word in shared) / whole,
                sum(rare[word] for word in shared) / (sum(rare[word] for word in has) or 1.0),
                gained / whole / (_K1 + 1),
            ]
        stretch, begins = _longest_shared(query, text)
        numbers = set(_NUMBERS.findall(query))
        out += [
            stretch / max(1, len(query)),
            float(query in text),
            begins / max(1, len(text)),
            len(numbers & set(_NUMBERS.findall(text))) / len(numbers) if numbers else 1.0,
            float(len(query)),
            float(len(text)),
        ]
        return out

    def _rarity(self, view: int, word: str) -> float:
        return float(np.log1p(self.n_texts / (0.5 + self.holders[view][word])))

    def _cut(self, text: str) -> tuple[Counter[str], ...]:
        found = self._kept.get(text)
        if found is None:
            found = tuple(Counter(view(text)) for view in self.views)
            if len(self._kept) > 100_000:
                self._kept.clear()
            self._kept[text] = found
        return found


def fold(text: str) -> str:
    """NFKC, lower case."""
    return unicodedata.normalize("NFKC", text).lower()


def _longest_shared(query: str, text: str) -> tuple[int, int]:
    """Length of the longest stretch of `query` that stands in `text`, and where it begins there."""
    best, place = 0, len(text)
    for start in range(len(query)):
        while start + best < len(query):
            at = text.find(query[start : start + best + 1])
            if at < 0:
                break
            best, place = best + 1, at
    return best, place
