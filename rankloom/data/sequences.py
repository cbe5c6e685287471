"""The log as training reads it: per-user sequences in flat arrays, split by time before anything is fitted.

Several events of one user on one item in immediate succession (impression, click, purchase) are one *interaction*: it
keeps the strongest kind, the first time and the longest watch. Splits:

* `leave-one-out`: per user the last target is test, the one before it validation, everything earlier training.
* `time`: the last `test_share` of all targets by clock time is test, the `valid_share` before it validation. Nothing
  fitted on the training part sees anything later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from rankloom.config import DataConfig
from rankloom.data import schema
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError

TRAIN: Final = 0
VALID: Final = 1
TEST: Final = 2


@dataclass(frozen=True)
class Sequences:
    """Interactions of all users, user by user, oldest first (E interactions, U users).

    Attributes:
        user_ids: (U,) str.
        offsets: (U + 1,) int64; user u owns rows offsets[u]:offsets[u + 1].
        item: (E,) int32, row of the catalogue.
        kind: (E,) int8, index into `schema.EVENT_KINDS`.
        timestamp: (E,) int64, UTC microseconds; for ordered lists without a clock, the position.
        watch_ratio: (E,) float32, watched seconds over duration; NaN where unknown.
        surface: (E,) int8, index into `schema.SURFACES`.
        position: (E,) int16, rank in the list shown; -1 unknown.
        query: (E,) int32, index into `queries`; -1 none.
        target: (E,) bool, whether this interaction may be predicted.
        stage: (E,) int8, TRAIN, VALID or TEST.
        n_items: catalogue size.
        queries: distinct query strings.
        has_clock: False when timestamps are only positions.
    """

    user_ids: NDArray[np.str_]
    offsets: NDArray[np.int64]
    item: NDArray[np.int32]
    kind: NDArray[np.int8]
    timestamp: NDArray[np.int64]
    watch_ratio: NDArray[np.float32]
    surface: NDArray[np.int8]
    position: NDArray[np.int16]
    query: NDArray[np.int32]
    target: NDArray[np.bool_]
    stage: NDArray[np.int8]
    n_items: int
    queries: tuple[str, ...] = ()
    has_clock: bool = True

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def n_interactions(self) -> int:
        return len(self.item)

    @property
    def user(self) -> NDArray[np.int32]:
        """(E,) the user of each interaction."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.offsets))

    def cases(
        self,
        stage: int,
        *,
        max_per_user: int | None = None,
        max_users: int | None = None,
        seed: int = 0,
        among: NDArray[np.bool_] | None = None,
    ) -> Cases:
        """What to predict in `stage`: the first `max_per_user` targets of each user, of at most `max_users` random users.

        Args:
            among: (E,) the interactions that count; None is all of them.
        """
        chosen = (self.stage == stage) & self.target
        rows = np.flatnonzero(chosen if among is None else chosen & among)
        owner = self.user[rows]
        if max_per_user is not None and len(rows):
            first = np.r_[True, owner[1:] != owner[:-1]]
            start = np.maximum.accumulate(np.where(first, np.arange(len(rows)), 0))
            keep = np.arange(len(rows)) - start < max_per_user
            rows, owner = rows[keep], owner[keep]
        if max_users is not None:
            users = np.unique(owner)
            if len(users) > max_users:
                chosen = np.random.default_rng(seed).choice(users, size=max_users, replace=False)
                keep = np.isin(owner, chosen)
                rows, owner = rows[keep], owner[keep]
        return Cases(user=owner.astype(np.int32), row=rows.astype(np.int64), target=self.item[rows])

    def history(self, case_user: int, case_row: int) -> NDArray[np.int64]:
        """Rows of the interactions before `case_row` of its user, oldest first."""
        return np.arange(self.offsets[case_user], case_row, dtype=np.int64)


@dataclass(frozen=True)
class Cases:
    """C questions to a recommender: given the user's interactions before `row`, which item comes at `row`?

    Attributes:
        user: (C,) int32.
        row: (C,) int64, the row of the target in `Sequences`; the history is offsets[user]:row.
        target: (C,) int32, the item to be found.
    """

    user: NDArray[np.int32]
    row: NDArray[np.int64]
    target: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.user)


# A kind later in this order overrides an earlier one when events of one interaction are merged.
_STRENGTH: Final = (
    "impression",
    "search",
    "click",
    "view",
    "like",
    "follow",
    "comment",
    "share",
    "add_to_cart",
    "purchase",
    "dislike",
)
_MERGE_WITHIN_US: Final = 3_600_000_000
_SEARCH_LASTS_US: Final = 1_800_000_000
"""How long what a person takes belongs to the search before it: half an hour, the usual bound of a session."""


