"""Score: conversions, marked down by (C / CPA)^gamma where the limit is broken."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankloom.bidding.score import Outcome, concatenate, cpa_ratio, paired_bootstrap, score

amounts = st.floats(0, 1e6)


@pytest.mark.parametrize(
    ("value", "cost", "target", "gamma", "expected"),
    [
        (10, 900, 100, 2, 10.0),  # CPA 90 keeps the limit
        (10, 2000, 100, 2, 2.5),  # CPA 200 = twice the limit: a quarter
        (10, 2000, 100, 0, 10.0),
        (10, 2000, 100, 5, 10 / 32),
        (0, 500, 100, 2, 0.0),  # money gone, nothing sold: no division by a tiny epsilon
        (0, 0, 100, 2, 0.0),
        (10, 1e9, np.inf, 2, 10.0),
    ],
)
def test_score_of_known_days(value: float, cost: float, target: float, gamma: float, expected: float) -> None:
    assert score(value, cost, target, gamma) == pytest.approx(expected)


@given(amounts, amounts, st.floats(1, 1000), st.sampled_from([0.0, 1.0, 2.0, 5.0]))
def test_score_is_never_above_the_conversions_and_falls_with_cost(
    value: float, cost: float, target: float, gamma: float
) -> None:
    found = float(score(value, cost, target, gamma))
    assert 0 <= found <= value
    assert float(score(value, cost * 1.5, target, gamma)) <= found + 1e-9


def test_cpa_ratio_of_an_empty_and_of_a_wasted_day() -> None:
    assert cpa_ratio([0, 0, 5], [0, 10, 250], 100).tolist() == [0.0, np.inf, 0.5]


def test_summary_and_concatenation() -> None:
    day = Outcome(
        np.array([10.0, 4.0]), np.array([1000.0, 800.0]), np.array([1000.0, 1600.0]), np.array([100.0, 100.0])
    )
    summary = concatenate([day, day]).summary()
    assert summary["score"] == pytest.approx((10 + 4 * 0.25) / 2)
    assert summary["score_gamma0"] == summary["value"] == pytest.approx(7)
    assert summary["utilisation"] == pytest.approx(0.75)
    assert summary["over_cpa"] == pytest.approx(0.5)
    assert summary["cpa_ratio"] == pytest.approx(1800 / 1400)


def test_paired_bootstrap_sees_through_variance_that_pairs_share() -> None:
    rng = np.random.default_rng(0)
    seat = rng.normal(25, 10, 96)
    better = seat + 0.5 + rng.normal(0, 0.5, 96)
    mean, low, high = paired_bootstrap(better, seat)
    assert 0 < low < mean < high < 1
    assert paired_bootstrap(seat, seat) == (0.0, 0.0, 0.0)
