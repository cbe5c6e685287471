"""Raw values become the shop's: prices, paths, flags, attributes, ids and times, whatever their spelling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.data import casting, schema
from rankloom.errors import RankloomError

TIMES = st.datetimes(datetime(1995, 1, 1), datetime(2090, 1, 1))


def cast(shop: str, values: list[Any], dtype: Any = None, source: str = "x") -> list[Any]:
    series = pl.Series(source, values, dtype=dtype)
    return pl.DataFrame(series).select(casting.cast_column(shop, source, series.dtype)).to_series().to_list()


def read(values: list[Any], dtype: Any = None) -> list[datetime | None]:
    return casting.TimeReader("x", place="f", notices=[])(pl.Series("x", values, dtype=dtype)).to_list()


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("12", 12_000_000), ("12.5", 12_500_000), ("$1,299.00", 1_299_000_000), ("1.299,00 €", 1_299_000_000), ("￥12.5", 12_500_000),
        ("1,299", 1_299_000_000), ("12,5", 12_500_000), ("1,234,567.89", 1_234_567_890_000), ("12.50 USD.", 12_500_000), ("-3", -3_000_000),
        ("free", None), ("", None), (None, None),
    ],
)  # fmt: skip
def test_prices_as_people_write_them(text: str | None, micros: int | None) -> None:
    assert cast("price_micros", [text], pl.String) == [micros]


@given(st.integers(0, 10**9))
def test_a_price_in_cents_survives_every_spelling(cents: int) -> None:
    micros = [cents * 10_000]
    assert cast("price_micros", [cents / 100]) == micros
    assert cast("price_micros", [f"{cents / 100:,.2f}"]) == micros
    german = f"{cents / 100:,.2f}".translate(str.maketrans(",.", ".,"))
    assert cast("price_micros", [german]) == micros
    assert cast("price_micros", [cents * 10_000], source="price_micros") == micros


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("Tea > Green", ["Tea", "Green"]), ("Tea|Green", ["Tea", "Green"]), ("Tea; Green", ["Tea", "Green"]), ("Tea, Green", ["Tea", "Green"]),
        ("Tea, loose > Green", ["Tea, loose", "Green"]), ("Tea", ["Tea"]), ([["Home", "Tea"], ["Home", "Gifts"]], ["Home", "Tea", "Gifts"]),
        (["Tea", " ", "Tea", "Green "], ["Tea", "Green"]),
    ],
)  # fmt: skip
def test_category_paths(value: Any, path: list[str]) -> None:
    assert cast("category", [value]) == [path]


def test_flags_from_words_numbers_and_booleans() -> None:
    words = ["yes", "in_stock", "In Stock", "preorder", "有货", "1", "3", "no", "out of stock", "OUT_OF_STOCK", "缺货", "0", "perhaps", None]
    assert cast("in_stock", words) == [True] * 7 + [False] * 5 + [None, None]
    assert cast("in_stock", [2, 0]) == [True, False]
    assert cast("in_stock", [True, None]) == [True, None]


def test_ids_are_text_without_spaces_and_without_point_zero() -> None:
    assert cast("item_id", [" a ", "", "01"]) == ["a", None, "01"]
    assert cast("item_id", [7.0, 1.2e15, 1.5]) == ["7", "1200000000000000", "1.5"]
    assert cast("user_id", [7, None]) == ["7", None]


def test_numbers_nan_and_whole_numbers() -> None:
    assert cast("watch_s", ["1.5", " 2 ", "x", "NaN"]) == [1.5, 2.0, None, None]
    assert cast("watch_s", [float("nan"), 3]) == [None, 3.0]
    assert cast("position", ["3", "3.0", "3.5", "4000000000"]) == [3, 3, None, None]
    assert cast("title", [[1, 2]]) == ["1 2"]


def test_event_names_and_surfaces_of_other_systems() -> None:
    assert cast("event", ["Product Viewed", "order", "点击", "view_item_list", "Teleport "]) == ["view", "purchase", "click", "impression", "teleport"]
    assert set(casting.EVENT_ALIASES.values()) <= set(schema.EVENT_KINDS[1:])
    assert all(name == name.lower() for name in casting.EVENT_ALIASES)
    assert cast("surface", ["Home", "搜索", "ad", ""]) == ["feed", "search", "ads", None]


@pytest.mark.parametrize(
    ("value", "pairs"),
    [
        ({"a": 1, "b": ["x", "y"], "c": None}, {"a": "1", "b": "x, y"}), ('{"a": "1"}', {"a": "1"}), ("a=1; b: 2", {"a": "1", "b": "2"}),
        ([{"key": "a", "value": 1}], {"a": "1"}), ('[{"key": "a", "value": "1"}]', {"a": "1"}), ("nonsense", None), ("{half", None), (7, None),
    ],
)  # fmt: skip
def test_attributes(value: Any, pairs: dict[str, str] | None) -> None:
    (found,) = casting.attributes(pl.Series("x", [value], dtype=pl.Object)).to_list()
    assert (None if found is None else {own["key"]: own["value"] for own in found}) == pairs


@given(TIMES, st.sampled_from(["s", "ms", "us", "ns"]))
def test_a_time_is_the_same_in_every_unit(when: datetime, unit: str) -> None:
    whole = when.replace(microsecond=0, tzinfo=UTC)
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    number = int(whole.timestamp()) * factor
    assert read([number]) == read([str(number)]) == [whole]
    if unit == "ms":
        assert read([float(number)]) == [whole]


@given(TIMES, st.integers(-14 * 60, 14 * 60))
def test_a_time_is_the_same_in_every_zone(when: datetime, minutes: int) -> None:
    whole = when.replace(tzinfo=UTC)
    zone = timezone(timedelta(minutes=minutes))
    assert read([whole.astimezone(zone).isoformat()]) == [whole]
    assert read([when.isoformat(" ")]) == read([when.isoformat() + "Z"]) == [whole]
    assert read([whole]) == [whole]


def test_days_are_read_as_midnight() -> None:
    day = datetime(2026, 3, 1, tzinfo=UTC)
    for written in ("2026-03-01", "2026/03/01", "20260301", "01-Mar-2026"):
        assert read([written, None, written]) == [day, None, day]
    assert read([20260301]) == [day]
    assert read([day.date()]) == [day]


def test_a_reader_keeps_to_the_unit_it_found() -> None:
    notices: list[str] = []
    reader = casting.TimeReader("t", place="log.csv", notices=notices)
    first = reader(pl.Series([1_767_225_600_000]))
    assert first.to_list() == [datetime(2026, 1, 1, tzinfo=UTC)]
    assert notices == ["log.csv: times of 't' read as ms since 1970"]
    # small numbers are times too, once the unit is known: the validator says that they are old
    assert reader(pl.Series([0])).to_list() == [datetime(1970, 1, 1, tzinfo=UTC)]
    with pytest.raises(RankloomError, match="mixed: ms before, 2 in s") as caught:
        reader(pl.Series([5, 1_767_225_600, 1_767_225_601]), lambda row: f"row {row}")
    assert caught.value.place == "row 1"
    assert len(notices) == 1


def test_words_and_small_numbers_are_no_times() -> None:
    assert read(["soon", None]) == [None, None]
    assert read([None, None], pl.String) == [None, None]
    with pytest.raises(RankloomError, match="no times between 1990 and 2100"):
        read([17, 18])
    with pytest.raises(RankloomError, match="mixed"):
        read(["1767225600", "1767225600000"])
