"""Who asked what after which history: the samples of training and of evaluation in one form, flat arrays for all of them.

The sliding window of the paper makes every take of a person a sample; without it only the newest one is. Who has no history
gets the default sequence of the query: what is most clicked for it, and where nobody searched so, what is most taken among
items whose first code is the query's. A sample's own click is never counted there.

Shapes: C contexts, H places of the long history (oldest first, right-aligned, -1 where none), W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.data.schema import KIND_CODE, SURFACE_CODE
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.onesearch.corpus import Items, Queries
from rankloom.onesearch.settings import BehaviourConfig

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Contexts:
    """
    Attributes:
        user_ids: (C,) whose.
        query_C: number of each query, -1 for none.
        history_CH: items before.
        ordered_CH: which of them were ordered.
        recent_CW: numbers of the queries before, oldest first, right-aligned, -1 where none.
        default_CW: the default sequence, only of those without a history.
        target_C: what was taken, -1 where that is asked.
    """

    user_ids: NDArray[Any]
    query_C: Integers
    history_CH: NDArray[np.int32]
    ordered_CH: NDArray[np.bool_]
    recent_CW: Integers
    default_CW: NDArray[np.int32]
    target_C: Integers

    def __len__(self) -> int:
        return len(self.query_C)

    def take(self, chosen: NDArray[Any] | slice) -> Contexts:
        """The contexts of an index array, a mask or a slice."""
        return Contexts(
            self.user_ids[chosen], self.query_C[chosen], self.history_CH[chosen], self.ordered_CH[chosen],
            self.recent_CW[chosen], self.default_CW[chosen], self.target_C[chosen],
        )  # fmt: skip

    def short(self, window: int) -> NDArray[np.int32]:
        """(C, window) the latest items, or the default sequence of who has none."""
        width = self.history_CH.shape[1]
        own = self.history_CH[:, max(0, width - window) :]
        if own.shape[1] < window:
            own = np.pad(own, ((0, 0), (window - own.shape[1], 0)), constant_values=-1)
        empty = (self.history_CH < 0).all(1)
        return np.where(empty[:, None], self.default_CW[:, -window:], own)


def contexts_of(
    sequences: Sequences, user: NDArray[Any], row: NDArray[Any], query: NDArray[Any], config: BehaviourConfig
) -> Contexts:
    """Contexts of rows of a log: what the person did before the row.

    Args:
        query: number of each context's own query, in whatever table; the queries before come by the log's numbers.
    """
    length = config.long_length
    begin = sequences.offsets[user]
    at = row[:, None] - length + np.arange(length)
    real = at >= begin[:, None]
    at = np.where(real, at, 0)
    if sequences.n_interactions == 0:
        real[:] = False
    orders = [KIND_CODE[kind] for kind in config.orders]
    asked = np.where(real, sequences.query[at], -1)
    # a stable sort moves the places with a query to the end, in their order
    order = np.argsort(asked >= 0, axis=1, kind="stable")[:, -config.window :]
    recent = np.take_along_axis(asked, order, 1)
    if recent.shape[1] < config.window:
        recent = np.pad(recent, ((0, 0), (config.window - recent.shape[1], 0)), constant_values=-1)
    return Contexts(
        user_ids=sequences.user_ids[user],
        query_C=np.asarray(query, dtype=np.int64),
        history_CH=np.where(real, sequences.item[at], -1).astype(np.int32),
        ordered_CH=real & np.isin(sequences.kind[at], orders),
        recent_CW=recent.astype(np.int64),
        default_CW=np.full((len(user), config.window), -1, dtype=np.int32),
        target_C=sequences.item[row].astype(np.int64),
    )


def training_contexts(sequences: Sequences, config: BehaviourConfig) -> Contexts:
    """The TRAIN targets that a search led to, all of each person or the newest."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    user = sequences.user[rows].astype(np.int64)
    if not config.sliding_window and len(rows):
        newest = np.r_[user[1:] != user[:-1], True]
        rows, user = rows[newest], user[newest]
    return contexts_of(sequences, user, rows, sequences.query[rows], config)


