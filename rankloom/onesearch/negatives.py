"""What a person did not take: items shown and passed over, items of the same category, any others; and counts of pairs.

Shapes: C contexts, N drawn items (-1 where there is none), I items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.data.schema import KIND_CODE
from rankloom.data.sequences import TRAIN, Sequences
from rankloom.onesearch.corpus import Integers, Items
from rankloom.onesearch.settings import BehaviourConfig
from rankloom.training.feedback import calibrated, levels


@dataclass(frozen=True)
class PairCounts:
    """Exposures, clicks and orders of (query, item) pairs in the training period.

    Clicks and orders are of takes (`Sequences.target`); an exposure is any row, as whatever is taken was also shown.

    Attributes:
        key_P: ascending query * n_items + item.
        count_P3: shown, clicked, ordered.
    """

    n_items: int
    key_P: Integers
    count_P3: Integers

    @classmethod
    def of(cls, sequences: Sequences, config: BehaviourConfig) -> PairCounts:
        rows = np.flatnonzero((sequences.stage == TRAIN) & (sequences.query >= 0))
        key = sequences.query[rows].astype(np.int64) * sequences.n_items + sequences.item[rows]
        ordered = np.isin(sequences.kind[rows], [KIND_CODE[kind] for kind in config.orders])
        taken = sequences.target[rows]
        distinct, place = np.unique(key, return_inverse=True)
        counts = [np.bincount(place, weights=own, minlength=len(distinct)) for own in (np.ones(len(rows)), taken, taken & ordered)]
        return cls(sequences.n_items, distinct, np.stack(counts, axis=1).astype(np.int64))

    def at(self, query: NDArray[Any], item: NDArray[Any]) -> Integers:
        """(.., 3) counts of pairs, 0 for those that never met."""
        key = query.astype(np.int64) * self.n_items + item
        if not len(self.key_P):
            return np.zeros((*key.shape, 3), dtype=np.int64)
        place = np.minimum(np.searchsorted(self.key_P, key), len(self.key_P) - 1)
        found = self.key_P[place] == key
        return np.where(found[..., None], self.count_P3[place], 0)

    def category_of(self, query: Integers, category_I: Integers) -> Integers:
        """Category of the most clicked item under each query (the first of equals), -1 where there is none."""
        pair_query, pair_item = self.key_P // self.n_items, self.key_P % self.n_items
        order = np.lexsort((np.arange(len(self.key_P)), -self.count_P3[:, 1], pair_query))
        # what was only shown tells nothing of the query
        order = order[self.count_P3[order, 1] > 0]
        known, first = np.unique(pair_query[order], return_index=True)
        if not len(known):
            return np.full(len(query), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(known, query), len(known) - 1)
        best = category_I[pair_item[order[first[place]]]]
        return np.where(known[place] == query, best, -1).astype(np.int64)


@dataclass(frozen=True)
class Feedback:
    """What is known of each training context: C contexts in the order of the rows of their takes.

    Attributes:
        row_C, user_C, query_C, target_C: of the log.
        ordered_C: whether the take was an order.
        from_feed_C: the take came later, from the feed (level 2).
    """

    row_C: Integers
    user_C: Integers
    query_C: Integers
    target_C: Integers
    ordered_C: NDArray[np.bool_]
    from_feed_C: NDArray[np.bool_]

    @classmethod
    def of(cls, sequences: Sequences, config: BehaviourConfig) -> Feedback:
        """One a TRAIN take that a search led to."""
        rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
        ordered = np.isin(sequences.kind[rows], [KIND_CODE[kind] for kind in config.orders])
        return cls(
            rows, sequences.user[rows].astype(np.int64), sequences.query[rows].astype(np.int64),
            sequences.item[rows].astype(np.int64), ordered, np.zeros(len(rows), dtype=np.bool_),
        )  # fmt: skip

    @classmethod
    def unknown(cls, query_C: Integers) -> Feedback:
        """Of queries after which nobody looked what was taken."""
        nothing, no = np.full(len(query_C), -1, dtype=np.int64), np.zeros(len(query_C), dtype=np.bool_)
        return cls(nothing, nothing, query_C, nothing, no, no)

    def take(self, chosen: NDArray[Any]) -> Feedback:
        """Those of an index array."""
        return Feedback(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def with_more(self, more: Feedback) -> Feedback:
        """These and then others."""
        names = self.__dataclass_fields__
        return Feedback(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in names))


class Negatives:
    """Draws of what was not taken.

    Args:
        items: whose categories count.
    """

    def __init__(self, sequences: Sequences, items: Items, config: BehaviourConfig) -> None:
        self.items = items
        self.counts = PairCounts.of(sequences, config)
        self.order_I = np.argsort(items.category_I, kind="stable")
        self.begin = np.searchsorted(items.category_I[self.order_I], np.arange(int(items.category_I.max(initial=0)) + 2))
        self.n_queries = max(1, len(sequences.queries))
        asked = (sequences.stage == TRAIN) & (sequences.query >= 0)
        # one number for who asked what and an item
        place = (sequences.user.astype(np.int64) * self.n_queries + sequences.query) * len(items) + sequences.item
        self.taken = np.unique(place[asked & sequences.target])
        # what was shown to whom under which query and not taken, then or at another time
        shown = place[asked & ~sequences.target & (sequences.kind == KIND_CODE["impression"])]
        shown = shown[~np.isin(shown, self.taken)]
        shown = shown[np.argsort(shown // len(items), kind="stable")]
        self.shown_key, self.shown_item = shown // len(items), shown % len(items)
        self.shown_pairs = np.unique(shown)

    def was_taken(self, feedback: Feedback, item_CN: NDArray[Any]) -> NDArray[np.bool_]:
        """(C, N) what each person took under the query, whenever in the training period, and each context's target."""
        taken = self._among(self.taken, feedback, item_CN) | (item_CN == feedback.target_C[:, None])
        return np.asarray(taken & (item_CN >= 0))

    def shown(self, feedback: Feedback, n: int, rng: np.random.Generator) -> Integers:
        """(C, n) items shown to the person under the query and not taken, drawn with replacement."""
        key = feedback.user_C * self.n_queries + feedback.query_C
        low, high = (np.searchsorted(self.shown_key, key, side=side) for side in ("left", "right"))
        drawn = self._within(low, high, n, rng)
        item = np.where(drawn >= 0, self.shown_item[drawn], -1) if len(self.shown_item) else drawn
        return np.where(self.was_taken(feedback, item), -1, item)

    def same_category(self, feedback: Feedback, n: int, rng: np.random.Generator) -> Integers:
        """(C, n) items of the targets' categories that were not taken under the query, drawn with replacement."""
        category = self.items.category_I[feedback.target_C]
        drawn = self._within(self.begin[category], self.begin[category + 1], n, rng)
        item = np.where(drawn >= 0, self.order_I[drawn], -1)
        return np.where(self.was_taken(feedback, item), -1, item)

    def others(self, feedback: Feedback, n: int, rng: np.random.Generator) -> Integers:
        """(C, n) any items that were not taken under the query."""
        item = rng.integers(len(self.items), size=(len(feedback.target_C), n))
        return np.where(self.was_taken(feedback, item), -1, item)

    @staticmethod
    def _within(low: Integers, high: Integers, n: int, rng: np.random.Generator) -> Integers:
        size = high - low
        drawn = low[:, None] + (rng.random((len(low), n)) * size[:, None]).astype(np.int64)
        return np.where(size[:, None] > 0, drawn, -1)

    def rewards(self, feedback: Feedback, item_CN: NDArray[Any]) -> NDArray[np.float64]:
        """(C, N) calibrated r(q, i) of items for contexts (training/feedback.py); 0 for padding."""
        taken = item_CN == feedback.target_C[:, None]
        ordered = taken & feedback.ordered_C[:, None]
        count = self.counts.at(np.broadcast_to(feedback.query_C[:, None], item_CN.shape), item_CN)
        level = levels(
            ordered_in_search=ordered & ~feedback.from_feed_C[:, None],
            ordered_in_feed=ordered & feedback.from_feed_C[:, None],
            clicked=taken,
            shown=self._among(self.shown_pairs, feedback, item_CN),
            same_category=self.items.category_I[item_CN] == self.items.category_I[feedback.target_C][:, None],
        )
        return np.where(item_CN >= 0, calibrated(level, count[..., 0], count[..., 1], count[..., 2]), 0.0)

    def rewards_of_queries(self, query_C: Integers, item_CN: NDArray[Any]) -> NDArray[np.float64]:
        """(C, N) calibrated r(q, i) where no take is known: the level is the best that anybody gave the pair.

        Of one category with the query is what has the category of the most clicked item under it.
        """
        count = self.counts.at(np.broadcast_to(query_C[:, None], item_CN.shape), item_CN)
        level = levels(
            ordered_in_search=count[..., 2] > 0,
            ordered_in_feed=np.zeros(item_CN.shape, dtype=np.bool_),
            clicked=count[..., 1] > 0,
            shown=count[..., 0] > 0,
            same_category=self.items.category_I[item_CN] == self.counts.category_of(query_C, self.items.category_I)[:, None],
        )
        return np.where(item_CN >= 0, calibrated(level, count[..., 0], count[..., 1], count[..., 2]), 0.0)

    def _among(self, places: Integers, feedback: Feedback, item_CN: NDArray[Any]) -> NDArray[np.bool_]:
        """Which items are, for who asked what, among ascending numbers of both."""
        if not len(places):
            return np.zeros(item_CN.shape, dtype=np.bool_)
        asked = (feedback.user_C * self.n_queries + feedback.query_C)[:, None] * len(self.items) + item_CN
        place = np.minimum(np.searchsorted(places, asked), len(places) - 1)
        return np.asarray(places[place] == asked)
