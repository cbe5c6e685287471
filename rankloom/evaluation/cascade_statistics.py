"""What the cascade knows: facts of the catalogue, statistics of a part of the log, and the past of a block of cases.

Everything here is fitted on the rows it is given and nothing else; `rankloom.evaluation.cascade` decides which.

Shapes: B cases of a block, I items, G leaf categories, H rows of history in a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rankloom.data.schema import EVENT_KINDS
from rankloom.data.sequences import Cases, Sequences
from rankloom.evaluation.systems import FloatArray


@dataclass(frozen=True)
class Catalogue:
    """Static facts of the items, NaN or one shared category where the shop does not say."""

    leaf: NDArray[np.int64]
    top: NDArray[np.int64]
    brand: NDArray[np.int64]
    log_price: FloatArray
    log_duration: FloatArray
    created_us: NDArray[np.float64]

    @classmethod
    def of(cls, items: pl.DataFrame | None, n_items: int) -> Catalogue:
        """From the columns of `items.parquet` that are there."""
        missing = np.full(n_items, np.nan, dtype=np.float32)
        columns = [] if items is None else items.columns

        def codes(values: list[Any]) -> NDArray[np.int64]:
            return np.unique(np.asarray([str(v) for v in values]), return_inverse=True)[1].astype(np.int64)

        def logs(name: str) -> FloatArray:
            if items is None or name not in columns:
                return missing
            values = items[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
            return np.log(np.where(values > 0, values, np.nan)).astype(np.float32)

        one = np.zeros(n_items, dtype=np.int64)
        leaf = top = brand = one
        created = np.full(n_items, np.nan)
        if items is not None and "category" in columns:
            paths = [path or [] for path in items["category"].to_list()]
            leaf, top = codes([tuple(path) for path in paths]), codes([tuple(path[:2]) for path in paths])
        if items is not None and "brand" in columns:
            # items without a brand must not look like one brand
            brand = codes([name or f"\0{row}" for row, name in enumerate(items["brand"].to_list())])
        if items is not None and "created_at" in columns:
            stamps = items["created_at"].dt.timestamp("us").cast(pl.Float64)
            created = stamps.fill_null(float("nan")).to_numpy()
        return cls(leaf, top, brand, logs("price_micros"), logs("duration_s"), created)


@dataclass(frozen=True)
class Statistics:
    """What the channels and features know, fitted on `rows` of the log and nothing else."""

    similar: Any  # (I, I) csr, cosine of co-users, the strongest neighbours of each item
    forward: Any  # (I, I) csr, transitions within three steps, 1 / gap, over the popularity of both ends
    following: Any  # (I, I) csr, chance that the next item follows, smoothed
    vectors: FloatArray  # (I, d) unit vectors of the truncated SVD of PPMI
    leaf_next: FloatArray  # (G, G) chance that a category follows another, smoothed
    count: FloatArray  # (I,)
    recent: FloatArray  # (I,) in the last quarter of the rows
    first_us: NDArray[np.float64]  # (I,) first and last time, NaN for items never seen
    last_us: NDArray[np.float64]

    @classmethod
    def fit(cls, sequences: Sequences, rows: NDArray[np.int64], catalogue: Catalogue, seed: int) -> Statistics:
        """Args: rows: interactions to learn from, user by user, oldest first."""
        n = sequences.n_items
        user, item = sequences.user[rows], sequences.item[rows].astype(np.int64)
        count = np.bincount(item, minlength=n).astype(np.float32)
        time = sequences.timestamp[rows]
        late = time >= np.quantile(time, 0.75) if len(time) else np.zeros(0, dtype=bool)
        if not sequences.has_clock:
            late = np.ones(len(rows), dtype=bool)
        first, last = np.full(n, np.nan), np.full(n, np.nan)
        if sequences.has_clock:
            order = np.argsort(time, kind="stable")
            last[item[order]] = time[order]
            first[item[order[::-1]]] = time[order[::-1]]
        pairs = [_pairs(user, item, gap) for gap in (1, 2, 3, 4, 5)]
        left, right = pairs[0]
        following = _matrix(left, right, np.ones(len(left)), n)
        # a pair seen once proves little: five imaginary transitions to elsewhere
        following = sparse.csr_matrix(
            sparse.diags_array(1 / (np.asarray(following.sum(1)).ravel() + 5.0)) @ following, dtype=np.float32
        )
        forward = sum((_matrix(a, b, np.full(len(a), 1 / gap), n) for gap, (a, b) in enumerate(pairs[:3], 1)), start=0)
        scale = sparse.diags_array(1 / np.sqrt(count + 5.0))
        near: Any = sum((_matrix(a, b, np.full(len(a), 1 / gap), n) for gap, (a, b) in enumerate(pairs, 1)), start=0)
        leaf = catalogue.leaf
        n_leaf = int(leaf.max(initial=0)) + 1
        leaf_next = np.zeros((n_leaf, n_leaf), dtype=np.float32)
        np.add.at(leaf_next, (leaf[left], leaf[right]), 1)
        leaf_share = np.bincount(leaf, weights=count, minlength=n_leaf) + 0.5
        leaf_next = (leaf_next + 10 * leaf_share / leaf_share.sum()) / (leaf_next.sum(1, keepdims=True) + 10)
        return cls(
            similar=_cosine(user, item, sequences.n_users, n),
            forward=sparse.csr_matrix(scale @ forward @ scale, dtype=np.float32),
            following=following,
            vectors=_learned_vectors(sparse.csr_matrix(near + near.T), seed),
            leaf_next=leaf_next.astype(np.float32),
            count=count,
            recent=np.bincount(item[late], minlength=n).astype(np.float32),
            first_us=first,
            last_us=last,
        )


@dataclass(frozen=True)
class Past:
    """The liked part of each case's history (its newest 50 rows), flat and oldest first, and the moment of the request."""

    n_cases: int
    case: NDArray[np.int64]  # (H,) which case of the block
    item: NDArray[np.int64]  # (H,)
    back: NDArray[np.int64]  # (H,) 0 for the newest of its case
    length: NDArray[np.int64]  # (B,)
    last: NDArray[np.int64]  # (B,) -1 without history
    last_kind: NDArray[np.int64]
    when: NDArray[np.float64]  # (B,) UTC microseconds
    hours_since_last: NDArray[np.float64]
    surface: NDArray[np.int64]
    query: NDArray[np.int64]

    @classmethod
    def of(cls, sequences: Sequences, cases: Cases, part: slice, *, longest: int = 50) -> Past:
        stop = cases.row[part]
        start = np.maximum(sequences.offsets[cases.user[part]], stop - longest)
        case, rows = _ranges(start, stop)
        # what somebody disliked is context, not taste
        liked = sequences.target[rows]
        case, rows = case[liked], rows[liked]
        length = np.bincount(case, minlength=len(stop))
        ends = np.cumsum(length)
        back = ends[case] - 1 - np.arange(len(case))
        has = length > 0
        newest = rows[np.maximum(ends - 1, 0)] if len(rows) else np.zeros(len(stop), dtype=np.int64)
        when = sequences.timestamp[stop].astype(np.float64)
        return cls(
            n_cases=len(stop),
            case=case,
            item=sequences.item[rows].astype(np.int64),
            back=back,
            length=length,
            last=np.where(has, sequences.item[newest], -1).astype(np.int64),
            last_kind=np.where(has, sequences.kind[newest], len(EVENT_KINDS)).astype(np.int64),
            when=when,
            hours_since_last=np.where(has, (when - sequences.timestamp[newest]) / 3.6e9, np.nan),
            surface=sequences.surface[stop].astype(np.int64),
            query=sequences.query[stop].astype(np.int64),
        )

    def decay(self, rate: float) -> FloatArray:
        return (rate**self.back).astype(np.float32)

    def matrix(self, n_items: int, rate: float, *, newest: int | None = None) -> Any:
        """(B, I) csr of decayed counts."""
        kept = self.back < newest if newest is not None else np.ones(len(self.item), dtype=bool)
        entries: Any = (self.decay(rate)[kept], (self.case[kept], self.item[kept]))
        return sparse.csr_matrix(entries, shape=(self.n_cases, n_items))

    def counts(self, group: NDArray[np.int64], n_groups: int, rate: float) -> FloatArray:
        """(B, n_groups) decayed counts of the groups of the history."""
        out = np.zeros((self.n_cases, n_groups), dtype=np.float32)
        np.add.at(out, (self.case, group), self.decay(rate))
        return out

    def steps_since(self, n_items: int) -> FloatArray:
        """(B, I) how many interactions ago an item came last, NaN for never."""
        out = np.full((self.n_cases, n_items), np.nan, dtype=np.float32)
        # oldest first, so the newest is written last
        out[self.case, self.item] = self.back
        return out

    def newest(self, width: int) -> NDArray[np.int64]:
        """(B, width) the newest items, newest first, -1 padding."""
        out = np.full((self.n_cases, width), -1, dtype=np.int64)
        kept = self.back < width
        out[self.case[kept], self.back[kept]] = self.item[kept]
        return out

    def mean(self, values: FloatArray) -> NDArray[np.float64]:
        """(B,) mean of an item's value over the history, NaN-free items only, NaN without any."""
        own = values[self.item].astype(np.float64)
        real = np.isfinite(own)
        total = np.bincount(self.case[real], weights=own[real], minlength=self.n_cases)
        count = np.bincount(self.case[real], minlength=self.n_cases)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _pairs(user: NDArray[Any], item: NDArray[np.int64], gap: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items of one person `gap` steps apart, unequal."""
    if len(item) <= gap:
        return item[:0], item[:0]
    same = (user[gap:] == user[:-gap]) & (item[gap:] != item[:-gap])
    return item[:-gap][same], item[gap:][same]


def _matrix(row: NDArray[np.int64], column: NDArray[np.int64], weight: NDArray[Any], n: int) -> Any:
    entries: Any = (weight.astype(np.float32), (row, column))
    return sparse.csr_matrix(entries, shape=(n, n))


def _cosine(user: NDArray[Any], item: NDArray[np.int64], n_users: int, n: int, *, neighbours: int = 200) -> Any:
    """(I, I) csr: cosine of two items' users, people with long histories counting less."""
    entries: Any = (np.ones(len(item), dtype=np.float32), (user, item))
    matrix: Any = sparse.csr_matrix(entries, shape=(n_users, n))
    matrix.data[:] = 1
    # Adamic-Adar weights: who takes everything says little about what belongs together
    length = np.asarray(matrix.sum(1)).ravel()
    weighted = sparse.diags_array(1 / np.sqrt(np.log(length + 2))) @ matrix
    similar: Any = sparse.csr_matrix(weighted.T @ weighted)
    norm = np.sqrt(similar.diagonal() + 1e-9)
    scale = sparse.diags_array((1 / np.where(norm > 1e-3, norm, 1)).astype(np.float32))
    similar = sparse.csr_matrix(scale @ similar @ scale, dtype=np.float32)
    similar.setdiag(0)
    similar.eliminate_zeros()
    coo = similar.tocoo()
    order = np.lexsort((coo.col, -coo.data, coo.row))
    sizes = np.bincount(coo.row, minlength=n)
    place = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = order[place < neighbours]
    best: Any = (coo.data[kept], (coo.row[kept], coo.col[kept]))
    return sparse.csr_matrix(best, shape=(n, n))


def _learned_vectors(near: Any, seed: int, *, dim: int = 64) -> FloatArray:
    """(I, d) unit vectors: truncated SVD of positive pointwise mutual information, which is what item2vec factorises
    (Levy & Goldberg 2014); zero for items without neighbours."""
    from sklearn.utils.extmath import randomized_svd

    n = near.shape[0]
    if near.nnz == 0:
        return np.zeros((n, 1), dtype=np.float32)
    coo = near.tocoo()
    # smoothed context counts keep rare items from looking surprising (Levy et al. 2015)
    total = np.asarray(near.sum(1)).ravel()
    context = total**0.75
    value = np.log(coo.data * context.sum() / (total[coo.row] * context[coo.col]))
    entries: Any = (np.maximum(value, 0).astype(np.float32), (coo.row, coo.col))
    u, s, _ = randomized_svd(sparse.csr_matrix(entries, shape=near.shape), min(dim, n - 1), n_iter=3, random_state=seed)
    return unit((u * np.sqrt(s)).astype(np.float32))


def unit(x: FloatArray) -> FloatArray:
    norm = np.linalg.norm(x, axis=-1, keepdims=True)
    out: FloatArray = (x / np.where(norm > 1e-9, norm, 1)).astype(np.float32)
    return out


def _ranges(start: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(owner, value) of every number of the ranges start[i]:stop[i]."""
    length = stop - start
    owner = np.repeat(np.arange(len(length)), length)
    return owner, np.repeat(start, length) + np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