class DefaultSequences:
    """The default sequence of queries, from the searches of the training period.

    Args:
        window: items of a sequence.
    """

    def __init__(self, sequences: Sequences, items: Items, window: int) -> None:
        self.window = window
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
        taken = pl.DataFrame({"query": sequences.query[rows], "item": sequences.item[rows]})
        # one more than the window: a sample's own click may fall out
        best = (
            taken.group_by("query", "item").len("count")
            .sort(["query", "count", "item"], descending=[False, True, False])
            .with_columns(place=pl.int_range(pl.len()).over("query"))
            .filter(pl.col("place") <= window)
        )  # fmt: skip
        n_queries = len(sequences.queries)
        self.item_QW = np.full((n_queries, window + 1), -1, dtype=np.int32)
        self.count_QW = np.zeros((n_queries, window + 1), dtype=np.int64)
        at = (best["query"].to_numpy(), best["place"].to_numpy())
        self.item_QW[at] = best["item"].to_numpy()
        self.count_QW[at] = best["count"].to_numpy()
        first_I = items.codes_IL[:, 0]
        order = np.lexsort((np.arange(len(items)), -items.count_I, first_I))
        opens = np.searchsorted(first_I[order], np.arange(items.sizes[0] + 1))
        self.item_KW = np.full((items.sizes[0], window + 1), -1, dtype=np.int32)
        for code, (low, high) in enumerate(pairwise(opens.tolist())):
            own = order[low : min(high, low + window + 1)]
            self.item_KW[code, : len(own)] = own
        self.count_I = items.count_I

    def fill(self, contexts: Contexts, queries: Queries, *, trained: bool) -> Contexts:
        """The contexts with the default sequence where there is no history.

        Args:
            trained: the contexts are of the training period: their own click is among those counted.
        """
        empty = np.flatnonzero((contexts.history_CH < 0).all(1) & (contexts.query_C >= 0))
        default = contexts.default_CW.copy()
        if len(empty):
            default[empty] = self._of(contexts.query_C[empty], queries, contexts.target_C[empty] if trained else None)
        return replace(contexts, default_CW=default)

    def _of(self, query_E: Integers, queries: Queries, target_E: Integers | None) -> NDArray[np.int32]:
        known = query_E < len(self.item_QW)
        at = np.where(known, query_E, 0)
        item = np.where(known[:, None], self.item_QW[at], -1) if len(self.item_QW) else np.full((len(at), self.window + 1), -1)
        count = np.where(known[:, None], self.count_QW[at], 0) if len(self.item_QW) else np.zeros_like(item)
        by_code = self.item_KW[queries.codes_QL[query_E, 0]]
        item, count = _without(item, count, target_E)
        fallback, fallback_count = _without(by_code, np.where(by_code >= 0, self.count_I[by_code], 0), target_E)
        none = (item < 0).all(1)
        item = np.where(none[:, None], np.where(fallback_count > 0, fallback, -1), item)[:, : self.window]
        # oldest first: the most clicked stands where the latest item would
        return item[:, ::-1].astype(np.int32)


def _without(item: NDArray[Any], count: NDArray[Any], target_E: Integers | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Items by count with one click of each target taken back; what nobody else clicked goes."""
    if target_E is not None:
        count = count - (item == target_E[:, None])
        item = np.where(count > 0, item, -1)
    order = np.argsort(-np.where(item >= 0, count, -1), axis=1, kind="stable")
    return np.take_along_axis(item, order, 1), np.take_along_axis(count, order, 1)


def numbered(texts: Sequence[str], known: Sequence[str]) -> tuple[Integers, list[str]]:
    """Numbers of texts among `known` and, after those, the new ones, which are returned."""
    number = {text: place for place, text in enumerate(known)}
    fresh = [text for text in dict.fromkeys(texts) if text not in number]
    number.update({text: len(known) + place for place, text in enumerate(fresh)})
    return np.asarray([number[text] for text in texts], dtype=np.int64), fresh


def feed_orders(sequences: Sequences, items: Items, config: BehaviourConfig) -> tuple[Integers, Integers, Integers]:
    """(row of a search's take, item, query) of level 2: what the person took from the feed, of the same category as what
    the search led to, after it; only the training period."""
    orders = [KIND_CODE[kind] for kind in config.orders]
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target)
    frame = pl.DataFrame(
        {
            "row": rows, "user": sequences.user[rows], "category": items.category_I[sequences.item[rows]],
            "item": sequences.item[rows], "query": sequences.query[rows],
            "feed": sequences.surface[rows] == SURFACE_CODE["feed"], "ordered": np.isin(sequences.kind[rows], orders),
        }
    )  # fmt: skip
    asked = frame.filter(pl.col("query") >= 0).select("row", "user", "category", "query", own="item")
    feed = frame.filter(pl.col("feed") & pl.col("ordered") & (pl.col("query") < 0)).select("user", "category", "item", later="row")
    joined = asked.join(feed, on=["user", "category"], how="inner", maintain_order="left_right").filter(
        (pl.col("later") > pl.col("row")) & (pl.col("item") != pl.col("own"))
    )
    return tuple(joined[name].to_numpy().astype(np.int64) for name in ("row", "item", "query"))  # type: ignore[return-value]
