"""What the search baselines share: one protocol, ranking in blocks, what is had already left out.

Shapes: B cases of a block, C cases, I items, K length of a list.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.sequences import Sequences
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.systems import FloatArray, IntArray, seen_pairs, top_items, training_counts

DEPTH: Final = 1_000
"""Candidates of a query that reach anything behind the inverted index."""


@dataclass(frozen=True)
class Shelf:
    """What a search baseline may read of a shop before the first query.

    Attributes:
        texts: per item title, brand and categories.
        count_I: TRAIN targets of each item.
        sequences: the log.
    """

    texts: tuple[str, ...]
    count_I: NDArray[np.int64]
    sequences: Sequences

    @classmethod
    def of(cls, items: pl.DataFrame, sequences: Sequences) -> Shelf:
        """Args: items: the shop's catalogue."""
        return cls(tuple(index_texts(items)), training_counts(sequences), sequences)


def index_texts(items: pl.DataFrame) -> list[str]:
    """Title, brand and category of every item, whatever of them there is."""
    columns = [items["title"].fill_null("").to_list()]
    if "brand" in items.columns:
        columns.append(items["brand"].fill_null("").to_list())
    if "category" in items.columns:
        columns.append([" ".join(path or []) for path in items["category"].to_list()])
    return [" ".join(part for part in parts if part) for parts in zip(*columns, strict=True)]


class SearchSystem(Protocol):
    """A search engine under evaluation."""

    name: str
    variant: str

    def fit(self, shelf: Shelf, valid: SearchCases, seed: int) -> None:
        """Builds and tunes itself: TRAIN counts, and VALID cases for whatever is chosen."""
        ...

    def rank(self, asked: SearchCases, k: int) -> IntArray:
        """(C, k) items, best first, -1 where fewer; nothing of the case's history."""
        ...


class ScoringSearch(ABC):
    """Base of engines that score the whole catalogue for a block of cases."""

    name = "scoring"
    variant = "default"
    block = 256

    @abstractmethod
    def scores(self, asked: SearchCases, part: slice) -> FloatArray:
        """(B, I) float32, a fresh array, -inf for what is no candidate."""

    def rank(self, asked: SearchCases, k: int) -> IntArray:
        out = np.full((len(asked), k), -1, dtype=np.int32)
        for begin in range(0, len(asked), self.block):
            part = slice(begin, begin + self.block)
            out[part] = top_items(without_seen(self.scores(asked, part), asked, part), k)
        return out


def without_seen(score_BI: FloatArray, asked: SearchCases, part: slice) -> FloatArray:
    """In place: -inf for the items of each case's history."""
    score_BI[seen_pairs(asked.sequences, asked.cases, part)] = -np.inf
    return score_BI


def only_best(score_BI: FloatArray, n: int) -> FloatArray:
    """In place: -inf below the n best of each row (ties at the limit stay)."""
    if score_BI.shape[1] > n:
        limit = np.partition(score_BI, -n, axis=1)[:, -n]
        score_BI[score_BI < limit[:, None]] = -np.inf
    return score_BI


def places(score_BI: FloatArray) -> NDArray[np.int64]:
    """(B, I) 0-based place of every item in its row's order; equal scores in the order of item numbers."""
    order = np.argsort(-score_BI, axis=1, kind="stable")
    out = np.empty_like(order)
    np.put_along_axis(out, order, np.broadcast_to(np.arange(score_BI.shape[1]), score_BI.shape), axis=1)
    return out