def load_sequences(shop: Shop, config: DataConfig) -> Sequences:
    """Reads a shop's log as split, merged, time-ordered sequences.

    Raises:
        RankloomError: no event of a target kind joins the catalogue, or the split leaves nothing to train on or to test.
    """
    items = shop.items().select("item_id").with_row_index("item")
    has_clock = shop.origin.get("clock") != "order"
    frame = _read_interactions(shop, config, items, has_clock=has_clock)
    if frame.height == 0 or not frame["target"].any():
        raise RankloomError(
            f"no event of {shop.path} is of a kind to learn from ({', '.join(config.target_events)}) and joins the catalogue",
            place=str(shop.path / schema.EVENTS),
            action="run `rankloom validate` on the shop, or set data.target_events",
            code="no-targets",
        )
    user = frame["user_id"].rle_id().to_numpy()
    n_users = int(user[-1]) + 1
    offsets = np.r_[0, np.cumsum(np.bincount(user, minlength=n_users))].astype(np.int64)
    timestamp = frame["timestamp"].to_numpy()
    target = frame["target"].to_numpy()
    if config.split == "leave-one-out":
        stage = _leave_one_out(user, target, n_users)
    else:
        if not has_clock:
            raise RankloomError(
                "this shop has ordered lists without times, so it cannot be split by time",
                place=str(shop.path),
                action="use --split leave-one-out",
                code="split-needs-clock",
            )
        stage = _by_time(timestamp, target, config)
    queries = tuple(frame["query"].drop_nulls().unique(maintain_order=True).to_list())
    query = (
        frame["query"].replace_strict(list(queries), list(range(len(queries))), default=-1, return_dtype=pl.Int32)
        if queries
        else None
    )
    return Sequences(
        user_ids=frame["user_id"].gather(offsets[:-1].tolist()).to_numpy().astype(np.str_),
        offsets=offsets,
        item=frame["item"].to_numpy().astype(np.int32),
        kind=frame["kind"].to_numpy().astype(np.int8),
        timestamp=timestamp.astype(np.int64),
        watch_ratio=frame["watch_ratio"].fill_null(float("nan")).to_numpy().astype(np.float32),
        surface=frame["surface"].to_numpy().astype(np.int8),
        position=frame["position"].fill_null(-1).clip(-1, 32_000).to_numpy().astype(np.int16),
        query=np.full(frame.height, -1, dtype=np.int32)
        if query is None
        else query.fill_null(-1).to_numpy().astype(np.int32),
        target=target.astype(np.bool_),
        stage=stage,
        n_items=items.height,
        queries=queries,
        has_clock=has_clock,
    )


