"""Keywords at work: a frozen dictionary, its vectors, and what they make of the vectors of items and queries.

Fitted once beside the text embedder; afterwards any item or query goes through the same parts, so a new item gets the vector it
would have had. Titles are guarded (guard.py), columns are believed, queries are taken at their word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.config import KeywordsConfig
from rankloom.errors import RankloomError
from rankloom.semantic.keywords.columns import column_values
from rankloom.semantic.keywords.dictionary import KeywordDictionary
from rankloom.semantic.keywords.fusion import FloatArray, fuse, weight_matrix
from rankloom.semantic.keywords.groups import find_groups
from rankloom.semantic.keywords.guard import agreement, folded_values, strip
from rankloom.semantic.keywords.matching import KeywordMatcher, KeywordSpan

Embed = Callable[[Sequence[str]], FloatArray]


@dataclass(frozen=True, slots=True)
class ItemKeywords:
    """Keywords of one item.

    Attributes:
        spans: in its title.
        rows: of the dictionary: those of the title, then those that only columns say.
        weights: of each row, 0 to 1.
    """

    spans: tuple[KeywordSpan, ...]
    rows: tuple[int, ...]
    weights: tuple[float, ...]


def keywords_of_items(matcher: KeywordMatcher, items: pl.DataFrame, config: KeywordsConfig) -> list[ItemKeywords]:
    """The keywords of every item, weighed by the guard; with `guard: off` all count 1."""
    dictionary = matcher.dictionary
    of_group = find_groups(items, {name: at for at, name in enumerate(dictionary.groups)})
    said = column_values(items, config.attributes)
    branded = items["brand"].is_not_null().to_list() if "brand" in items.columns else [False] * items.height
    found = []
    for row, title in enumerate(items["title"].to_list()):
        spans = tuple(matcher.match(title or ""))
        in_title = list(dict.fromkeys(span.row for span in spans))
        columns = folded_values(said[row])
        weights = [1.0] * len(in_title)
        if config.guard != "off":
            known = matcher.rows(columns, overlap="all")
            weights = agreement(dictionary, in_title, int(of_group[row]), known, own_brand=branded[row]).tolist()
        more = [own for own in matcher.rows(columns) if own not in set(in_title)]
        found.append(ItemKeywords(spans, (*in_title, *more), (*weights, *[1.0] * len(more))))
    return found


def strip_items(items: pl.DataFrame, found: Sequence[ItemKeywords], config: KeywordsConfig) -> pl.DataFrame:
    """The items as the text embedder is to read them: with `guard: strip` titles lack the keywords that count 0.

    A title of which no word would be left stays as it is.
    """
    if config.guard != "strip":
        return items
    titles = []
    for title, own in zip(items["title"].to_list(), found, strict=True):
        left = strip(title or "", own.spans, dict(zip(own.rows, own.weights, strict=True)))
        titles.append(left if any(map(str.isalnum, left)) else title)
    return items.with_columns(pl.Series("title", titles, dtype=pl.String))


class KeywordEnhancer:
    """See the module's docstring.

    Args:
        vectors_KD: unit vectors of the dictionary's terms, of the embedder whose vectors are to be enhanced.

    Raises:
        RankloomError: not one vector a keyword.
    """

    def __init__(self, matcher: KeywordMatcher, vectors_KD: FloatArray, config: KeywordsConfig) -> None:
        if vectors_KD.ndim != 2 or len(vectors_KD) != len(matcher.dictionary):
            raise RankloomError(
                f"{len(matcher.dictionary)} keywords but vectors of shape {vectors_KD.shape}",
                place="keywords",
                action="mine the dictionary and embed its terms again",
                code="keywords-broken",
            )
        self.matcher = matcher
        self.vectors_KD = vectors_KD
        self.config = config

    @classmethod
    def fit(cls, matcher: KeywordMatcher, embed: Embed, config: KeywordsConfig) -> KeywordEnhancer:
        """With the vectors that `embed` gives the terms."""
        terms = [keyword.term for keyword in matcher.dictionary.keywords]
        vectors_KD = embed(terms) if terms else np.zeros((0, embed(["x"]).shape[1]), dtype=np.float32)
        return cls(matcher, vectors_KD, config)

    @property
    def dictionary(self) -> KeywordDictionary:
        return self.matcher.dictionary

    def items(self, found: Sequence[ItemKeywords], vectors_ND: FloatArray) -> FloatArray:
        """(N, D) items' vectors with their keywords.

        Args:
            found: what `keywords_of_items` said of them.
            vectors_ND: of the texts of `strip_items`.
        """
        weights = weight_matrix([own.rows for own in found], [own.weights for own in found], len(self.dictionary))
        return fuse(vectors_ND, self.vectors_KD, weights, share=self.config.share)

    def queries(self, texts: Sequence[str], vectors_ND: FloatArray) -> FloatArray:
        """(N, D) queries' vectors with their keywords, each counted once and alike."""
        found = [self.matcher.rows(text) for text in texts]
        weights = weight_matrix(found, [[1.0] * len(own) for own in found], len(self.dictionary))
        return fuse(vectors_ND, self.vectors_KD, weights, share=self.config.share)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As arrays for a safetensors file."""
        return {**self.dictionary.arrays(), "vectors": self.vectors_KD}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], config: KeywordsConfig) -> KeywordEnhancer:
        """What `arrays` described.

        Raises:
            RankloomError: arrays that are not a dictionary's, or the extra `search` is not installed.
        """
        matcher = KeywordMatcher(KeywordDictionary.from_arrays(arrays), numbers=config.numbers)
        return cls(matcher, arrays["vectors"], config)
