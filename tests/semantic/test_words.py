"""Words of a search: folding, plurals, scripts without spaces, one slip."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rankloom.semantic.spelling import Spelling, one_slip
from rankloom.semantic.words import singular, words


def test_words_are_folded_and_cut_at_the_edge_of_a_script() -> None:
    assert words("Ｄｒｅｓｓｅｓ, DRESS dress!") == ["dress", "dress", "dress"]
    assert words("Nike复古运动鞋 x") == ["nike", "复古", "古运", "运动", "动鞋", "x"]
    assert words("茶 3.5oz") == ["茶", "3", "5oz"]
    assert words(" - !? ") == []


def test_plurals_and_what_only_looks_like_one() -> None:
    cut = {"batteries": "battery", "boxes": "box", "dresses": "dress", "washes": "wash", "shoes": "shoe", "oils": "oil",
           "hoodies": "hoody", "hoodie": "hoody", "ties": "tie"}  # fmt: skip
    kept = ("bus", "glass", "gas", "virus", "is")
    assert {word: singular(word) for word in cut} == cut
    assert [singular(word) for word in kept] == list(kept)


def slips(first: str, second: str) -> int:
    """Optimal string alignment distance, the slow way."""
    d = [[max(i, j) if not i * j else 0 for j in range(len(second) + 1)] for i in range(len(first) + 1)]
    for i in range(1, len(first) + 1):
        for j in range(1, len(second) + 1):
            d[i][j] = min(d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (first[i - 1] != second[j - 1]))
            if i > 1 and j > 1 and first[i - 1] == second[j - 2] and first[i - 2] == second[j - 1]:
                d[i][j] = min(d[i][j], d[i - 2][j - 2] + 1)
    return d[-1][-1]


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_one_slip_is_the_alignment_distance_of_one(first: str, second: str) -> None:
    assert one_slip(first, second) == (slips(first, second) == 1)


@given(
    st.lists(st.text("abc", min_size=3, max_size=6), min_size=1, max_size=12, unique=True),
    st.text("abc", min_size=4, max_size=6),
)
def test_the_most_frequent_word_one_slip_away(known: list[str], typed: str) -> None:
    frequency = {word: 1 + place % 3 for place, word in enumerate(known)}
    near = [word for word in known if slips(word, typed) == 1]
    expected = min(near, key=lambda word: (-frequency[word], word), default=None)
    assert Spelling(frequency).correct(typed) == expected


def test_short_words_numbers_and_unused_words_are_not_touched() -> None:
    own = Spelling({"shampoo": 5, "2024": 9, "shampoos": 0, "cat": 3})
    assert own.correct("shampo") == "shampoo"
    assert own.correct("2025") is None
    assert own.correct("car") is None
    assert own.correct("shampoosx") is None
