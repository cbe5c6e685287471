"""Attribute tokens: one per category level, brand, price and duration, the same for items that come later."""

from __future__ import annotations

import polars as pl

from rankloom.models.attributes import item_attributes

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "category": [["Home", "Lamps"], ["Home", "Chairs"], None],
        "brand": ["Lumo", None, "Lumo"],
        "price_micros": [10_000_000, 11_000_000, 90_000_000],
        "duration_s": [None, None, 30.0],
    },
    schema_overrides={"category": pl.List(pl.String)},
)


def test_the_same_value_is_the_same_token_and_nothing_is_zero() -> None:
    tokens = item_attributes(ITEMS)
    assert tokens is not None
    home, second, brand, price, duration = tokens.T
    assert home[0] == home[1] != 0
    assert home[2] == 0
    assert second[0] != second[1]
    assert second[2] == 0
    assert brand[0] == brand[2] != 0
    assert brand[1] == 0
    # half octaves: 10 and 11 are alike, 90 is not
    assert price[0] == price[1] != price[2]
    assert duration.tolist()[:2] == [0, 0]
    assert duration[2] != 0


def test_what_is_free_or_endless_has_no_token() -> None:
    odd = pl.DataFrame({"item_id": list("abcde"), "price_micros": [0, 5_000_000, None, -3, 7], "duration_s": [0.0, float("inf"), float("nan"), 1.0, 30.0]})
    tokens = item_attributes(odd)
    assert tokens is not None
    assert (tokens != 0).tolist() == [[False, False], [True, False], [False, False], [False, True], [True, True]]


def test_tokens_do_not_depend_on_the_rest_of_the_catalogue() -> None:
    whole, alone = item_attributes(ITEMS), item_attributes(ITEMS[:1])
    assert whole is not None
    assert alone is not None
    assert set(alone[0].tolist()) == set(whole[0].tolist()) - {0}


def test_a_catalogue_that_says_nothing_has_none() -> None:
    assert item_attributes(ITEMS.select("item_id")) is None
    assert item_attributes(ITEMS.select("item_id", pl.lit(None, dtype=pl.String).alias("brand"))) is None
