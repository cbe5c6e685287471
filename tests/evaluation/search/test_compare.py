"""Figures by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rankloom.evaluation.metrics import MISSING
from rankloom.evaluation.search.compare import difference, figures, third_of, value

RANK = np.asarray([0, 9, 10, MISSING, 3, 400])
COUNT = np.asarray([0, 3, 4, 9, 9, 50])
USER = np.arange(6)


def test_figures_by_hand() -> None:
    rows = {(row["metric"], row["k"], row["slice"]): row for row in figures(RANK, COUNT, USER, n_samples=50)}
    assert rows["hr", 1, "all"]["value"] == pytest.approx(1 / 6)
    assert rows["hr", 10, "all"]["value"] == pytest.approx(3 / 6)
    assert rows["hr", 350, "all"]["value"] == pytest.approx(4 / 6)
    assert rows["mrr", 10, "all"]["value"] == pytest.approx((1 + 1 / 10 + 1 / 4) / 6)
    assert rows["mrr", 350, "all"]["value"] == pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 4) / 6)
    assert (rows["hr", 10, "cold"]["value"], rows["hr", 10, "cold"]["n"]) == (1.0, 2)
    assert (rows["hr", 10, "warm"]["value"], rows["hr", 10, "warm"]["n"]) == (0.25, 4)
    assert rows["hr", 10, "all"]["low"] <= 0.5 <= rows["hr", 10, "all"]["high"]
    assert value(RANK, "hr", 10, COUNT == 9) == 0.5


def test_equal_counts_stay_together() -> None:
    assert third_of(np.asarray([1, 1, 1, 2, 2, 3])).tolist() == [0, 0, 0, 1, 1, 2]
    assert third_of(np.asarray([5, 5, 5])).tolist() == [0, 0, 0]


def test_differences_are_paired_and_one_sure_run_stands_beside_several() -> None:
    ours, theirs = [np.asarray([0, 0, 50]), np.asarray([0, 50, 50])], [np.asarray([50, 50, 50])]
    middle, low, high = difference(ours, theirs, np.arange(3), "hr", 10)
    assert middle == pytest.approx((1 + 0.5 + 0) / 3)
    assert low <= middle <= high
    same = difference(ours, ours, np.arange(3), "mrr", 10)
    assert same == (0.0, 0.0, 0.0)
