"""Stuffed titles: what the category bears out, what an honest title may claim."""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy import sparse

from rankloom.decoding.query_memory import QueryMemory
from rankloom.semantic.stuffing import ALLOWED, LEAST, believed, witness_groups

POPULAR = ["dress", "toy", "phone", "case", "charger", "doll", "puzzle"]


def catalogue(last: str) -> tuple[list[str], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Forty pans, forty of other things that have all popular words, and one pan more."""
    texts = [f"iron pan {n}" for n in range(40)] + [f"{' '.join(POPULAR)} {n}" for n in range(40)] + [last]
    return texts, np.asarray([0] * 40 + [1] * 40 + [0])


def found(memory: QueryMemory, query: str) -> list[int]:
    return memory.match(query).row.tolist()


def followed(last: str) -> QueryMemory:
    texts, group = catalogue(last)
    own = QueryMemory.fit(texts, [])
    return own.following(texts, np.ones(len(texts), dtype=np.bool_), np.zeros(len(texts), np.float32), group)


def test_a_stuffed_title_is_not_found_by_what_it_claims() -> None:
    own = followed("iron pan " + " ".join(POPULAR))
    assert 80 not in found(own, "toy")
    assert 80 in found(own, "iron pan")


def test_a_few_unusual_words_are_believed() -> None:
    assert 80 in found(followed("iron pan toy phone"), "toy")
    assert 80 in found(followed("iron pan " + " ".join(POPULAR[:ALLOWED])), POPULAR[0])
    assert 80 not in found(followed("iron pan " + " ".join(POPULAR[: ALLOWED + 1])), POPULAR[0])


def test_rare_words_and_items_without_a_witness_are_believed() -> None:
    rare = [f"rare{n}" for n in range(12)]
    assert 80 in found(followed("iron pan " + " ".join(rare)), "rare3")
    texts, group = catalogue("iron pan " + " ".join(POPULAR))
    group[80] = -1
    own = QueryMemory.fit(texts, [])
    own = own.following(texts, np.ones(len(texts), dtype=np.bool_), np.zeros(len(texts), np.float32), group)
    assert 80 in found(own, "toy")


def test_nobody_to_bear_witness_changes_nothing() -> None:
    matrix = sparse.csr_matrix(np.ones((3, 4), dtype=np.float32))
    assert believed(matrix, np.full(3, -1)) is matrix


def test_small_categories_are_read_with_their_parent() -> None:
    paths = [["Home", "Pans"]] * LEAST + [["Home", "Odd"]] * 2 + [["Few"]] * 3 + [None, []]
    group = witness_groups(pl.DataFrame({"category": pl.Series(paths, dtype=pl.List(pl.String()))}))
    assert len(set(group[:LEAST].tolist())) == 1
    assert group[0] >= 0
    assert group[LEAST] == group[LEAST + 1] >= 0
    assert group[LEAST] != group[0]
    assert group[LEAST + 2 :].tolist() == [-1] * 5
    assert witness_groups(pl.DataFrame({"title": ["a"]})).tolist() == [-1]
