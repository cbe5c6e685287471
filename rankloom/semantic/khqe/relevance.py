"""How relevant an item is to a query, for the relevance loss of the aligned encoder; and which pairs are hard.

OneSearch (arXiv 2509.03236, KHQE) lets a language model score pairs that are very alike and easily confused. Here the score is a
person's, where a file of graded pairs is given; else that of words: the share of the query's words, weighed by how rare they
are in the catalogue, that the item's title, brand, category and attributes have. Hard pairs are a query and the items nearest
to it, by whatever vectors are given. Graded pairs are all used, hard or not: they are few and dear.

Shapes: Q queries, I items, P pairs, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError
from scipy import sparse

from rankloom.errors import RankloomError
from rankloom.semantic.quantizers.base import FloatArray
from rankloom.semantic.words import words

IntArray = NDArray[np.int64]
_BLOCK_NUMBERS: Final = 2**24


@dataclass(frozen=True)
class Scored:
    """P pairs with a score: `query` and `item` are rows, `score` 0 (irrelevant) to 1."""

    query: IntArray
    item: IntArray
    score: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.query)


class WordAgreement:
    """Scores pairs of a query and an item by their words.

    Args:
        queries: Q texts.
        item_texts: I texts, see `rankloom.semantic.text.item_texts`.
    """

    def __init__(self, queries: Sequence[str], item_texts: Sequence[str]) -> None:
        number: dict[str, int] = {}
        asked_QV = _incidence(queries, number, grow=True)
        self.has_IV = _incidence(item_texts, number, grow=False)
        holders = np.asarray(self.has_IV.sum(0)).ravel()
        rare = np.log1p(len(item_texts) / (1.0 + holders)).astype(np.float32)
        weighed = sparse.csr_matrix(asked_QV @ sparse.diags_array(rare))
        total = np.asarray(weighed.sum(1), dtype=np.float32).ravel()
        share = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
        self.asked_QV = sparse.csr_matrix(sparse.diags_array(share) @ weighed)

    def __call__(self, query: IntArray, item: IntArray) -> NDArray[np.float32]:
        """(P,) shares; 0 for a query without words."""
        shared = self.asked_QV[query].multiply(self.has_IV[item])
        return np.asarray(shared.sum(1), dtype=np.float32).ravel()


def hard_pairs(query_QD: FloatArray, item_ID: FloatArray, *, top: int) -> tuple[IntArray, IntArray]:
    """(query, item) rows of each query's `top` nearest items by cosine."""
    top = min(top, len(item_ID))
    block = max(1, _BLOCK_NUMBERS // max(1, len(item_ID)))
    found = []
    for begin in range(0, len(query_QD), block):
        cosine = query_QD[begin : begin + block] @ item_ID.T
        found.append(np.sort(np.argpartition(-cosine, top - 1, axis=1)[:, :top], axis=1))
    items = np.concatenate(found).reshape(-1) if found else np.zeros(0, dtype=np.int64)
    return np.repeat(np.arange(len(query_QD)), top), items.astype(np.int64)


def read_grades(path: str | Path, item_ids: Sequence[str]) -> tuple[tuple[str, ...], Scored]:
    """Distinct queries of a file of graded pairs, and the pairs whose item the catalogue has; labels become 0 to 1.

    Args:
        path: Parquet with `query`, `item_id` and `label`, a number, more is better. A pair that comes several times counts as
            its mean.

    Raises:
        RankloomError: no such file, a column is missing, labels that are no numbers or all alike, or no item joins.
    """
    place = str(path)
    try:
        table = pl.read_parquet(path)
    except (OSError, PolarsError) as error:
        raise RankloomError(
            f"the graded pairs cannot be read: {str(error).splitlines()[0]}", place=place,
            action="set khqe.grades to a Parquet file, or to null", code="grades-missing",
        ) from None  # fmt: skip
    lacking = {"query", "item_id", "label"} - set(table.columns)
    if lacking or not table["label"].dtype.is_numeric():
        what = f"lack {', '.join(sorted(lacking))}" if lacking else "have labels that are no numbers"
        raise RankloomError(
            f"the graded pairs {what}", place=place, action="give query, item_id and a numeric label", code="grades-columns",
        )  # fmt: skip
    table = table.select(pl.col("query", "item_id").cast(pl.String), pl.col("label").cast(pl.Float64)).drop_nulls()
    labels = table["label"].to_numpy()
    low, high = (float(labels.min()), float(labels.max())) if len(labels) else (0.0, 0.0)
    catalogue = pl.DataFrame({"item_id": list(item_ids), "item": np.arange(len(item_ids))}, schema={"item_id": pl.String, "item": pl.Int64})
    joined = table.join(catalogue, on="item_id", how="inner", maintain_order="left")
    if not joined.height or low == high or not np.isfinite(high - low):
        what = "meet no item of the catalogue" if not joined.height else "have labels that are all alike or not finite"
        raise RankloomError(
            f"the graded pairs {what}", place=place,
            action="give item_id as in items.parquet, and labels that differ", code="grades-empty",
        )  # fmt: skip
    joined = joined.group_by("query", "item", maintain_order=True).agg(pl.col("label").mean())
    queries = tuple(joined["query"].unique(maintain_order=True).to_list())
    number = {query: at for at, query in enumerate(queries)}
    score = (joined["label"].to_numpy() - low) / (high - low)
    query = np.asarray([number[own] for own in joined["query"].to_list()], dtype=np.int64)
    return queries, Scored(query, joined["item"].to_numpy().astype(np.int64), score.astype(np.float32))


def _incidence(texts: Sequence[str], number: dict[str, int], *, grow: bool) -> sparse.csr_matrix:
    """(N, V) whether a text has a word; new words get the next number where `grow`, and are left out otherwise."""
    columns: list[int] = []
    starts = [0]
    for text in texts:
        own = dict.fromkeys(words(text))
        if grow:
            for word in own:
                number.setdefault(word, len(number))
        columns.extend(number[word] for word in own if word in number)
        starts.append(len(columns))
    entries: Any = (np.ones(len(columns), dtype=np.float32), np.asarray(columns, dtype=np.int64), np.asarray(starts))
    return sparse.csr_matrix(entries, shape=(len(texts), len(number)))
