"""Who asked what after which history: the samples of training and of evaluation in one form, flat arrays for all of them.

The sliding window of the paper makes every take of a person a sample; without it only the newest one is. Who has no history
gets the default sequence of the query: what is most clicked for it, and where nobody searched so, what is most taken among
items whose first code is the query's. A sample's own click is never counted there.

A history has what was taken (`Sequences.target`): what was only shown, and what was disliked, is none of it, as in the served
model's masks. The queries before are those of these takes.

Shapes: C contexts, H places of the long history (oldest first, right-aligned, -1 where none), W window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        history_CH: items taken before.
        ordered_CH: which of them were ordered.
        recent_CW: numbers of the queries that led to them, oldest first, right-aligned, -1 where none.
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

    def with_more(self, more: Contexts) -> Contexts:
        """These and then others."""
        names = self.__dataclass_fields__
        return Contexts(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in names))

    def short(self, window: int) -> NDArray[np.int32]:
        """(C, window) the latest items, or the default sequence of who has none."""
        width = self.history_CH.shape[1]
        own = self.history_CH[:, max(0, width - window) :]
        if own.shape[1] < window:
            own = np.pad(own, ((0, 0), (window - own.shape[1], 0)), constant_values=-1)
        empty = (self.history_CH < 0).all(1, keepdims=True)
        return np.where(empty, self.default_CW[:, -window:], own)


def contexts_of(
    sequences: Sequences, user: NDArray[Any], row: NDArray[Any], query: NDArray[Any], config: BehaviourConfig
) -> Contexts:
    """Contexts of rows of a log: what the person took before the row.

    Args:
        query: number of each context's own query, in whatever table; the queries before come by the log's numbers.
    """
    length = config.long_length
    taken = np.flatnonzero(sequences.target)
    # places among the takes, of which each person's follow each other
    begin, end = (np.searchsorted(taken, own) for own in (sequences.offsets[user], row))
    place = end[:, None] - length + np.arange(length)
    real = place >= begin[:, None]
    at = taken[np.where(real, place, 0)] if len(taken) else np.zeros(place.shape, dtype=np.int64)
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
        target_C=sequences.item[np.minimum(row, sequences.n_interactions - 1)].astype(np.int64),
    )


def training_contexts(sequences: Sequences, config: BehaviourConfig) -> Contexts:
    """The TRAIN targets that a search led to, all of each person or the newest."""
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    user = sequences.user[rows].astype(np.int64)
    if not config.sliding_window and len(rows):
        newest = np.r_[user[1:] != user[:-1], True]
        rows, user = rows[newest], user[newest]
    return contexts_of(sequences, user, rows, sequences.query[rows], config)


def sampled_contexts(sequences: Sequences, n: int, config: BehaviourConfig, rng: np.random.Generator) -> Contexts:
    """People at the end of their training period, each with a query that somebody typed in it: what was taken is not known.

    Queries are drawn as often as they were typed, people evenly among those with a history.
    """
    trained = sequences.stage == TRAIN
    typed = sequences.query[trained & sequences.target & (sequences.query >= 0)]
    count_U = np.bincount(sequences.user[trained], minlength=sequences.n_users)
    people = np.unique(sequences.user[trained & sequences.target]).astype(np.int64)
    if not len(typed) or not len(people):
        nobody = np.zeros(0, dtype=np.int64)
        return contexts_of(sequences, nobody, nobody, nobody, config)
    user = rng.choice(people, size=n, replace=n > len(people))
    # the training period of a person is the beginning of their rows
    row = sequences.offsets[user] + count_U[user]
    found = contexts_of(sequences, user, row, typed[rng.integers(len(typed), size=n)], config)
    return replace(found, target_C=np.full(n, -1, dtype=np.int64))


@dataclass(frozen=True)
class DefaultSequences:
    """The default sequence of queries, from the searches of the training period.

    One place more than the window is kept, since a sample's own click may fall out.

    Attributes:
        item_QW, count_QW: per query of the log the most clicked items, -1 where fewer, and their clicks.
        item_KW, count_KW: per first code the most taken items, and how often.
    """

    item_QW: Integers
    count_QW: Integers
    item_KW: Integers
    count_KW: Integers

    @classmethod
    def of(
        cls, sequences: Sequences, first_I: NDArray[Any], n_first: int, count_I: Integers, window: int
    ) -> DefaultSequences:
        """Args: first_I: the first code of each item, of `n_first`; count_I: its training takes."""
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
        clicked = pl.DataFrame({"key": sequences.query[rows].astype(np.int64), "item": sequences.item[rows].astype(np.int64)})
        by_query = clicked.group_by("key", "item").len("count").with_columns(pl.col("count").cast(pl.Int64))
        taken = pl.DataFrame({"key": first_I.astype(np.int64), "item": np.arange(len(first_I)), "count": count_I})
        return cls(
            *_best(by_query, len(sequences.queries), window + 1),
            *_best(taken.filter(pl.col("count") > 0), n_first, window + 1),
        )

    @property
    def window(self) -> int:
        return int(self.item_QW.shape[1]) - 1

    def arrays(self) -> dict[str, NDArray[Any]]:
        """For a safetensors file."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> DefaultSequences:
        """What `arrays` described."""
        return cls(**{name: np.asarray(arrays[name]) for name in cls.__dataclass_fields__})

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
        item = np.full((len(query_E), self.window + 1), -1, dtype=np.int64)
        count = np.zeros_like(item)
        known = query_E < len(self.item_QW)
        item[known], count[known] = self.item_QW[query_E[known]], self.count_QW[query_E[known]]
        item, count = _without(item, count, target_E)
        first = queries.codes_QL[query_E, 0]
        instead, _ = _without(self.item_KW[first], self.count_KW[first], target_E)
        item = np.where((item < 0).all(1, keepdims=True), instead, item)[:, : self.window]
        # oldest first: the most clicked stands where the latest item would
        return item[:, ::-1].astype(np.int32)


def _best(frame: pl.DataFrame, n_keys: int, width: int) -> tuple[Integers, Integers]:
    """(n_keys, width) the items of each key with the highest counts, -1 where fewer, and their counts."""
    best = (
        frame.sort(["key", "count", "item"], descending=[False, True, False])
        .with_columns(place=pl.int_range(pl.len()).over("key"))
        .filter(pl.col("place") < width)
    )
    item, count = np.full((n_keys, width), -1, dtype=np.int64), np.zeros((n_keys, width), dtype=np.int64)
    at = (best["key"].to_numpy(), best["place"].to_numpy())
    item[at], count[at] = best["item"].to_numpy(), best["count"].to_numpy()
    return item, count


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
