from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.config import DataConfig
from rankloom.data.sequences import TEST, TRAIN, VALID, load_sequences
from rankloom.data.shop import Shop
from rankloom.errors import RankloomError
from rankloom.semantic.khqe.mining import (
    CLICKED,
    ORDERED,
    SHOWN,
    engagement,
    keep_similar,
    query_pairs,
    ranked_triples,
    shown_after_queries,
    taken_pairs,
)
from rankloom.semantic.khqe.relevance import WordAgreement, hard_pairs, read_grades
from tests.semantic.khqe.logs import searched

LOG = [
    ("a", 0, "red dress", "click"), ("a", 1, "red dress", "purchase"), ("b", 0, "dress", "click"), ("b", 1, "dress", "click"),
    ("c", 2, "pan", "purchase"), ("c", 3, None, "click"), ("d", 0, "red dress", "purchase"),
]  # fmt: skip


def test_engagement_keeps_the_most_that_was_done() -> None:
    own = engagement(searched(LOG, 5))
    assert own.queries == ("red dress", "dress", "pan")
    rows = {(own.queries[q], i): (level, takes) for q, i, level, takes in zip(own.query, own.item, own.level, own.takes, strict=True)}
    assert rows == {
        ("red dress", 0): (ORDERED, 2.0), ("red dress", 1): (ORDERED, 1.0), ("dress", 0): (CLICKED, 1.0), ("dress", 1): (CLICKED, 1.0),
        ("pan", 2): (ORDERED, 1.0),
    }  # fmt: skip


def test_nothing_after_training_is_mined() -> None:
    own = engagement(searched(LOG, 5, [TRAIN, TEST, TRAIN, VALID, TEST, TRAIN, TEST]))
    assert own.queries == ("red dress", "dress")
    assert list(zip(own.query.tolist(), own.item.tolist(), strict=True)) == [(0, 0), (1, 0)]


def test_queries_that_led_to_the_same_items_are_pairs() -> None:
    own = engagement(searched(LOG, 5))
    i, j, weight = query_pairs(own, 5)
    assert {(own.queries[a], own.queries[b]) for a, b in zip(i, j, strict=True)} == {("red dress", "dress"), ("dress", "red dress")}
    # the cosine of takes, an item weighed by 1 / log(2 + its queries); both items have two
    takes = np.log1p([[2.0, 1.0], [1.0, 1.0]])
    expected = takes[0] @ takes[1] / np.linalg.norm(takes[0]) / np.linalg.norm(takes[1])
    np.testing.assert_allclose(weight, expected, rtol=1e-5)


def test_an_item_that_every_query_leads_to_says_less() -> None:
    log = [("a", 0, f"q{n}", "click") for n in range(6)]
    log += [("b", 1, "q0", "click"), ("b", 1, "q1", "click"), ("c", 2, "q2", "click")]
    own = engagement(searched(log, 3))
    i, j, weight = query_pairs(own, 3)
    found = {(own.queries[a], own.queries[b]): w for a, b, w in zip(i, j, weight, strict=True)}
    assert found["q0", "q1"] == pytest.approx(1.0)
    # q3 and q4 share all they have, but q2 and q3 only what everybody has
    assert found["q2", "q3"] < found["q3", "q4"]


def test_triples_are_every_better_item_with_every_worse_one() -> None:
    shown = pl.DataFrame({"query": ["red dress", "red dress", "pan", "unknown"], "item": [4, 0, 3, 1]})
    log = [*LOG[:1], *LOG[1:5]]
    own = engagement(searched(log, 5), shown)
    assert (own.level[(own.query == 0) & (own.item == 0)] == CLICKED).all()
    assert (own.level[(own.query == 0) & (own.item == 4)] == SHOWN).all()
    assert "unknown" not in own.queries
    triples = ranked_triples(own, 0)
    found = {
        (own.queries[q], b, w, s) for q, b, w, s in zip(triples.query, triples.better, triples.worse, triples.steps, strict=True)
    }
    assert found == {("red dress", 1, 0, 1), ("red dress", 1, 4, 2), ("red dress", 0, 4, 1), ("pan", 2, 3, 2)}
    assert len(taken_pairs(own)[0]) == 5


def test_triples_of_a_query_are_bounded_and_the_same_for_the_same_seed() -> None:
    log = [("a", item, "q", "click" if item % 2 else "purchase") for item in range(60)]
    own = engagement(searched(log, 60))
    first, again, other = (ranked_triples(own, seed, per_level=5) for seed in (0, 0, 1))
    assert len(first) == 25
    np.testing.assert_array_equal(first.better, again.better)
    assert set(first.better) != set(other.better)


