from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.filters import And, Compare, Filter, In, IsNull, Node, Not, Or, parse_filter
from rankloom.errors import RankloomError

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Hair oil", "Soap", "发油", None],
        "price_micros": [10_000_000, 30_000_000, None, 5_500_000],
        "category": [["Hair", "Oil"], ["Skin"], [], None],
        "in_stock": [True, False, None, True],
        "score": [1.0, float("nan"), None, -2.0],
        "created_at": pl.Series(
            [datetime(2026, 1, d, tzinfo=UTC) for d in (1, 2, 3, 4)], dtype=pl.Datetime("us", "UTC")
        ),
        "attributes": [
            [{"key": "color", "value": "red"}],
            [{"key": "color", "value": "blue"}, {"key": "size", "value": "red"}],
            [],
            None,
        ],
    }
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("price < 30", "ad"),
        ("price <= 30 and in_stock == true", "ad"),
        ('category in ["Hair", "Skin"]', "ab"),
        ('not category in ["Hair"]', "bcd"),
        ('category == "Oil" or price = 5.5', "ad"),
        ('title contains "OIL"', "a"),
        ("title contains '油'", "c"),
        ("title is null", "d"),
        ("price is not null", "abd"),
        ("score > -5", "ad"),
        ("not score > 0", "bcd"),
        ("created_at >= 2026-01-03", "cd"),
        ("created_at < 2026-01-01T12:00:00Z", "a"),
        ('attributes.color == "red"', "a"),
        ('attributes.size == "red"', "b"),
        ("price in []", ""),
        ('item_id not in ["a", "b"]', "cd"),
        ("not (price < 30 or price > 20)", "c"),
        ("in_stock != true", "b"),
    ],
)
def test_filters_mean_what_they_say(text: str, expected: str) -> None:
    chosen = parse_filter(text)
    assert "".join(ITEMS["item_id"].filter(pl.Series(chosen.mask(ITEMS)))) == expected
    np.testing.assert_array_equal(parse_filter(str(chosen)).mask(ITEMS), chosen.mask(ITEMS))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"), ("price", "expected a comparison"), ("price <", "expected a value"), ("price < cheap", "text needs quotes"), ("(price < 3", "expected ')'"),
        ("price < 3 4", "unexpected '4'"), ("price ~ 3", "unexpected character"), ("price not < 3", "after `not`"), ("and price < 3", "field name"),
        ("created_at > 2026-13-40", "not a date"), ("(" * 60 + "price<3" + ")" * 60, "too deeply"), ("p" * 5000, "longer than"), ("price in 3", "expected '['"),
    ],
)  # fmt: skip
def test_syntax_errors_show_the_place(text: str, message: str) -> None:
    with pytest.raises(RankloomError) as caught:
        parse_filter(text)
    assert message in caught.value.message


def test_a_caret_points_at_the_place() -> None:
    with pytest.raises(RankloomError) as caught:
        parse_filter("price < 3 or banana")
    assert caught.value.message.splitlines()[-1].index("^") - 4 == len("price < 3 or banana")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prise < 3", "did you mean 'price'"),
        ('price < "3"', "holds numbers"),
        ("title > 3", "holds text"),
        ("zzzz == 1", "known fields"),
        ("in_stock contains 'x'", "true or false"),
    ],
)
def test_fields_and_types_are_checked(text: str, message: str) -> None:
    with pytest.raises(RankloomError) as caught:
        parse_filter(text).mask(ITEMS)
    assert message in str(caught.value)


leaves: st.SearchStrategy[Node] = st.one_of(
    st.builds(
        Compare, st.just("n"), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), st.integers(-3, 3).map(float)
    ),
    st.builds(In, st.just("s"), st.lists(st.sampled_from(["x", "y", 'q"\\']), max_size=3).map(tuple)),
    st.builds(IsNull, st.sampled_from(["n", "s", "l"])),
    st.builds(Compare, st.just("l"), st.just("=="), st.sampled_from(["x", "y"])),
)
nodes = st.recursive(
    leaves,
    lambda inner: st.one_of(st.builds(Not, inner), st.builds(And, inner, inner), st.builds(Or, inner, inner)),
    max_leaves=6,
)


def slow(node: Node, row: dict[str, object]) -> bool:
    """The obvious twin."""
    match node:
        case And(left, right):
            return slow(left, row) and slow(right, row)
        case Or(left, right):
            return slow(left, row) or slow(right, row)
        case Not(inner):
            return not slow(inner, row)
        case IsNull(field):
            return row[field] is None
        case In(field, values):
            return row[field] is not None and row[field] in values
        case Compare(field, op, value):
            own = row[field]
            if own is None:
                return False
            if isinstance(own, list):
                return any(element == value for element in own)
            tests = {
                "==": own == value,
                "!=": own != value,
                "<": own < value,
                "<=": own <= value,
                ">": own > value,
                ">=": own >= value,
            }  # type: ignore[operator]
            return tests[op]


@settings(max_examples=80, deadline=None)
@given(node=nodes)
def test_compiled_filters_equal_the_slow_twin(node: Node) -> None:
    rows = [
        {"n": n, "s": s, "l": own}
        for n in (None, -1, 0, 2)
        for s in (None, "x", 'q"\\')
        for own in (None, [], ["x"], ["y", "x"])
    ]
    table = pl.DataFrame(rows, schema={"n": pl.Float64, "s": pl.String, "l": pl.List(pl.String)})
    expected = [slow(node, row) for row in rows]
    assert Filter(node).mask(table).tolist() == expected
    assert parse_filter(str(Filter(node))).mask(table).tolist() == expected
