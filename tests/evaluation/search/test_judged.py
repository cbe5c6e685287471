"""NDCG, recall and hit rate over graded pairs, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rankloom.evaluation.search.judged import UNJUDGED, Judgements, folds, hit_rate, ndcg, recall

# query 0: item 3 best, 5 some, 7 bad; query 1: nothing; query 2: item 3 some, 1 best, 2 best
JUDGED = Judgements.of([2, 0, 0, 2, 0, 2], [3, 7, 3, 1, 5, 2], [1, 0, 2, 2, 1, 2], 3)
LISTS = np.asarray([[9, 5, 3], [3, 5, 7], [2, 2, -1]], dtype=np.int32)


def test_pairs_lie_together_and_the_best_grade_of_a_pair_counts() -> None:
    assert JUDGED.offsets.tolist() == [0, 3, 3, 6]
    assert JUDGED.item.tolist() == [3, 5, 7, 1, 2, 3]
    assert JUDGED.grade.tolist() == [2, 1, 0, 2, 2, 1]
    assert JUDGED.at_least(1).tolist() == [2, 0, 3]
    twice = Judgements.of([0, 0, 0], [4, 4, 2], [1, 3, 0], 1)
    assert (twice.item.tolist(), twice.grade.tolist()) == ([2, 4], [0, 3])


def test_taking_questions_renumbers_them() -> None:
    own = JUDGED.take(np.asarray([2, 0]))
    assert own.offsets.tolist() == [0, 3, 6]
    assert own.item.tolist() == [1, 2, 3, 3, 5, 7]
    assert own.grades(LISTS[[2, 0]])[1].tolist() == [UNJUDGED, 1, 2]


def test_what_nobody_judged_has_no_grade_and_an_item_counts_once() -> None:
    assert JUDGED.grades(LISTS).tolist() == [[UNJUDGED, 1, 2], [UNJUDGED] * 3, [2, UNJUDGED, UNJUDGED]]
    assert Judgements.of([], [], [], 3).grades(LISTS).tolist() == [[UNJUDGED] * 3] * 3


def test_ndcg_by_hand() -> None:
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    exact = [
        (0.5 * second + 1 * third) / (1 + 0.5 * second),
        0.0,
        1 / (1 + second + 0.5 * third),
    ]
    np.testing.assert_allclose(ndcg(LISTS, JUDGED, (0.0, 0.5, 1.0), 3), exact)
    powers = [(1 * second + 3 * third) / (3 + 1 * second), 0.0, 3 / (3 + 3 * second + 1 * third)]
    np.testing.assert_allclose(ndcg(LISTS, JUDGED, (0.0, 1.0, 3.0), 3), powers)
    # the ideal list is cut at k too
    np.testing.assert_allclose(ndcg(LISTS, JUDGED, (0.0, 0.5, 1.0), 1), [0.0, 0.0, 1.0])


def test_the_ideal_order_has_ndcg_one_whatever_the_depth() -> None:
    best = np.asarray([[3, 5, 7, -1], [-1, -1, -1, -1], [1, 2, 3, 9]], dtype=np.int32)
    for k in (1, 2, 3, 4, 10):
        assert ndcg(best, JUDGED, (0.0, 0.5, 1.0), k).tolist() == [1.0, 0.0, 1.0]


def test_recall_and_hit_rate_by_hand() -> None:
    assert recall(LISTS, JUDGED, 1, 3).tolist() == [1.0, 0.0, pytest.approx(1 / 3)]
    assert recall(LISTS, JUDGED, 1, 2).tolist() == [0.5, 0.0, pytest.approx(1 / 3)]
    assert recall(LISTS, JUDGED, 2, 3).tolist() == [1.0, 0.0, 0.5]
    assert hit_rate(LISTS, JUDGED, 2, 2).tolist() == [0.0, 0.0, 1.0]
    assert hit_rate(LISTS, JUDGED, 1, 2).tolist() == [1.0, 0.0, 1.0]


def test_an_item_beyond_the_catalogue_is_never_found_but_counts() -> None:
    judged = Judgements.of([0, 0], [1, 400], [1, 1], 1)
    assert recall(np.asarray([[1, 2]], dtype=np.int32), judged, 1, 10).tolist() == [0.5]


def test_random_lists_agree_with_the_formula_written_out() -> None:
    rng = np.random.default_rng(1)
    query, item = np.divmod(rng.choice(20 * 30, 200, replace=False), 30)
    grade = rng.integers(0, 4, 200)
    judged = Judgements.of(query, item, grade, 20)
    lists = np.stack([rng.permutation(30)[:12] for _ in range(20)]).astype(np.int32)
    gain = (0.0, 0.01, 0.1, 1.0)
    of = {(q, i): gain[g] for q, i, g in zip(query.tolist(), item.tolist(), grade.tolist(), strict=True)}
    for q, figure in enumerate(ndcg(lists, judged, gain, 10)):
        found = sum(of.get((q, int(i)), 0.0) / math.log2(place + 2) for place, i in enumerate(lists[q][:10]))
        best = sorted((worth for (own, _), worth in of.items() if own == q), reverse=True)[:10]
        ideal = sum(worth / math.log2(place + 2) for place, worth in enumerate(best))
        assert figure == pytest.approx(found / ideal if ideal else 0.0)


def test_folds_are_even_and_drawn_once() -> None:
    own = folds(23, 5)
    assert sorted(np.bincount(own).tolist()) == [4, 4, 5, 5, 5]
    assert own.tolist() == folds(23, 5).tolist() != sorted(own.tolist())
