"""Each figure equals its definition, computed the slow and obvious way."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.data.sequences import Cases
from rankloom.evaluation.metrics import (
    METRICS,
    MISSING,
    SLICES,
    Bootstrap,
    beyond_accuracy,
    gains,
    popularity_buckets,
    rows_of,
    target_rank,
)
from rankloom.evaluation.systems import ScoringSystem, top_items
from tests.evaluation.logs import leave_one_out

N_ITEMS = 9


def slow_gain(own: list[int], target: int, k: int, metric: str) -> float:
    """One target, so the ideal list has it first: DCG is NDCG."""
    for place, item in enumerate(own[:k]):
        if item == target:
            return {"recall": 1.0, "ndcg": 1 / math.log2(place + 2), "mrr": 1 / (place + 1)}[metric]
    return 0.0


rankings = st.lists(st.permutations(range(N_ITEMS)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rankings, st.integers(1, N_ITEMS + 3), st.data())
def test_recall_ndcg_and_mrr_equal_their_definitions(ranked: list[list[int]], k: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, N_ITEMS))
    lists = [own[:length] for own in ranked]
    target = [data.draw(st.integers(0, N_ITEMS - 1)) for _ in lists]
    rank = target_rank(np.array(lists, np.int32), np.array(target, np.int32))
    for metric in METRICS:
        expected = [slow_gain(own, t, k, metric) for own, t in zip(lists, target, strict=True)]
        np.testing.assert_allclose(gains(rank, k, metric), expected)


@settings(max_examples=40, deadline=None)
@given(rankings, st.integers(1, N_ITEMS))
def test_coverage_gini_and_novelty_equal_their_definitions(ranked: list[list[int]], k: int) -> None:
    sequences = leave_one_out([[0, 0, 0, 1, 2, 3], [0, 1, 4, 5, 6]], N_ITEMS)
    counts = Counter([0, 0, 0, 1, 0, 1, 4])
    figures = beyond_accuracy(np.array(ranked, np.int32), k, sequences)
    shown = [item for own in ranked for item in own[:k]]
    exposure = [shown.count(item) for item in range(N_ITEMS)]
    assert figures["coverage"] == pytest.approx(len(set(shown)) / N_ITEMS)
    # Gini: mean absolute difference of two draws over twice the mean
    apart = np.mean([abs(a - b) for a in exposure for b in exposure])
    assert figures["gini"] == pytest.approx(apart / (2 * np.mean(exposure)))
    total = sum(counts.values()) + N_ITEMS
    bits = [-math.log2((counts[item] + 1) / total) for item in shown]
    assert figures["novelty"] == pytest.approx(np.mean(bits))


def test_buckets_follow_the_training_counts_only() -> None:
    # training: item 0 five times, 1 three times, 2 once, 3 once; 4 and 5 only later
    sequences = leave_one_out([[0, 0, 0, 0, 0, 4, 5], [1, 1, 1, 2, 4, 5], [3, 4, 5]], 6)
    buckets = popularity_buckets(sequences)
    named = {name: np.flatnonzero(mask).tolist() for name, mask in buckets.items()}
    # before an item: 0%, 50%, 80%, 90% of the training interactions
    assert named == {"head": [0], "mid": [1, 2], "tail": [3], "cold": [4, 5], "cold<=3": [1, 2, 3, 4, 5]}
    assert set(buckets) == set(SLICES)


def test_rows_equal_the_slow_twin_whole_and_by_slice() -> None:
    rng = np.random.default_rng(0)
    sequences = leave_one_out([rng.integers(0, N_ITEMS, 6).tolist() for _ in range(40)], N_ITEMS)
    cases = sequences.cases(2)
    lists = np.stack([rng.permutation(N_ITEMS)[:6] for _ in range(len(cases))]).astype(np.int32)
    rows = rows_of(
        lists, cases, sequences, system="s", variant="v", masked=True, ks=(1, 5), bootstrap=Bootstrap(cases.user, 50)
    )
    buckets = popularity_buckets(sequences)
    seen = set()
    for row in rows:
        if row["metric"] not in METRICS:
            continue
        inside = [
            (own.tolist(), int(target))
            for own, target in zip(lists, cases.target, strict=True)
            if row["slice"] == "all" or buckets[row["slice"]][target]
        ]
        assert row["n"] == len(inside)
        assert row["value"] == pytest.approx(np.mean([slow_gain(own, t, row["k"], row["metric"]) for own, t in inside]))
        assert row["low"] <= row["value"] <= row["high"]
        seen.add((row["metric"], row["k"], row["slice"]))
    assert {("recall", 5, "all"), ("ndcg", 1, "all"), ("mrr", 5, "all")} <= seen
    assert {part for _, _, part in seen} >= {"all", "head", "mid"}
    assert list(rows[0])[:9] == ["system", "variant", "metric", "k", "masked", "value", "low", "high", "n"]


def test_the_bootstrap_resamples_people_and_equals_the_slow_twin() -> None:
    rng = np.random.default_rng(1)
    user = np.array([7, 7, 7, 3, 3, 5, 9, 9])
    values = rng.random(8)
    inside = np.array([True, False, True, True, True, True, False, True])
    bootstrap = Bootstrap(user, 200, seed=4)
    people = np.unique(user)
    for chosen in (np.ones(8, bool), inside):
        means = []
        for weights in bootstrap.weight_SU:
            drawn = [np.flatnonzero((user == who) & chosen) for who, times in zip(people, weights, strict=True) for _ in range(int(times))]  # fmt: skip
            drawn_cases = np.concatenate(drawn)
            if len(drawn_cases):
                means.append(values[drawn_cases].mean())
        expected = np.quantile(means, [0.025, 0.975])
        np.testing.assert_allclose(bootstrap.interval(values, chosen), expected, rtol=1e-5)
    assert bootstrap.weight_SU.sum(1).tolist() == [len(people)] * 200


def test_without_samples_or_cases_there_is_no_interval_and_json_stays_valid() -> None:
    sequences = leave_one_out([[0, 1, 2, 3], [1, 2, 3, 4]], 6)
    cases = sequences.cases(2)
    nobody = Cases(cases.user[:0], cases.row[:0], cases.target[:0])
    for chosen, samples in ((cases, 0), (nobody, 20)):
        lists = np.zeros((len(chosen), 3), np.int32)
        rows = rows_of(
            lists, chosen, sequences, system="s", variant="v", masked=False, ks=(3,),
            bootstrap=Bootstrap(chosen.user, samples),
        )  # fmt: skip
        assert all(row["low"] is None and row["high"] is None for row in rows)
        assert all(row["value"] is None or math.isfinite(row["value"]) for row in rows)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 30))
def test_top_items_equal_sorting_everything(seed: int, n_items: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (4, n_items)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.2] = -np.inf
    for own, got in zip(scores, top_items(scores, k), strict=True):
        expected = [i for i in sorted(range(n_items), key=lambda i: (-own[i], i)) if own[i] > -np.inf][:k]
        assert got.tolist() == expected + [-1] * (k - len(expected))


def test_masked_lists_hold_nothing_seen_not_even_a_target_that_comes_back() -> None:
    class Fixed(ScoringSystem):
        def scores(self, sequences: object, cases: Cases, part: slice) -> np.ndarray:
            return np.tile(np.arange(6, 0, -1, dtype=np.float32), (len(cases.row[part]), 1))

    sequences = leave_one_out([[0, 2, 1, 0], [3, 4, 1, 5]], 6)
    cases = sequences.cases(2)
    masked = Fixed().rank(sequences, cases, 6, mask_seen=True)
    # the first person's target is item 0 again: telling it from the other seen items would give it away
    assert masked.tolist() == [[3, 4, 5, -1, -1, -1], [0, 2, 5, -1, -1, -1]]
    assert target_rank(masked, cases.target).tolist() == [MISSING, 2]
    assert target_rank(Fixed().rank(sequences, cases, 6, mask_seen=False), cases.target).tolist() == [0, 5]
