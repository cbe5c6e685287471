"""Queries by hand: the words of a path, pairs of title words, the same draw for the same person and item."""

from __future__ import annotations

import random

import polars as pl
import pytest

from rankloom.errors import RankloomError
from rankloom.evaluation.search import words
from rankloom.evaluation.search.queries import QueryMaker, case_seed, category_paths, words_of_path
from rankloom.evaluation.search.words import plain_words, terms
from tests.evaluation.search.shops import items


def test_words_are_lower_case_without_stop_words() -> None:
    assert plain_words("The Oil of Olay, 2-in-1 CREAM") == ["oil", "olay", "2", "1", "cream"]


def test_chinese_beside_latin_letters_is_another_word() -> None:
    assert plain_words("华为P40手机壳 red") == ["华为", "p40", "手机壳", "red"]


def test_terms_are_stems_and_pairs_of_characters() -> None:
    assert terms("Moisturizers and moisturizing") == ["moistur", "moistur"]
    assert terms("手机壳") == ["手机", "机壳"]
    assert terms("壳") == ["壳"]


def test_jieba_cuts_words() -> None:
    assert {"手机", "透明"} <= set(terms("透明手机壳", chinese="jieba"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(words, "import_module", gone)
    with pytest.raises(RankloomError, match="bm25s") as caught:
        words.optional("bm25s", "bm25s")
    assert "pip install bm25s" in str(caught.value.action)


def test_a_repeated_word_stays_at_its_last_place() -> None:
    assert words_of_path(["Skin Care", "Body", "Hand & Nail Care"]) == "skin body hand nail care"


@pytest.mark.parametrize(
    ("value", "paths"),
    [
        ("A & B,C,D", [["A & B", "C", "D"]]),
        ("A > B, C", [["A", "B, C"]]),
        (["A", "B"], [["A", "B"]]),
        ([["A", "B"], ["C"]], [["A", "B"], ["C"]]),
        (None, []),
    ],
)
def test_category_columns_come_in_three_forms(value: object, paths: list[list[str]]) -> None:
    kinds = {str: pl.String, list: pl.List(pl.String)}
    kind = (
        pl.List(pl.List(pl.String))
        if isinstance(value, list) and isinstance(value[0], list)
        else kinds.get(type(value))
    )
    assert category_paths(pl.Series([value], dtype=kind or pl.String), 1) == [paths]
    assert category_paths(None, 2) == [[], []]


def test_category_queries_come_from_one_of_the_paths_with_two_levels() -> None:
    maker = QueryMaker.of(items())
    assert maker.make("category", "7", 0) == "beauty make up nail polish"
    options = ["beauty make up nail polish", "beauty gifts sets"]
    for user in range(20):
        # the rule, written out: the generator is seeded with user * 31 + item
        assert maker.make("category", str(user), 1) == random.Random(user * 31 + 2).choice(options)
    assert maker.make("category", "7", 3) is None


def test_seeds_of_ids_that_are_no_numbers_differ() -> None:
    assert case_seed("5", "8") == 163
    assert case_seed("ann", "8") != case_seed("ben", "8")


def catalogue() -> pl.DataFrame:
    """Sixty items: `matte` and `red` in six, together in three; `common` in twelve, `pair` with `red` in two."""
    titles = (
        ["matte red"] * 3 + ["matte"] * 3 + ["red pair"] * 2 + ["red pure"] + ["pair pure"] * 4 + ["common thing"] * 12
    )
    titles += [f"single{number}" for number in range(60 - len(titles))]
    return pl.DataFrame({"item_id": [str(row) for row in range(60)], "title": titles})


def test_keyword_queries_are_two_title_words_that_three_items_share() -> None:
    maker = QueryMaker.of(catalogue())
    # 60 / 12 = 5: words of six items and more are too common, of fewer than five too rare
    assert set(maker.owners) == {"pure"}
    wider = QueryMaker.of(
        pl.concat([catalogue(), pl.DataFrame({"item_id": [f"x{n}" for n in range(60)], "title": ["x"] * 60})])
    )
    assert set(wider.owners) == {"matte", "red", "pair", "pure"}
    assert {wider.make("keyword", str(user), 0) for user in range(10)} == {"matte red"}
    assert wider.make("keyword", "1", 6) is None  # red and pair: two items
    assert wider.make("keyword", "1", 9) == "pair pure"
    assert wider.make("keyword", "1", 4) is None  # one usable word
