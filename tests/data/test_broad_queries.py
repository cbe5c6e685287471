"""Made searches for a kind of item: which rows get one, what it says, what stays."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from rankloom.data.broad_queries import with_broad_queries
from rankloom.data.schema import SURFACE_CODE
from rankloom.data.sequences import TEST, TRAIN, VALID, Sequences

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "category": [["Goods", "Kitchen", "Pans"], ["Goods", "Tea"], ["Goods"], None],
    },
    schema={"item_id": pl.String, "category": pl.List(pl.String)},
)


def log(n_users: int = 40) -> Sequences:
    """Everybody: two takes in training, a search and two takes in validation, one in the test."""
    rng = np.random.default_rng(0)
    item, query, stage = [], [], []
    for _ in range(n_users):
        item += rng.integers(0, 4, 6).tolist()
        query += [-1, 1, 0, -1, -1, -1]
        stage += [TRAIN, TRAIN, VALID, VALID, VALID, TEST]
    n = len(item)
    zeros = np.zeros(n, dtype=np.int8)
    return Sequences(
        user_ids=np.array([str(user) for user in range(n_users)]), offsets=np.arange(0, n + 1, 6, dtype=np.int64),
        item=np.array(item, dtype=np.int32), kind=zeros, timestamp=np.arange(n, dtype=np.int64),
        watch_ratio=np.full(n, np.nan, np.float32), surface=zeros.copy(), position=np.full(n, -1, np.int16),
        query=np.array(query, dtype=np.int32), target=np.ones(n, dtype=bool), stage=np.array(stage, dtype=np.int8),
        n_items=4, queries=("tea", "pan"),
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_takes_of_validation_without_a_search_are_read_as_searches_for_their_kind(ratio: float) -> None:
    before = log()
    after = with_broad_queries(before, ITEMS, ratio=ratio, seed=0)
    made = np.flatnonzero(after.query != before.query)
    assert len(made) == round(ratio * 40)
    assert (after.stage[made] == VALID).all()
    assert (before.query[made] == -1).all()
    assert (after.surface[made] == SURFACE_CODE["search"]).all()
    said = {(int(after.item[row]), after.queries[after.query[row]]) for row in made}
    # below the root where there is more than one name; an item without a category is asked for by nobody
    assert said == {(0, "kitchen"), (0, "pans"), (1, "tea"), (2, "goods")}
    assert after.queries[:2] == before.queries
    assert len(set(after.queries)) == len(after.queries)
    for name in ("item", "target", "stage", "timestamp", "offsets"):
        assert (getattr(after, name) == getattr(before, name)).all()
    again = with_broad_queries(before, ITEMS, ratio=ratio, seed=0)
    assert (again.query == after.query).all()


def test_nothing_is_made_of_nothing() -> None:
    before = log()
    assert with_broad_queries(before, ITEMS, ratio=0.0, seed=0) is before
    assert with_broad_queries(before, ITEMS.drop("category"), ratio=1.0, seed=0) is before
    assert with_broad_queries(before, ITEMS.with_columns(category=pl.lit(None, pl.List(pl.String))), ratio=1.0, seed=0) is before
