from __future__ import annotations

import numpy as np
import pytest

from rankloom.data.sequences import TEST, TRAIN, Cases
from rankloom.evaluation.search.cases import SearchCases
from rankloom.evaluation.search.closeness import Standing, sid_standing, standing
from tests.semantic.khqe.logs import searched


def test_ties_count_by_expectation() -> None:
    own = Standing(np.array([0, 0, 9, 12, 2]), np.array([0, 3, 1, 0, 1]))
    assert own.recall(10).tolist() == [1, 1, 0.5, 0, 1]
    assert own.recall(2).tolist() == [1, 0.5, 0, 0, 0]
    expected = [1, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, (1 / 10) / 2, 0, (1 / 3 + 1 / 4) / 2]
    np.testing.assert_allclose(own.reciprocal_rank(10), expected)


def asked() -> SearchCases:
    """Two people of a catalogue of six; each has taken an item before the asked one."""
    log = searched([("a", 0, None, "click"), ("a", 1, "q", "click"), ("b", 2, None, "click"), ("b", 3, "q", "click")], 6, [TRAIN, TEST] * 2)
    return SearchCases(log, Cases(np.array([0, 1], np.int32), np.array([1, 3]), np.array([1, 3], np.int32)), ("q", "q"))


def test_standing_equals_the_loop_over_items() -> None:
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(6, 4)).astype(np.float32), rng.normal(size=(2, 4)).astype(np.float32)
    own = standing(asked(), queries, items, np.arange(6))
    for case, (target, seen) in enumerate(((1, 0), (3, 2))):
        near = items @ queries[case]
        assert own.ahead[case] == sum(near[i] > near[target] for i in range(6) if i != seen)
        assert own.level[case] == 0


def test_items_of_one_sid_are_level() -> None:
    codes = np.array([[0], [1], [1], [1], [0], [1]], np.int32)
    vectors = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    own = sid_standing(asked(), np.array([[1], [0]], np.int32), codes, lambda rows: vectors[rows[:, 0]])
    # a: items 1, 2, 3, 5 share the query's SID; b: 0 and 4 are nearer than the four, of which 2 was had before
    assert own.ahead.tolist() == [0, 2]
    assert own.level.tolist() == [3, 2]
    assert own.recall(2).tolist() == pytest.approx([0.5, 0])
