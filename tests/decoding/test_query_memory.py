"""The query memory: BM25 against a slow twin, personal amounts, the live catalogue, folders."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankloom.decoding import query_memory
from rankloom.decoding.memory import BehaviourMemory
from rankloom.decoding.query_evidence import query_evidence
from rankloom.decoding.query_memory import (
    CERTAINTY,
    DEPTH,
    K1,
    PERSONAL,
    SHARPNESS,
    SLIP,
    B,
    QueryMemory,
    behaviour_of,
)
from rankloom.semantic.words import words

TEXTS = [
    "red cotton shirt", "blue cotton shirt", "blue silk dress", "green tea", "black tea bags tea", "红茶 茶包",
]  # fmt: skip
NOBODY = np.full(6, -1)
NOTHING = (torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), torch.zeros(0))


def memory(takes: list[tuple[int, str]] | None = None) -> QueryMemory:
    return QueryMemory.fit(TEXTS, takes or [])


def slow_bm25(texts: list[str], query: str) -> list[float]:
    docs = [words(text) for text in texts]
    usual = sum(map(len, docs)) / len(docs)
    out = []
    for doc in docs:
        score = 0.0
        for word in set(words(query)):
            n = sum(word in other for other in docs)
            idf = math.log(1 + (len(docs) - n + 0.5) / (n + 0.5))
            tf = doc.count(word)
            score += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * len(doc) / usual)) if tf else 0.0
        out.append(score)
    return out


@given(
    st.lists(st.lists(st.sampled_from(["tea", "red", "blue", "silk", "oil"]), min_size=1, max_size=6).map(" ".join), min_size=2, max_size=8),
    st.lists(st.sampled_from(["tea", "red", "blue", "silk", "oil"]), min_size=1, max_size=3).map(" ".join),
)  # fmt: skip
def test_relevance_is_bm25_over_the_best(texts: list[str], query: str) -> None:
    found = QueryMemory.fit(texts, []).match(query)
    expected = np.asarray(slow_bm25(texts, query))
    rows = np.flatnonzero(expected > 0)
    assert found.row.tolist() == rows.tolist()
    if len(rows):
        assert found.relevance == pytest.approx(expected[rows] / expected.max(), rel=1e-5)
        order = np.argsort(-found.relevance, kind="stable")
        assert found.place[order].tolist() == list(range(len(rows)))


def test_words_that_led_to_an_item_find_it_though_no_text_has_them() -> None:
    assert not len(memory().match("hoodie").row)
    taught = memory([(0, "hoodie"), (0, "Hoodies"), (1, "hoodie")])
    found = taught.match("hoodie")
    assert found.row.tolist() == [0, 1]
    assert found.relevance[0] > found.relevance[1]
    assert taught.asked([0, 1, 2], "hoodie") == [True, True, False]
    assert taught.asked([0], "shirt") == [False]


def test_a_slip_is_read_as_the_known_word_and_counts_less() -> None:
    right, wrong = memory().match("shirt"), memory().match("shrit")
    assert wrong.read_as == (("shrit", "shirt"),)
    assert wrong.row.tolist() == right.row.tolist() == [0, 1]
    assert wrong.coverage == pytest.approx(right.coverage * SLIP)
    assert memory().match("zzzz").row.tolist() == []


def test_coverage_is_the_share_of_the_query_by_how_rare_its_words_are() -> None:
    found = memory().match("blue silk zzzz")
    dress, shirt = found.coverage[found.row == 2][0], found.coverage[found.row == 1][0]
    assert 0 < shirt < dress < 1
    assert memory().match("blue silk").coverage.max() == pytest.approx(1)


def test_chinese_is_found_inside_longer_words() -> None:
    assert memory().match("红茶").row.tolist() == [5]


def test_amounts_follow_words_takes_and_history() -> None:
    own = memory()
    counts = np.asarray([0, 9, 0, 0, 0, 0], dtype=np.float32)
    own = own.following(TEXTS, np.ones(6, dtype=np.bool_), counts, NOBODY)
    history = (torch.tensor([1, 1]), torch.tensor([0, 0]), torch.tensor([0.1, 0.2]))
    request, row, amount = own.recall([own.match("cotton shirt"), own.match("cotton shirt")], history)
    assert request.tolist() == [0, 0, 1, 1]
    assert row.tolist() == [0, 1, 0, 1]
    match = own.match("cotton shirt")
    base = np.exp(SHARPNESS * (match.relevance - 1.0)) * np.sqrt(1 + counts[[0, 1]] / counts.mean())
    assert amount[:2].numpy() == pytest.approx(CERTAINTY * base / base.sum(), rel=1e-5)
    personal = base * np.asarray([1 + PERSONAL * 0.3, 1])
    assert amount[2:].numpy() == pytest.approx(CERTAINTY * personal / personal.sum(), rel=1e-5)


def test_a_query_half_understood_says_less() -> None:
    own = memory()
    _, _, whole = own.recall([own.match("silk")], NOTHING)
    _, _, half = own.recall([own.match("silk zzzz")], NOTHING)
    assert float(whole.sum()) == pytest.approx(CERTAINTY)
    assert 0 < float(half.sum()) < CERTAINTY
    assert not len(own.recall([own.match("zzzz")], NOTHING)[0])
    assert not len(own.recall([], NOTHING)[0])


def test_the_live_catalogue_equals_a_fresh_index() -> None:
    takes = [(0, "hoodie"), (2, "gown")]
    own = memory(takes)
    texts = ["red cotton hat", *TEXTS[1:], "yellow silk scarf", "blue scarf"]
    alive = np.ones(8, dtype=np.bool_)
    alive[2] = False
    own = own.following(texts, alive, np.arange(8, dtype=np.float32), np.full(8, -1))
    fresh = QueryMemory.fit(texts, takes)
    fresh = fresh.following(texts, alive, np.arange(8, dtype=np.float32), np.full(8, -1))
    for query in ("hat", "shirt", "silk", "scarf", "hoodie", "gown", "blue scarf", "cotton"):
        one, two = own.match(query), fresh.match(query)
        assert one.row.tolist() == two.row.tolist()
        assert one.relevance == pytest.approx(two.relevance)
        assert 2 not in one.row
    assert own.match("hat").row.tolist() == [0]
    assert own.match("yelow").read_as == (("yelow", "yellow"),)


def test_at_most_the_best_are_remembered() -> None:
    texts = ["tea", *["tea and much else"] * (DEPTH + 50)]
    found = QueryMemory.fit(texts, []).match("tea")
    assert len(found.row) == DEPTH
    assert found.row[0] == 0
    assert found.place[0] == 0


def test_arrays_bring_it_back_and_foreign_ones_are_refused() -> None:
    own = memory([(0, "hoodie")])
    again = QueryMemory.from_arrays(own.arrays(), TEXTS)
    for query in ("hoodie", "tea", "红茶"):
        assert again.match(query).row.tolist() == own.match(query).row.tolist()
        assert again.match(query).relevance.tolist() == own.match(query).relevance.tolist()
    with pytest.raises(ValueError, match="6 texts"):
        QueryMemory.from_arrays(own.arrays(), TEXTS[:3])
    empty = QueryMemory.fit(["", ""], [])
    assert not len(QueryMemory.from_arrays(empty.arrays(), ["", ""]).match("tea").row)


def test_behaviour_of_adds_up_what_several_places_say() -> None:
    recalled = (torch.tensor([0, 0, 1]), torch.tensor([3, 3, 3]), torch.tensor([0.5, 0.25, 1.0]))
    told = behaviour_of(recalled, torch.tensor([0, 1, 1]), torch.tensor([3, 3, 2]), 6)
    assert told.tolist() == [0.75, 1.0, 0.0]
    assert behaviour_of(NOTHING, torch.tensor([0]), torch.tensor([1]), 6).tolist() == [0.0]


def test_evidence_is_that_of_the_item_and_nothing_for_others() -> None:
    own = memory()
    matches = [own.match("cotton"), own.match("zzzz")]
    unit = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    items = torch.tensor([[1, 4, -1], [0, 1, 2]])
    table = BehaviourMemory.fit(np.asarray([0, 0]), np.asarray([3, 1]), 6)
    recalled = table.recall(torch.tensor([[3], [-1]]))
    query = torch.cat([torch.ones(2, 2), unit[[1, 2]]], dim=1)
    evidence: Any = query_evidence(items, matches, recalled, query, unit)
    match = matches[0]
    assert evidence.relevance_BC[0, 0] == match.relevance[match.row == 1][0]
    assert evidence.coverage_BC[0].tolist() == [1.0, 0.0, 0.0]
    assert evidence.place_BC[0, 0] == 1 / (1 + match.place[match.row == 1][0])
    assert evidence.relevance_BC[1].tolist() == [0.0, 0.0, 0.0]
    assert evidence.near_BC[0, 0] == pytest.approx(1)
    assert evidence.near_BC[1, 2] == pytest.approx(1)
    assert evidence.behaviour_BC[0, 0] > 0
    assert evidence.behaviour_BC[1].tolist() == [0.0, 0.0, 0.0]
    assert evidence.breadth_B[1] == 0


def test_a_query_is_as_broad_as_many_items_have_all_that_can_be_had_of_it() -> None:
    texts = [f"red hat {number}" for number in range(30)] + ["blue silk scarf"]
    own = QueryMemory.fit(texts, [])
    unit = torch.nn.functional.normalize(torch.ones(31, 4), dim=1)
    queries = ["hat", "red hat 7", "scarf"]
    evidence: Any = query_evidence(torch.zeros(3, 1, dtype=torch.long), [own.match(query) for query in queries], NOTHING, torch.ones(3, 4), unit)
    assert evidence.breadth_B.tolist() == pytest.approx([np.log(30) / np.log(1000), 0.0, 0.0], abs=1e-6)


def test_what_is_stored_does_not_hang_on_how_strings_are_hashed() -> None:
    code = (
        "import hashlib\nfrom rankloom.decoding.query_memory import QueryMemory\n"
        "own = QueryMemory.fit(['red kettle', 'blue steel pan'], [(0, 'a red steel kettle for tea'), (1, 'pan of blue steel')])\n"
        "print(hashlib.sha256(b''.join(part.tobytes() for part in own.arrays().values())).hexdigest())"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }  # fmt: skip
    assert len(told) == 1


def test_words_that_no_search_has_had_are_told_and_tried_ones_fade() -> None:
    own = memory([(0, "cotton")] * 9 + [(row, "silk") for row in (0, 1, 2)])
    brand = own.match("red shirt")
    assert brand.row.tolist() == [0, 1]
    assert brand.untried[0] == pytest.approx(1.0)  # both words, and no search had either
    assert 0 < brand.untried[1] < brand.untried[0]
    # three items were taken after "silk": one e-th is left of it
    silk = own.match("silk")
    assert silk.untried[silk.row.tolist().index(2)] == pytest.approx(math.exp(-1))


def test_two_chinese_words_that_meet_make_no_untried_word() -> None:
    own = QueryMemory.fit(["平价乐福鞋", "价乐", "平价"], [(0, "平价"), (1, "平价"), (2, "平价")] * 4 + [(n, "乐福") for n in (0, 1, 2)])
    pairs = {word.word: share for word, share in zip(own.read("平价乐福"), own._untried_shares(own.read("平价乐福")), strict=True)}
    assert pairs["价乐"] == pytest.approx(pairs["平价"])
    assert pairs["平价"] < 0.4
    assert own.match("价乐").untried.max() > 0.6  # alone it is meant


def test_a_whole_title_names_its_item_and_a_short_one_does_not() -> None:
    texts = ["acme steel pan large\nAcme Kitchen", "acme steel pan large red\nAcme Kitchen", "pan\nAcme Kitchen"]
    own = QueryMemory.fit(texts, [(row, "acme steel pan large red") for row in range(3)] * 9)
    named = own.match("Large steel PAN, acme")
    assert named.row.tolist() == [0, 1, 2]
    assert named.untried[0] == 1.0
    assert named.untried[1:].max() < 0.4
    assert own.match("pan").untried.max() < 0.4


def test_a_filter_is_asked_before_the_thousand_best(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["lamp"] * 6 + ["lamp of a long and winding title"] * 3
    own = QueryMemory.fit(texts, [])
    late = np.arange(9) >= 6
    whole = own.match_among("lamp", 1, late)
    assert whole.row.tolist() == [6, 7, 8]
    assert whole.relevance.max() == pytest.approx(1.0)
    assert sorted(whole.place.tolist()) == [0, 1, 2]
    monkeypatch.setattr(query_memory, "DEPTH", 5)
    own = QueryMemory.fit(texts, [])
    assert len(own.match("lamp").row) == 5
    cut = own.match_among("lamp", 1, late)
    assert cut.row.tolist() == [6, 7, 8]
    np.testing.assert_allclose(cut.relevance, whole.relevance)
    np.testing.assert_allclose(cut.coverage, whole.coverage)


def test_the_best_of_very_many_are_those_of_a_plain_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    score = draw.choice([0.0, 0.5, 1.0, 2.0], 40_000).astype(np.float32) + draw.random(40_000).astype(np.float32)
    score[draw.random(40_000) < 0.2] = 0
    allowed = draw.random(40_000) < 0.7
    for own in (None, allowed):
        plain = np.where(score > 0, score, -1) if own is None else np.where(own & (score > 0), score, -1)
        wanted = np.sort(np.argsort(-plain, kind="stable")[: query_memory.DEPTH])
        for many in (10**9, 9_000):
            monkeypatch.setattr(query_memory, "_MANY", many)
            np.testing.assert_array_equal(query_memory._best(score, own), wanted)
