"""Pairs and triples of queries and items from the log, for the aligned encoder (OneSearch, KHQE). Training period only.

* q2q: queries that led to the same items, by ItemCF with queries in the place of items: an item that few queries lead to
  says more, and what every query has many of says less;
* q2i: a query and what was taken after it;
* ranked triples: a query, an item and a worse one: shown < clicked < ordered after that query;
* i2i are the item pairs of semantic/pairs.py.

Pairs whose vectors before alignment are too unlike are dropped (`keep_similar`): the paper's cosine of .6 holds for its own
encoder; other encoders have other scales, so a share to drop can be said instead.

Shapes: R rows (a query and an item), Q queries, I items, P pairs, T triples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from rankloom.data.schema import EVENTS, KIND_CODE
from rankloom.data.sequences import TRAIN, VALID, Sequences
from rankloom.data.shop import Shop
from rankloom.semantic.pairs import Pairs, strongest
from rankloom.semantic.quantizers.base import FloatArray

SHOWN: Final = 0
CLICKED: Final = 1
ORDERED: Final = 2
_MOST_QUERIES: Final = 200
"""Queries of one item that make pairs, its strongest."""
_PER_LEVEL: Final = 20
"""Items of a query and level that make triples."""
_BLOCK: Final = 65_536

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Engagement:
    """What people did with items after queries; each (query, item) once.

    Attributes:
        queries: Q distinct queries of the training period, in order of first use by `Sequences.queries`.
        query: (R,) index into `queries`.
        item: (R,) row of the catalogue.
        level: (R,) the most that anybody did: SHOWN, CLICKED (any taking short of an order) or ORDERED.
        takes: (R,) float32, how often the item was taken after the query; 0 where it was only shown.
    """

    queries: tuple[str, ...]
    query: IntArray
    item: IntArray
    level: NDArray[np.int8]
    takes: NDArray[np.float32]


def engagement(sequences: Sequences, shown: pl.DataFrame | None = None) -> Engagement:
    """From the TRAIN rows that name a query.

    Args:
        shown: what `shown_after_queries` returned: items that were shown as well; None where the log is all there is.
    """
    rows = np.flatnonzero((sequences.stage == TRAIN) & sequences.target & (sequences.query >= 0))
    order = sequences.kind[rows] == KIND_CODE["purchase"]
    taken = pl.DataFrame(
        {
            "query": sequences.query[rows].astype(np.int64),
            "item": sequences.item[rows].astype(np.int64),
            "level": np.where(order, ORDERED, CLICKED).astype(np.int8),
            "takes": np.ones(len(rows), dtype=np.float32),
        }
    )
    if shown is not None and shown.height:
        number = {query: at for at, query in enumerate(sequences.queries)}
        used = set(taken["query"].to_list())
        seen = shown.with_columns(
            pl.col("query").replace_strict(number, default=-1, return_dtype=pl.Int64),
            pl.lit(SHOWN, dtype=pl.Int8).alias("level"),
            pl.lit(0.0, dtype=pl.Float32).alias("takes"),
        )
        # a query of which nothing was ever taken says nothing of what is better
        seen = seen.filter(pl.col("query").is_in(list(used))).select(taken.columns)
        taken = pl.concat([taken, seen])
    taken = taken.group_by("query", "item").agg(pl.col("level").max(), pl.col("takes").sum()).sort("query", "item")
    kept, query = np.unique(taken["query"].to_numpy(), return_inverse=True)
    return Engagement(
        queries=tuple(sequences.queries[at] for at in kept),
        query=query.reshape(-1).astype(np.int64),
        item=taken["item"].to_numpy().astype(np.int64),
        level=taken["level"].to_numpy(),
        takes=taken["takes"].to_numpy(),
    )


def shown_after_queries(shop: Shop, sequences: Sequences, *, by_time: bool) -> pl.DataFrame:
    """(`query`, `item`) of impressions that name a query, in the training period.

    A person's training period ends before the first interaction of theirs that does not train; with a split by time, for
    everybody before the first of all that does not.

    Args:
        by_time: whether the log is split by time.
    """
    empty = pl.DataFrame(schema={"query": pl.String, "item": pl.Int64})
    columns = shop.scan(EVENTS).collect_schema().names()
    if "query" not in columns:
        return empty
    later = sequences.stage >= VALID
    end = np.full(sequences.n_users, np.iinfo(np.int64).max)
    np.minimum.at(end, sequences.user[later], sequences.timestamp[later])
    if by_time and later.any():
        end[:] = sequences.timestamp[later].min()
    ends = pl.DataFrame({"user_id": sequences.user_ids.astype(object), "end": end}, schema={"user_id": pl.String, "end": pl.Int64})
    items = shop.items().select("item_id").with_row_index("item").with_columns(pl.col("item").cast(pl.Int64))
    shown = shop.scan(EVENTS).filter((pl.col("event") == "impression") & pl.col("query").is_not_null())
    joined = (
        shown.select("user_id", "item_id", "query", pl.col("timestamp").dt.timestamp("us"))
        .join(ends.lazy(), on="user_id", how="inner")
        .filter(pl.col("timestamp") < pl.col("end"))
        .join(items.lazy(), on="item_id", how="inner")
        .select("query", "item")
        .unique()
        .sort("query", "item")
    )
    return joined.collect()


def query_pairs(own: Engagement, n_items: int, *, top: int = 20) -> Pairs:
    """(i, j, weight) of queries that led to the same items: cosine of their takes, an item weighed by how few queries it has."""
    taken = own.takes > 0
    entries: Any = (np.log1p(own.takes[taken]), (own.item[taken], own.query[taken]))
    led = sparse.csr_matrix(entries, shape=(n_items, len(own.queries)))
    item, query, weight = strongest(led, _MOST_QUERIES)
    few = 1 / np.log(2.0 + np.bincount(item, minlength=n_items))
    kept: Any = (weight * np.sqrt(few[item]), (query, item))
    of_query = sparse.csr_matrix(kept, shape=(len(own.queries), n_items))
    norm = np.sqrt(np.asarray(of_query.multiply(of_query).sum(1)).ravel())
    unit = sparse.csr_matrix(sparse.diags_array(np.divide(1.0, norm, out=np.zeros_like(norm), where=norm > 0)) @ of_query)
    alike = sparse.csr_matrix(unit @ unit.T)
    alike.setdiag(0)
    alike.eliminate_zeros()
    return strongest(alike, top)


def taken_pairs(own: Engagement) -> Pairs:
    """(query, item, weight) of what was taken, by the logarithm of how often."""
    taken = own.takes > 0
    return own.query[taken], own.item[taken], np.log1p(own.takes[taken]).astype(np.float32)


@dataclass(frozen=True)
class Triples:
    """T times a query, an item and a worse one; `steps` are the levels between them, 1 or 2."""

    query: IntArray
    better: IntArray
    worse: IntArray
    steps: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.query)


def ranked_triples(own: Engagement, seed: int, *, per_level: int = _PER_LEVEL) -> Triples:
    """Every better item of a query with every worse one, of at most `per_level` random items a level."""
    rng = np.random.default_rng(seed)
    table = pl.DataFrame({"query": own.query, "item": own.item, "level": own.level, "draw": rng.random(len(own.query))})
    table = table.filter(pl.col("draw").rank("ordinal").over("query", "level") <= per_level).drop("draw")
    both = table.join(table, on="query", suffix="_worse").filter(pl.col("level") > pl.col("level_worse"))
    both = both.sort("query", "item", "item_worse")
    return Triples(
        query=both["query"].to_numpy().astype(np.int64),
        better=both["item"].to_numpy().astype(np.int64),
        worse=both["item_worse"].to_numpy().astype(np.int64),
        steps=(both["level"] - both["level_worse"]).to_numpy().astype(np.float32),
    )


def keep_similar(
    pairs: Pairs, left_ND: FloatArray, right_MD: FloatArray, *, min_cosine: float | None, drop_share: float
) -> tuple[Pairs, float]:
    """The pairs whose vectors are alike enough, and the cosine from which on they are.

    Args:
        left_ND, right_MD: unit vectors before alignment, which the two columns of `pairs` index.
        min_cosine: the least cosine; None drops `drop_share` of the pairs, those with the lowest.
    """
    i, j, weight = pairs
    if not len(i):
        return pairs, min_cosine if min_cosine is not None else -1.0
    cosine = pair_cosines(left_ND, right_MD, i, j)
    least = min_cosine if min_cosine is not None else float(np.quantile(cosine, drop_share))
    kept = cosine >= least
    return (i[kept], j[kept], weight[kept]), least


def pair_cosines(left_ND: FloatArray, right_MD: FloatArray, i: IntArray, j: IntArray) -> FloatArray:
    """(P,) float32 cosines of unit vectors, pair by pair."""
    out = np.empty(len(i), dtype=np.float32)
    for begin in range(0, len(i), _BLOCK):
        part = slice(begin, begin + _BLOCK)
        out[part] = np.einsum("pd,pd->p", left_ND[i[part]], right_MD[j[part]])
    return out
