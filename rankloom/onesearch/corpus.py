"""What is known of items and queries before anybody asks: codes, vectors, words, categories, counts.

Shapes: I items, Q queries, L levels of an ID, A width of vectors, T words of a title.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.errors import RankloomError
from rankloom.onesearch.query_ids import QueryEncoder
from rankloom.onesearch.settings import OneSearchConfig
from rankloom.onesearch.vocabulary import Tokens, Vocabulary
from rankloom.semantic.quantizers.base import FloatArray
from rankloom.semantic.tokenizer import Tokenizer

N_RESIDUAL = 3
BRAND_WORDS = 3
"""Words that are read of a brand."""
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Items:
    """
    Attributes:
        codes_IL: as they are written (without the OPQ codes where those are switched off).
        sizes: codebook sizes of these levels.
        centroids: per residual level (K, A).
        vector_IA: unit vectors in the quantised space.
        rebuilt_IA: what the codes decode to.
        category_I: number of each item's category path; items without one have numbers of their own.
        title_IT: tokens that are read of an item's text.
        count_I: training takes.
        quantise: vectors of the quantised space to (N, L) codes.
    """

    codes_IL: Integers
    sizes: tuple[int, ...]
    centroids: tuple[FloatArray, ...]
    vector_IA: FloatArray
    rebuilt_IA: FloatArray
    category_I: Integers
    title_IT: Tokens
    titles: tuple[str, ...]
    brands: tuple[str, ...]
    categories: tuple[str, ...]
    count_I: Integers
    quantise: Callable[[FloatArray], NDArray[Any]]

    def __len__(self) -> int:
        return len(self.codes_IL)

    @classmethod
    def of(
        cls, items: pl.DataFrame, tokenizer: Tokenizer, count_I: Integers, config: OneSearchConfig, vocabulary: Vocabulary
    ) -> Items:
        """Everything about a catalogue.

        Raises:
            RankloomError: IDs that are no residual K-means of three levels, which the long history reads.
        """
        levels = used_levels(tokenizer, config)
        codes = tokenizer.semantic_ids.codes[:, :levels]
        titles, categories = tuple(items["title"].fill_null("").to_list()), tuple(category_texts(items))
        brands = items["brand"].fill_null("").to_list() if "brand" in items.columns else [""] * items.height
        named = {text: number for number, text in enumerate(dict.fromkeys(text for text in categories if text))}
        own_category = [named.get(text, len(named) + row) for row, text in enumerate(categories)]
        return cls(
            codes_IL=codes.astype(np.int64),
            sizes=tokenizer.semantic_ids.codebook_sizes[:levels],
            centroids=residual_centroids(tokenizer),
            vector_IA=unit(tokenizer.aligned),
            rebuilt_IA=tokenizer.quantizer.decode(codes),
            category_I=np.asarray(own_category, dtype=np.int64),
            title_IT=_item_tokens(titles, brands, categories, config, vocabulary),
            titles=titles,
            brands=tuple(brands),
            categories=categories,
            count_I=count_I,
            quantise=lambda vectors: tokenizer.quantizer.encode(vectors)[:, :levels],
        )


@dataclass(frozen=True)
class Queries:
    """
    Attributes:
        texts: distinct queries.
        codes_QL: their IDs.
        vector_QA: unit vectors.
        word_QT: tokens that are read.
    """

    texts: tuple[str, ...]
    codes_QL: Integers
    vector_QA: FloatArray
    word_QT: Tokens

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, texts: Sequence[str], encode: QueryEncoder, vocabulary: Vocabulary, config: OneSearchConfig) -> Queries:
        vectors, codes = encode(texts)
        levels = len(vocabulary.codebook_sizes)
        return cls(
            tuple(texts), codes[:, :levels].astype(np.int64), unit(vectors), vocabulary.read(texts, config.stages.query_words)
        )

    def joined(self, other: Queries) -> Queries:
        """These and then the others, whose numbers are shifted by `len(self)`."""
        return Queries(
            (*self.texts, *other.texts), np.concatenate([self.codes_QL, other.codes_QL]),
            np.concatenate([self.vector_QA, other.vector_QA]), np.concatenate([self.word_QT, other.word_QT]),
        )  # fmt: skip


def _item_tokens(
    titles: Sequence[str], brands: Sequence[str], categories: Sequence[str], config: OneSearchConfig, vocabulary: Vocabulary
) -> Tokens:
    title = vocabulary.read(titles, config.stages.title_words)
    if config.stages.item_text == "title":
        return title
    return np.concatenate([title, vocabulary.read(brands, BRAND_WORDS), vocabulary.read(categories, config.stages.title_words)], axis=1)


def used_levels(tokenizer: Tokenizer, config: OneSearchConfig) -> int:
    """Levels that are written."""
    levels = tokenizer.semantic_ids.n_levels
    return levels if config.opq else min(levels, N_RESIDUAL)


def residual_centroids(tokenizer: Tokenizer) -> tuple[FloatArray, ...]:
    """Per residual level (K, A) centroids."""
    settings, sizes = tokenizer.config.quantizer, tokenizer.quantizer.codebook_sizes
    if settings.kind != "rq-kmeans" or settings.last == "fsq" or len(sizes) < N_RESIDUAL or settings.collision != "list":
        raise RankloomError(
            "OneSearch reads the centroids of three residual K-means levels, which this tokenizer does not have",
            place="quantizer",
            action="use quantizer.kind=rq-kmeans, quantizer.last=opq and quantizer.collision=list",
            code="onesearch-quantizer",
        )
    out, before = [], np.zeros((1, 0), dtype=np.int32)
    base: FloatArray = np.zeros((1, 1), dtype=np.float32)
    for size in sizes[:N_RESIDUAL]:
        # centroids add up: what one more code changes is its centroid
        codes = np.concatenate([np.repeat(before, size, axis=0), np.arange(size, dtype=np.int32)[:, None]], axis=1)
        decoded = tokenizer.quantizer.decode(codes)
        out.append(decoded - base)
        base, before = decoded[:1], np.concatenate([before, np.zeros((1, 1), np.int32)], axis=1)
    return tuple(out)


def code_vectors(tokenizer: Tokenizer, n_levels: int) -> list[FloatArray]:
    """Per level (K, A): what each code adds to the decoded vector, less the level's mean."""
    sizes = tokenizer.quantizer.codebook_sizes
    out = []
    for level, size in enumerate(sizes[:n_levels]):
        codes = np.zeros((size, len(sizes)), dtype=np.int32)
        codes[:, level] = np.arange(size)
        decoded = tokenizer.quantizer.decode(codes)
        out.append(decoded - decoded.mean(0))
    return out


def main_directions(vectors: FloatArray, width: int) -> FloatArray:
    """(A, width) the directions in which vectors differ most; columns of zeros where `width` exceeds A."""
    _, _, rows = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    out = np.zeros((vectors.shape[1], width), dtype=np.float32)
    kept = rows[:width].T
    # a sign that does not depend on the linear algebra library
    out[:, : kept.shape[1]] = kept * np.sign(kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])])
    return out


def category_texts(items: pl.DataFrame) -> list[str]:
    """The category path of every item as text, empty where it has none."""
    if "category" not in items.columns:
        return [""] * items.height
    return [" ".join(path or []) for path in items["category"].to_list()]


def unit(vectors: FloatArray) -> FloatArray:
    """Rows of length 1; zero rows stay."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    out: FloatArray = (vectors / np.where(norm > 1e-9, norm, 1)).astype(np.float32)
    return out