def test_the_filter_drops_by_cosine_or_by_share() -> None:
    left = np.array([[1.0, 0.0]], np.float32)
    angle = np.linspace(0, np.pi / 2, 11)
    right = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    pairs = (np.zeros(11, np.int64), np.arange(11), np.ones(11, np.float32))
    kept, least = keep_similar(pairs, left, right, min_cosine=0.6, drop_share=0.5)
    assert kept[1].tolist() == [n for n in range(11) if np.cos(angle[n]) >= 0.6]
    assert least == 0.6
    kept, least = keep_similar(pairs, left, right, min_cosine=None, drop_share=0.2)
    assert kept[1].tolist() == list(range(9))
    assert least == pytest.approx(np.quantile(np.cos(angle), 0.2), abs=1e-6)
    assert len(keep_similar(pairs, left, right, min_cosine=None, drop_share=0.0)[0][0]) == 11


def test_impressions_end_where_training_ends(bazaar: Shop) -> None:
    sequences = load_sequences(bazaar, DataConfig(split="time"))
    shown = shown_after_queries(bazaar, sequences, by_time=True)
    end = sequences.timestamp[sequences.stage >= VALID].min()
    events = pl.read_parquet(bazaar.path / "events.parquet").filter(
        (pl.col("event") == "impression") & pl.col("query").is_not_null() & (pl.col("timestamp").dt.timestamp("us") < end)
    )
    ids = bazaar.items()["item_id"].to_list()
    found = {(query, ids[item]) for query, item in shown.rows()}
    assert found
    assert found <= set(events.select("query", "item_id").rows())
    own = engagement(sequences, shown)
    assert {SHOWN, CLICKED} <= set(own.level.tolist())
    assert len(ranked_triples(own, 0)) > 0


def test_agreement_weighs_words_by_how_rare_they_are() -> None:
    texts = ["red dress", "blue dress", "green dress", "red pan", "夏季连衣裙", "连衣裙 碎花"]
    agreement = WordAgreement(["red dress", "dresses", "夏季连衣裙", "!"], texts)
    rows = np.arange(len(texts))
    asked = [agreement(np.full(len(texts), n), rows) for n in range(4)]
    assert asked[0][0] == pytest.approx(1)
    assert 0 < asked[0][1] < asked[0][3] < 1
    assert asked[1][:3].tolist() == pytest.approx([1, 1, 1])
    assert asked[2][4] == pytest.approx(1)
    assert 0 < asked[2][5] < 1
    assert asked[3].tolist() == [0] * len(texts)


def test_hard_pairs_are_the_nearest_items() -> None:
    rng = np.random.default_rng(0)
    query, item = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=(30, 5)).astype(np.float32)
    q, i = hard_pairs(query, item, top=4)
    for n in range(7):
        assert set(i[q == n]) == set(np.argsort(-(item @ query[n]))[:4])
    assert len(hard_pairs(query, item, top=99)[0]) == 7 * 30


def test_grades_become_scores(tmp_path: Path) -> None:
    file = tmp_path / "grades.parquet"
    table = pl.DataFrame({"query": ["a", "a", "b", "a", "b"], "item_id": ["x", "y", "x", "x", "gone"], "label": [0, 2, 1, 1, 2]})
    table.write_parquet(file)
    queries, scored = read_grades(file, ["y", "x"])
    assert queries == ("a", "b")
    found = {(queries[q], i): s for q, i, s in zip(scored.query, scored.item, scored.score, strict=True)}
    assert found == {("a", 1): 0.25, ("a", 0): 1.0, ("b", 1): 0.5}


@pytest.mark.parametrize(
    ("table", "code"),
    [
        ({"query": ["a"], "item_id": ["x"]}, "grades-columns"),
        ({"query": ["a"], "item_id": ["x"], "label": ["good"]}, "grades-columns"),
        ({"query": ["a"], "item_id": ["z"], "label": [1]}, "grades-empty"),
        ({"query": ["a", "b"], "item_id": ["x", "x"], "label": [1, 1]}, "grades-empty"),
    ],
)
def test_grades_that_cannot_be_used_are_refused(tmp_path: Path, table: dict[str, list[object]], code: str) -> None:
    file = tmp_path / "grades.parquet"
    pl.DataFrame(table).write_parquet(file)
    with pytest.raises(RankloomError) as refused:
        read_grades(file, ["x"])
    assert refused.value.code == code
    assert str(file) in str(refused.value)


def test_a_file_of_grades_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RankloomError, match="cannot be read"):
        read_grades(tmp_path / "none.parquet", ["x"])
