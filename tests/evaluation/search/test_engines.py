"""The engines against slow twins: BM25 by its formula, fusion by its sum, features of the cascade counted by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rankloom.data.sequences import TEST, VALID, Cases, Sequences
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.dense import Dense, Fusion
from rankloom.evaluation.search.learned import FEATURES, MiniCascade, transitions
from rankloom.evaluation.search.lexical import BM25, Index
from rankloom.evaluation.search.systems import Shelf, index_texts, only_best, places
from rankloom.evaluation.search.words import terms
from tests.evaluation.logs import leave_one_out

CORPUS = ["red nail polish", "blue nail polish polish", "hand cream", "red hand cream for nails", "mirror"]


def bm25(query: str, k1: float, b: float) -> np.ndarray:
    """Robertson's formula with Lucene's idf, term by term."""
    docs = [terms(text) for text in CORPUS]
    mean = sum(map(len, docs)) / len(docs)
    out = np.zeros(len(docs))
    for term in terms(query):
        holders = sum(term in doc for doc in docs)
        idf = math.log(1 + (len(docs) - holders + 0.5) / (holders + 0.5))
        for row, doc in enumerate(docs):
            tf = doc.count(term)
            out[row] += idf * tf / (tf + k1 * (1 - b + b * len(doc) / mean)) if tf else 0
    return out


def asked(log: Sequences, queries: Sequence[str], *, stage: int = TEST) -> SearchCases:
    return SearchCases(log, log.cases(stage), tuple(queries))


def shelf(log: Sequences) -> Shelf:
    return Shelf.of(pl.DataFrame({"title": CORPUS}), log)


@pytest.fixture
def log() -> Sequences:
    """Item 2 follows item 0 twice in TRAIN, and is had by both people when they are asked for 1 and 3."""
    return leave_one_out([[0, 2, 4, 1], [0, 2, 4, 3]], 5)


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.3, 0.0), (2.5, 0.9)])
def test_bm25_is_its_formula(k1: float, b: float) -> None:
    index = Index([terms(text) for text in CORPUS], k1, b)
    for query in ("red polish", "nails nails", "cream", "nothing here"):
        np.testing.assert_allclose(index.scores(query), bm25(query, k1, b), rtol=1e-5)


def test_bm25_finds_chinese_by_pairs_of_characters() -> None:
    index = Index([terms("透明手机壳"), terms("手机"), terms("外壳")], 1.5, 0.75)
    score = index.scores("手机壳")
    assert score[0] > score[1] > 0 == score[2]


def test_what_is_had_is_not_ranked_and_what_shares_no_word_neither(log: Sequences) -> None:
    engine = BM25()
    engine.fit(shelf(log), asked(log, ["a", "b"], stage=VALID), 0)
    lists = engine.rank(asked(log, ["red nail cream", "mirror"]), 5)
    # items 0, 2 and 4 are had by both
    assert lists.tolist()[0][:2] == [3, 1]
    assert lists.tolist()[0][2:] == [-1, -1, -1]
    assert lists.tolist()[1] == [-1] * 5


def test_popularity_is_half_a_log_count(log: Sequences) -> None:
    engine = BM25(popularity=0.5)
    engine.fit(shelf(log), asked(log, ["x", "x"], stage=VALID), 0)
    score = engine.scores(asked(log, ["red nail", "hand"]), slice(0, 2))
    assert score[0, 0] == pytest.approx(bm25("red nail", 1.5, 0.75)[0] + 0.5 * math.log(3), rel=1e-5)
    assert score[1, 3] == pytest.approx(bm25("hand", 1.5, 0.75)[3], rel=1e-5)
    assert np.isneginf(score[0, 4])


def test_tuning_reads_validation_alone() -> None:
    # everybody's VALID answer is the longer text that has the word twice
    log = leave_one_out([[2, 4, 1, 0]] * 30, 5)
    valid = asked(log, ["polish"] * 30, stage=VALID)
    engine = BM25(tuned=True)
    engine.fit(shelf(log), valid, 0)
    index = engine.index.scores("polish")
    assert index[1] > index[0]
    other = BM25(tuned=True)
    answers = replace(log, item=np.where(log.stage == TEST, 3, log.item))
    other.fit(shelf(answers), asked(answers, ["polish"] * 30, stage=VALID), 0)
    assert (engine.k1, engine.b) == (other.k1, other.b)


def test_places_and_depth_by_sorting() -> None:
    score = np.array([[1.0, 3.0, 3.0, -np.inf, 2.0]], dtype=np.float32)
    assert places(score).tolist() == [[3, 0, 1, 4, 2]]
    assert only_best(score.copy(), 2).tolist() == [[-np.inf, 3.0, 3.0, -np.inf, -np.inf]]


class Letters:
    """Vectors that count letters: an encoder without a download."""

    def fit(self, texts: Sequence[str], seed: int = 0) -> np.ndarray:
        return self.embed(texts)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        counts = np.asarray(
            [[text.count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts], np.float32
        )
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    def arrays(self) -> dict[str, np.ndarray]:
        return {}


def test_fusion_is_the_sum_of_reciprocal_places(log: Sequences) -> None:
    lexical, dense = BM25(), Dense(Letters(), name="letters")
    questions = asked(log, ["red nail polish", "hand cream"])
    for part in (lexical, dense):
        part.fit(shelf(log), questions, 0)
    fused = Fusion(lexical, dense).scores(questions, slice(0, 2))
    for row in range(2):
        one, two = lexical.scores(questions, slice(row, row + 1))[0], dense.scores(questions, slice(row, row + 1))[0]
        for item in range(5):
            expected = 1 / (61 + int((two > two[item]).sum()))
            if np.isfinite(one[item]):
                expected += 1 / (61 + int((one > one[item]).sum()))
            assert fused[row, item] == pytest.approx(expected, rel=1e-5)


def test_the_cascades_features_by_hand(log: Sequences) -> None:
    lexical = BM25()
    own = shelf(log)
    lexical.fit(own, asked(log, ["a", "b"]), 0)
    cascade = MiniCascade(lexical)
    cascade.fit(own, SearchCases(log, Cases(*(np.zeros(0, np.int32),) * 3), ()), 0)
    # at the second row of a TRAIN history: the last item is 0, which 2 followed twice
    question = SearchCases(
        log, Cases(np.asarray([0], np.int32), np.asarray([1]), np.asarray([2], np.int32)), ("hand cream",)
    )
    item, feature = cascade.candidates(question, slice(0, 1))
    assert item[0].tolist()[:2] == [2, 3]
    by_name = {name: feature[0, :, place] for place, name in enumerate(FEATURES)}
    np.testing.assert_allclose(by_name["bm25"][:2], bm25("hand cream", 1.5, 0.75)[[2, 3]], rtol=1e-5)
    assert by_name["bm25_share"][0] == 1
    np.testing.assert_allclose(by_name["bm25_place"][:2], [0, math.log(2)], rtol=1e-5)
    np.testing.assert_allclose(by_name["popularity"][:2], [math.log(3), 0], rtol=1e-5)
    np.testing.assert_allclose(by_name["markov"][:2], [math.log(3), 0], rtol=1e-5)
    content = cascade.content_ID
    np.testing.assert_allclose(by_name["last_cosine"][:2], content[[2, 3]] @ content[0], atol=1e-5)
    # one item of history is its own mean
    np.testing.assert_allclose(by_name["history_cosine"], by_name["last_cosine"], atol=1e-5)


def test_transitions_are_counted_in_train_alone(log: Sequences) -> None:
    counted = transitions(log).toarray()
    assert counted[0, 2] == 2
    assert counted.sum() == 2


@pytest.mark.parametrize("ranker", ["lightgbm", "logistic"])
def test_a_cascade_learns_what_words_cannot_say(ranker: str) -> None:
    """Forty items share one word; what people take is what follows their last item."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 40, 300)
    lists = [[(start + step) % 40 for step in range(5)] for start in starts.tolist()]
    log = leave_one_out(lists, 40)
    own = Shelf(tuple(f"soap number{row}" for row in range(40)), np.full(40, 5), log)
    questions, valid = asked(log, ["soap"] * 300), asked(log, ["soap"] * 300, stage=VALID)
    lexical = BM25()
    lexical.fit(own, valid, 0)
    cascade = MiniCascade(lexical, "lightgbm" if ranker == "lightgbm" else "logistic", max_trees=40)
    cascade.fit(own, valid, 0)

    def first(lists_CK: np.ndarray) -> float:
        return float((lists_CK[:, 0] == questions.cases.target).mean())

    assert first(lexical.rank(questions, 10)) < 0.2
    assert first(cascade.rank(questions, 10)) > 0.9


def test_index_texts_take_what_there_is() -> None:
    frame = pl.DataFrame({"title": ["a", None], "brand": [None, "b"], "category": [["c", "d"], None]})
    assert index_texts(frame) == ["a c d", "b"]
