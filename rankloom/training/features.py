"""Interactions to model inputs: the one place where training, evaluation and serving build a context.

A `FeatureTable` holds the bucketed features of every interaction as flat tensors; `pack` cuts any set of row ranges out
of it into a padded `ContextBatch`. Serving builds a small table from one request's history and calls the same code.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankloom.data.schema import KIND_CODE
from rankloom.data.sequences import Sequences
from rankloom.models.context import (
    N_USER_FEATURES,
    ContextBatch,
    gap_bucket,
    position_bucket,
    watch_bucket,
)

_NEVER = torch.iinfo(torch.int32).max


@dataclass
class FeatureTable:
    """Flat per-interaction model inputs (E,), the vectors of queries and the static features of users.

    Attributes:
        item, kind, watch, gap, surface, position: (E,) int64.
        query: (E,) int64, row of `query_vectors` or -1.
        query_vectors: (n_queries, D_text) float32.
        queries: the words of these queries.
        user_features: (U, F) int64 hashed static features, or None.
    """

    item: Tensor
    kind: Tensor
    watch: Tensor
    gap: Tensor
    surface: Tensor
    position: Tensor
    query: Tensor
    query_vectors: Tensor
    user_features: Tensor | None = None
    queries: tuple[str, ...] = ()

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequences,
        *,
        query_vectors: NDArray[np.float32] | None = None,
        user_features: NDArray[np.int64] | None = None,
        text_dim: int = 1,
    ) -> FeatureTable:
        """Buckets the features of every interaction."""
        seconds = np.full(sequences.n_interactions, -1.0)
        if sequences.has_clock and sequences.n_interactions:
            seconds[1:] = np.diff(sequences.timestamp) / 1e6
            seconds[sequences.offsets[:-1][np.diff(sequences.offsets) > 0]] = -1.0
        vectors = np.zeros((0, text_dim), dtype=np.float32) if query_vectors is None else query_vectors
        return cls(
            item=torch.from_numpy(sequences.item.astype(np.int64)),
            kind=torch.from_numpy(sequences.kind.astype(np.int64)),
            watch=watch_bucket(torch.from_numpy(sequences.watch_ratio.copy())),
            gap=gap_bucket(torch.from_numpy(seconds)),
            surface=torch.from_numpy(sequences.surface.astype(np.int64)),
            position=position_bucket(torch.from_numpy(sequences.position.astype(np.int64))),
            query=torch.from_numpy(sequences.query.astype(np.int64)),
            query_vectors=torch.from_numpy(vectors),
            user_features=None if user_features is None else torch.from_numpy(user_features),
            queries=sequences.queries,
        )

    @classmethod
    def from_columns(
        cls,
        rows: list[tuple[int, int, float, float, int, int, int]],
        query_vectors: NDArray[np.float32] | None,
        user_features: Tensor | None,
        queries: Sequence[str] = (),
    ) -> FeatureTable:
        """A small table from (item, kind, watch ratio, gap seconds, surface, position, query) rows, for serving."""
        item, kind, watch, gap, surface, position, query = zip(*rows, strict=True) if rows else ((),) * 7
        return cls(
            item=torch.tensor(item, dtype=torch.long),
            kind=torch.tensor(kind, dtype=torch.long),
            watch=watch_bucket(torch.tensor(watch, dtype=torch.float32)),
            gap=gap_bucket(torch.tensor(gap, dtype=torch.float64)),
            surface=torch.tensor(surface, dtype=torch.long),
            position=position_bucket(torch.tensor(position, dtype=torch.long)),
            query=torch.tensor(query, dtype=torch.long),
            query_vectors=torch.zeros(0, 1) if query_vectors is None else torch.from_numpy(query_vectors),
            user_features=user_features,
            queries=tuple(queries),
        )

    def pack(
        self,
        start: Tensor,
        stop: Tensor,
        *,
        queries_at: Tensor | None = None,
        user: Tensor | None = None,
        unasked: Tensor | None = None,
    ) -> ContextBatch:
        """The rows start[b]:stop[b] of each request, padded to the longest.

        Args:
            start, stop: (B,) row ranges, oldest first.
            queries_at: (B,) for serving and evaluation: the row whose query (if any) the one target answers. Without it
                (training) every row of the range brings its own query, visible from its own place on.
            user: (B,) users, for static features.
            unasked: (E,) interactions to be read as if they came from the feed, without their query.
        """
        length = stop - start
        places = max(1, int(length.max())) if len(length) else 1
        index = start[:, None] + torch.arange(places)
        real = index < stop[:, None]
        index = torch.where(real, index, 0) if len(self.item) else torch.zeros_like(index)
        empty = torch.zeros_like(index)

        def take(column: Tensor) -> Tensor:
            return torch.where(real, column[index], 0) if len(column) else empty

        query, surface = self.query, self.surface
        if unasked is not None:
            query, surface = query.masked_fill(unasked, -1), surface.masked_fill(unasked, 0)
        query_BQD, query_from_BQ = self._queries(query, index, real, length, queries_at)
        user_BF = self.user_features[user] if self.user_features is not None and user is not None else None
        return ContextBatch(
            item_BT=torch.where(real, self.item[index], -1) if len(self.item) else empty - 1,
            kind_BT=take(self.kind),
            watch_BT=take(self.watch),
            gap_BT=take(self.gap),
            surface_BT=take(surface),
            position_BT=take(self.position),
            length_B=length,
            query_BQD=query_BQD,
            query_from_BQ=query_from_BQ,
            user_BF=user_BF,
        )

    def _queries(
        self, query: Tensor, index: Tensor, real: Tensor, length: Tensor, queries_at: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if not len(self.query_vectors):
            return None, None
        query_BT = torch.where(real, query[index], -1) if len(query) else torch.full_like(index, -1)
        if queries_at is not None:
            now = torch.where(queries_at >= 0, query[queries_at.clamp_min(0)], -1) if len(query) else queries_at
            query_BT = torch.cat([query_BT, torch.full_like(query_BT[:, :1], -1)], dim=1)
            query_BT[torch.arange(len(length)), length] = now
        has = query_BT >= 0
        width = int(has.sum(1).max())
        if width == 0:
            return None, None
        # queries first, padding after, in order of their place
        order = torch.sort((~has).long(), dim=1, stable=True).indices[:, :width]
        picked = query_BT.gather(1, order)
        vectors = self.query_vectors[picked.clamp_min(0)]
        return vectors, torch.where(picked >= 0, order, _NEVER)


def hashed_user_features(users: pl.DataFrame | None, user_ids: NDArray[np.str_]) -> NDArray[np.int64] | None:
    """(U, F) one hashed `column=value` per static feature, 0 where unknown; None when there are no features.

    Numbers are cut into quantile-free log buckets, so that a value means the same for any data set.
    """
    if users is None:
        return None
    names = [name for name in users.columns if name not in ("user_id", "simulated", "created_at")]
    if not names:
        return None
    table = pl.DataFrame({"user_id": user_ids}).join(
        users.unique("user_id", keep="first"), on="user_id", how="left", maintain_order="left"
    )
    columns = [_hash_column(table[name], name) for name in names]
    return np.stack(columns, axis=1)


def _hash_column(column: pl.Series, name: str) -> NDArray[np.int64]:
    if column.dtype.is_float():
        column = (column.sign() * (column.abs() + 1).log(2)).round(0)
    text = column.cast(pl.String, strict=False) if not column.dtype.is_nested() else column.map_elements(str, pl.String)
    distinct = text.unique().drop_nulls()
    codes = [1 + zlib.crc32(f"{name}={value}".encode()) % (N_USER_FEATURES - 1) for value in distinct.to_list()]
    if not codes:
        return np.zeros(len(column), dtype=np.int64)
    mapped = text.replace_strict(distinct.to_list(), codes, default=0, return_dtype=pl.Int64)
    return mapped.fill_null(0).to_numpy().astype(np.int64)


def kind_code(event: str) -> int:
    """Embedding row of an event kind; unknown kinds read as a click."""
    return KIND_CODE.get(event, KIND_CODE["click"])
