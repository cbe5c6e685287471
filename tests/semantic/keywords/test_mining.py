from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.config import KEYWORD_TYPES, Config, KeywordsConfig
from rankloom.errors import RankloomError
from rankloom.semantic.keywords.columns import column_values
from rankloom.semantic.keywords.dictionary import KeywordDictionary
from rankloom.semantic.keywords.folding import fold
from rankloom.semantic.keywords.forms import known_forms
from rankloom.semantic.keywords.groups import find_groups, make_groups
from rankloom.semantic.keywords.kinds import kind_of_attribute
from rankloom.semantic.keywords.labelled import mine_labelled
from rankloom.semantic.keywords.lexicon import lexicon
from rankloom.semantic.keywords.mining import mine
from rankloom.semantic.keywords.phrases import best_lift, cohesion
from rankloom.semantic.keywords.searches import holds
from rankloom.semantic.keywords.segmentation import Segmenter

WORDS = Segmenter({"猫砂": 50, "豆腐": 50, "跑鞋": 50, "男士": 50, "膨润土": 50, "轻量": 50, "黑色": 50})
BUILT = {"red": "color", "blue": "color", "wool": "material", "summer": "season", "跑鞋": "entity"}


def catalogue() -> pl.DataFrame:
    """Shoes and cats: 40 items each, in English and Chinese."""
    rows = []
    for n in range(20):
        color = ("red", "blue")[n % 2]
        rows.append((f"Acme {color} trail running shoes for men, 4{n % 3}", "Acme", ["Sports", "Running shoes"], [("colour", color)]))
        rows.append((f"黑色轻量跑鞋 男士 4{n % 3}码", "云杉", ["Sports", "Running shoes"], [("颜色", "黑色")]))
        rows.append((f"Purr clumping cat litter 5kg, {color}", "Purr", ["Pets", "Cat litter"], [("asin", f"B00{n}")]))
        rows.append(("豆腐猫砂 膨润土 PX-100", None, ["Pets", "Cat litter"], []))
    return pl.DataFrame(
        {
            "item_id": [str(n) for n in range(len(rows))],
            "title": [row[0] for row in rows],
            "brand": [row[1] for row in rows],
            "category": [row[2] for row in rows],
            "attributes": [[{"key": key, "value": value} for key, value in row[3]] for row in rows],
        },
        schema_overrides={"attributes": pl.List(pl.Struct({"key": pl.String, "value": pl.String}))},
    )


def mined(**settings: object) -> KeywordDictionary:
    searches = Counter({("trail shoes", 0): 4, ("清仓 猫砂", 3): 3, ("cat litter", 0): 9})
    config = KeywordsConfig(**{"min_lift": 1.5, **settings})  # type: ignore[arg-type]
    return mine(catalogue(), config, searches=searches, segmenter=WORDS)


def kinds(dictionary: KeywordDictionary) -> dict[str, str]:
    return {keyword.term: keyword.kind for keyword in dictionary.keywords}


def test_every_source_gives_its_keywords() -> None:
    own = mined()
    by_term = {keyword.term: keyword for keyword in own.keywords}
    told = {term: (by_term[term].kind, by_term[term].source) for term in by_term}
    assert told["acme"] == ("brand", "column")
    assert told["云杉"] == ("brand", "column")
    assert told["running shoes"] == ("entity", "column")
    assert told["cat litter"] == ("entity", "column")
    assert told["red"] == ("color", "lexicon"), "20 items say it, of which 10 in a column"
    assert told["黑色"] == ("color", "column")
    assert told["men"][0] == "audience"
    assert told["男士"] == ("audience", "lexicon")
    assert told["5kg"] == ("specifications", "form")
    assert told["40码"] == ("specifications", "form")
    assert told["px 100"][0] in ("entity", "modifier", "model")
    assert told["猫砂"][0] == told["跑鞋"][0] == "entity"
    assert told["豆腐"] == ("entity", "phrase")
    assert told["clumping"] == ("modifier", "phrase")
    assert "b000" not in by_term, "an attribute that says nothing about words"
    assert by_term["acme"].n_items == 20
    assert by_term["trail"].n_takes == 4, "takes of items that hold the word"
    assert by_term["cat litter"].n_takes == 0, "these takes were of a shoe"
    # what only puts keywords side by side is none
    assert not {"黑色轻量", "黑色轻量跑鞋", "男士跑鞋"} & set(by_term)


def test_counts_say_where_a_keyword_is_at_home() -> None:
    own = mined()
    assert own.groups == ("Pets > Cat litter", "Sports > Running shoes")
    assert own.group_sizes_G.tolist() == [40, 40]
    counts = own.counts_KG.toarray()
    assert counts[own.index["acme"]].tolist() == [0, 20]
    assert counts[own.index["red"]].tolist() == [10, 10]
    assert counts[own.index["trail"]].tolist() == [0, 24], "20 items and 4 takes"


def test_types_own_words_and_the_head_are_the_shops_choice() -> None:
    few = mined(types=("brand", "entity", "occasion"), terms={"occasion": ("Fun Run", "马拉松")}, max_per_type=2)
    own = kinds(few)
    assert own.pop("fun run") == own.pop("马拉松") == "occasion"
    assert Counter(own.values()) == {"brand": 2, "entity": 2}
    assert kinds(mined(terms={"style": ("Acme",)}))["acme"] == "style"
    with pytest.raises(RankloomError, match="not in types"):
        Config.preset_config("tiny").with_overrides(["keywords.terms={colour: [red]}"])
    with pytest.raises(RankloomError, match=r"embedder is column"):
        Config.preset_config("tiny").with_overrides(
            ["keywords.enabled=true", "text.embedder=column", "text.vector_column=v"][:1]
        ).with_overrides(["text={embedder: column, vector_column: v}"])