def _read_interactions(shop: Shop, config: DataConfig, items: pl.DataFrame, *, has_clock: bool) -> pl.DataFrame:
    """Events of the wanted kinds, joined, sorted and merged: user_id, item, kind, timestamp, target and features."""
    events = shop.scan(schema.EVENTS)
    columns = events.collect_schema().names()
    optional = {"watch_s": pl.Float64(), "surface": pl.String(), "position": pl.Int32(), "query": pl.String()}
    wanted = {*config.target_events, *config.context_events}
    by_itself = (pl.col("event") == "search") & pl.col("item_id").is_null()
    frame = (
        events.filter(pl.col("event").is_in(list(wanted)) | by_itself)
        .select(
            "user_id",
            "item_id",
            "event",
            pl.col("timestamp").dt.timestamp("us"),
            *[
                pl.col(name).cast(kind) if name in columns else pl.lit(None, dtype=kind).alias(name)
                for name, kind in optional.items()
            ],
        )
        .collect()
    )
    frame = _with_searches(frame, has_clock=has_clock)
    durations = shop.scan(schema.ITEMS).collect_schema().names()
    if "duration_s" in durations:
        items = items.with_columns(shop.items()["duration_s"].alias("duration_s"))
    else:
        items = items.with_columns(pl.lit(None, dtype=pl.Float64()).alias("duration_s"))
    strength = {kind: rank for rank, kind in enumerate(_STRENGTH)}
    # events of one moment stay in the order of the log
    frame = frame.join(items, on="item_id", how="inner", maintain_order="left").with_columns(
        (pl.col("watch_s") / pl.when(pl.col("duration_s") > 0).then(pl.col("duration_s"))).alias("watch_ratio"),
        pl.col("event").replace_strict(strength, default=0, return_dtype=pl.Int8).alias("strength"),
        pl.col("event").is_in(list(config.target_events)).alias("target"),
        pl.col("surface").replace_strict(schema.SURFACE_CODE, default=0, return_dtype=pl.Int8).alias("surface"),
    )
    if config.min_watch_ratio is not None:
        short = (pl.col("event") == "view") & (pl.col("watch_ratio") < config.min_watch_ratio)
        frame = frame.with_columns((pl.col("target") & ~short.fill_null(False)).alias("target"))
    frame = frame.sort("user_id", "timestamp", maintain_order=True)
    if has_clock:
        same = (
            (pl.col("user_id") == pl.col("user_id").shift())
            & (pl.col("item") == pl.col("item").shift())
            & (pl.col("timestamp") - pl.col("timestamp").shift() <= _MERGE_WITHIN_US)
        )
        frame = (
            frame.with_columns((~same.fill_null(False)).cum_sum().alias("run"))
            .group_by("run", maintain_order=True)
            .agg(
                pl.col("user_id", "item", "timestamp", "surface", "position").first(),
                pl.col("query").drop_nulls().first(),
                pl.col("watch_ratio", "strength").max(),
                (pl.col("target").any() & ~(pl.col("event") == "dislike").any()).alias("target"),
            )
        )
    kinds = [schema.KIND_CODE[kind] for kind in _STRENGTH]
    return frame.with_columns(
        pl.col("strength").replace_strict(list(range(len(kinds))), kinds, return_dtype=pl.Int8).alias("kind")
    )


def _with_searches(frame: pl.DataFrame, *, has_clock: bool) -> pl.DataFrame:
    """Searches logged by themselves, given to what the person took in the half hour after, and taken out.

    An event that names its own query, or another surface, keeps it.
    """
    by_itself = (pl.col("event") == "search") & pl.col("item_id").is_null()
    if has_clock and frame.select((by_itself & pl.col("query").is_not_null()).any()).item():
        frame = frame.sort("user_id", "timestamp", maintain_order=True)
        asks = by_itself & pl.col("query").is_not_null()
        last = [
            pl.when(asks).then(name).forward_fill().over("user_id").alias(f"{name}_before")
            for name in ("query", "timestamp")
        ]
        frame = frame.with_columns(last)
        belongs = (
            pl.col("query").is_null()
            & pl.col("query_before").is_not_null()
            & (pl.col("surface").is_null() | (pl.col("surface") == "search"))
            & (pl.col("timestamp") - pl.col("timestamp_before") <= _SEARCH_LASTS_US)
        )
        frame = frame.with_columns(
            pl.when(belongs).then("query_before").otherwise("query").alias("query"),
            pl.when(belongs).then(pl.lit("search")).otherwise("surface").alias("surface"),
        ).drop("query_before", "timestamp_before")
    return frame.filter(~by_itself)


def _leave_one_out(user: NDArray[np.integer], target: NDArray[np.bool_], n_users: int) -> NDArray[np.int8]:
    """Last target TEST, the one before VALID; users with fewer than three targets only train."""
    rows = np.flatnonzero(target)
    owner = user[rows]
    counts = np.bincount(owner, minlength=n_users)
    ends = np.cumsum(counts)
    usable = counts >= 3
    never = np.iinfo(np.int64).max
    last = np.full(n_users, never)
    before_last = np.full(n_users, never)
    last[usable] = rows[ends[usable] - 1]
    before_last[usable] = rows[ends[usable] - 2]
    row = np.arange(len(user))
    stage: NDArray[np.int8] = (row >= before_last[user]).astype(np.int8) + (row >= last[user]).astype(np.int8)
    return stage


def _by_time(timestamp: NDArray[np.int64], target: NDArray[np.bool_], config: DataConfig) -> NDArray[np.int8]:
    times = np.sort(timestamp[target])
    test_from = times[int(len(times) * (1 - config.test_share))]
    valid_from = times[int(len(times) * (1 - config.test_share - config.valid_share))]
    if not times[0] < valid_from < test_from:
        raise RankloomError(
            "the log's times are too few or too equal to be split into training, validation and test",
            action="use --split leave-one-out, or import more days",
            code="split-impossible",
        )
    stage: NDArray[np.int8] = (timestamp >= valid_from).astype(np.int8) + (timestamp >= test_from).astype(np.int8)
    return stage
