"""Who is asked what, and that nothing held out gets into the log."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from rankloom.data.schema import SURFACE_CODE
from rankloom.data.sequences import TEST, VALID, Cases, Sequences
from rankloom.errors import RankloomError
from rankloom.evaluation.search.cases import (
    LOG_SHARES,
    SearchCases,
    asked_of,
    given_queries,
    log_queries,
    made_cases,
    sampled_people,
)
from rankloom.evaluation.search.queries import QueryMaker
from tests.evaluation.logs import leave_one_out
from tests.evaluation.search.shops import items


def small() -> Sequences:
    own = leave_one_out([[0, 1, 2, 3], [2, 3, 0, 1], [3, 2, 1, 0]], 4)
    return replace(own, user_ids=np.asarray(["2", "10", "9"]))


def test_the_sample_is_drawn_in_natural_order_of_ids() -> None:
    assert sampled_people(small(), 3, seed=0).tolist() == [[0, 2, 1][p] for p in random.Random(0).sample(range(3), 3)]
    assert len(sampled_people(small(), 2)) == 2


def test_a_case_is_the_held_out_item_and_its_query() -> None:
    maker = QueryMaker.of(items())
    sequences = small()
    test = made_cases(sequences, TEST, np.asarray([2, 0, 1]), maker, "category")
    # the first person's answer has one level only, so it has no query
    assert test.cases.user.tolist() == [2, 1]
    assert test.cases.target.tolist() == [0, 1]
    assert test.query[0] == "beauty make up nail polish"
    valid = made_cases(sequences, VALID, np.asarray([0]), maker, "category")
    assert valid.cases.target.tolist() == [2]
    assert test.take(np.asarray([False, True])).cases.user.tolist() == [1]


def test_log_queries_keep_their_shares_and_the_kind_is_fixed() -> None:
    maker = QueryMaker.of(items())
    people = [str(number) for number in range(2000)]
    queries = log_queries(maker, people, [0] * 2000)
    # titles here give no keyword query
    share = dict(LOG_SHARES)["category"]
    assert np.mean([query is not None for query in queries]) == pytest.approx(share, abs=0.03)
    assert queries[:50] == log_queries(maker, people[:50], [0] * 50)


def test_given_queries_are_sorted_by_what_their_item_is() -> None:
    frame = pl.DataFrame(
        {
            "user_id": [2, 2, 10, 10, 9, 9],
            "item_id": ["4", "1", "1", "2", "77", "1"],
            "query": ["glass", "old red", "some", "blue", "what", "red"],
        }
    )
    given = given_queries(small(), ["1", "2", "3", "4"], frame)
    assert given.test.query == ("glass", "blue", "red")
    assert given.test.cases.target.tolist() == [3, 1, 0]
    assert given.valid.query == ("some",)
    assert given.training.rows() == [("2", "1", "old red")]
    assert given.unmatched == 1
    with pytest.raises(RankloomError, match="lacks query"):
        given_queries(small(), ["1", "2", "3", "4"], frame.drop("query"))
    with pytest.raises(RankloomError, match="no row"):
        given_queries(small(), ["1", "2", "3", "4"], frame.head(0))


def test_asking_keeps_histories_and_leaves_other_people_out() -> None:
    sequences = small()
    sequences = replace(
        sequences, query=np.asarray([-1, 0, -1, -1, 1, -1, -1, -1, -1, 2, -1, -1], np.int32), queries=("a", "b", "c")
    )
    asked = SearchCases(
        sequences,
        Cases(np.asarray([2, 0, 2], np.int32), np.asarray([11, 3, 11]), np.asarray([0, 3, 0], np.int32)),
        ("x", "y", "z"),
    )
    (first, at_first), (second, at_second) = asked_of(asked)
    assert at_first.tolist() == [0, 1]
    assert at_second.tolist() == [2]
    own = first.sequences
    assert own.user_ids.tolist() == ["2", "9"]
    assert own.item.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    assert [own.queries[q] if q >= 0 else None for q in own.query] == [None, "a", None, "y", None, "c", None, "x"]
    assert own.surface[[3, 7]].tolist() == [SURFACE_CODE["search"]] * 2
    assert first.cases.row.tolist() == [7, 3]
    assert first.cases.user.tolist() == [1, 0]
    assert second.sequences.queries[second.sequences.query[7]] == "z"
    assert second.sequences.query[3] == -1
    # the log itself stays as it was
    assert sequences.query[11] == -1