def test_the_same_shop_gives_the_same_dictionary() -> None:
    assert mined() == mined()


def test_a_catalogue_of_titles_alone_has_keywords_too() -> None:
    items = catalogue().select("item_id", "title")
    own = mine(items, KeywordsConfig(), segmenter=WORDS)
    told = kinds(own)
    assert told["acme"] == "brand", "what opens titles, where no column names brands"
    assert told["red"] == "color"
    assert own.groups == ()
    assert len(mine(items[:0], KeywordsConfig(), segmenter=WORDS)) == 0


def test_eighteen_types_and_a_lexicon_of_them() -> None:
    assert len(KEYWORD_TYPES) == len(set(KEYWORD_TYPES)) == 18
    assert KeywordsConfig().types == KEYWORD_TYPES
    assert set(lexicon().values()) <= set(KEYWORD_TYPES)
    assert all(fold(word).text == word for word in lexicon())
    assert {word: lexicon().get(word) for word in ("red", "wool", "summer")} == {k: BUILT[k] for k in ("red", "wool", "summer")}


@pytest.mark.parametrize(
    ("key", "kind"),
    [("Colour", "color"), ("Target Audience", "audience"), ("适用季节", "season"), ("asin", None), ("my-key", "series")],
)
def test_attributes_know_their_type(key: str, kind: str | None) -> None:
    assert kind_of_attribute(key, {"My Key": "series"}) == kind


def test_column_values_are_whole_and_in_parts() -> None:
    items = pl.DataFrame(
        {"title": ["x"], "brand": ["Procter & Gamble"], "category": [["Tools & Accessories", "洗发水、护发素", "42"]]}
    )
    assert column_values(items) == [
        [
            ("procter & gamble", "brand"),
            ("tools & accessories", "entity"),
            ("tools", "entity"),
            ("accessories", "entity"),
            ("洗发水、护发素", "entity"),
            ("洗发水", "entity"),
            ("护发素", "entity"),
        ]
    ]


def test_forms_of_prices_sizes_and_models() -> None:
    text = fold("Pot 2.5L, 10x15 cm, $9.99 99元 36码 SM58 2XL 500 ml of 3000")
    assert sorted(known_forms(text)) == [
        ("$9.99", "price"),
        ("10x15 cm", "specifications"),
        ("2.5l", "specifications"),
        ("2xl", "specifications"),
        ("36码", "specifications"),
        ("500 ml", "specifications"),
        ("99元", "price"),
        ("sm58", "model"),
    ]


def test_an_item_belongs_to_the_deepest_branch_that_is_large_enough() -> None:
    paths = [["A", "B", "C"]] * 3 + [["A", "B", "D"]] * 1 + [["E", "F"]] * 1 + [[], None]
    items = pl.DataFrame({"category": paths})
    groups = make_groups(items, min_items=2)
    assert [groups.names[g] if g >= 0 else "" for g in groups.of_item] == ["A > B > C"] * 3 + ["A > B", "E", "", ""]
    index = {name: at for at, name in enumerate(groups.names)}
    assert find_groups(items, index).tolist() == groups.of_item.tolist()
    assert find_groups(pl.DataFrame({"category": [["A", "B", "new"], ["new"]]}), index).tolist() == [index["A > B"], -1]
    assert make_groups(pl.DataFrame({"title": ["x"]})).of_item.tolist() == [-1]


def test_lift_and_cohesion_by_hand() -> None:
    # term 0 in 6 of 6 items of group 0, term 1 in one of each
    lift = best_lift(2, [[0]] * 5 + [[0, 1]] + [[1]] + [[]] * 5, np.array([0] * 6 + [1] * 6), 2)
    np.testing.assert_allclose(lift, [(6 + 2.5) / (11 * 0.5), (1 + 2.5) / (7 * 0.5)])
    counts = {"cat litter": 10, "cat": 10, "litter": 20}
    own = cohesion("cat litter", counts, 100, WORDS)
    assert own == pytest.approx(np.log(0.1 / (0.1 * 0.2)) / -np.log(0.1))
    assert cohesion("cat", counts, 100, WORDS) == 1.0


def test_a_word_stands_in_a_text_as_a_word() -> None:
    assert holds(fold("strings and a ring"), "ring")
    assert not holds(fold("strings"), "ring")
    assert holds(fold("红色跑鞋"), "跑鞋")


def test_labels_make_a_dictionary_without_what_is_seldom_marked() -> None:
    texts = ["Nike 跑鞋", "跑鞋 水泥", "水泥 地板", "水泥 地板贴"]
    marks = [[(0, 4, "brand"), (5, 7, "entity")], [(0, 2, "entity")], [(0, 2, "entity"), (3, 5, "entity")], [(3, 6, "entity")]]
    own = mine_labelled(texts, marks)
    assert kinds(own) == {"跑鞋": "entity", "nike": "brand", "地板": "entity", "地板贴": "entity"}
    assert "水泥" in kinds(mine_labelled(texts, marks, min_precision=0.3))


def test_jieba_finds_words_and_leaves_no_trace(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    text = "商务背包双肩包 15.6寸 nike's跑鞋"
    words = [text[start:end] for start, end in Segmenter().words(text)]
    assert words == ["商务", "背包", "双肩包", "15.6", "寸", "nike's", "跑鞋"]
    assert list(tmp_path.iterdir()) == []
    out, err = capfd.readouterr()
    assert out == err == ""
