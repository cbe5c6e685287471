"""What feedback is worth: the six levels, the calibrated counts by hand, and the weight of a pair."""

from __future__ import annotations

import numpy as np
import pytest

from rankloom.training.feedback import LEVEL_WEIGHTS, calibrated, levels, rw_delta


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0), 0.5), ((1, 1, 0), 0.4998), ((1000, 100, 10), 0.4275), ((1000, 100, 0), 0.3998), ((1000, 0, 0), 0.3331),
    ],
)  # fmt: skip
def test_calibrated_counts_are_those_of_the_reference(counts: tuple[int, int, int], expected: float) -> None:
    # level 3 has weight 1
    assert calibrated(np.array(3), *(np.array(count) for count in counts)) == pytest.approx(expected, abs=5e-5)


def test_the_level_scales_the_reward() -> None:
    rewards = calibrated(np.arange(1, 7), np.full(6, 50), np.full(6, 5), np.full(6, 1))
    assert rewards / rewards[2] == pytest.approx(LEVEL_WEIGHTS)


def test_six_levels() -> None:
    yes, no = True, False
    table = np.array(
        [  # ordered in search, in the feed, clicked, shown, same category
            (yes, no, yes, yes, yes), (no, yes, no, no, yes), (no, no, yes, yes, no), (no, no, no, yes, yes),
            (no, no, no, no, yes), (no, no, no, no, no), (no, yes, no, no, no),
        ]
    )  # fmt: skip
    names = ("ordered_in_search", "ordered_in_feed", "clicked", "shown", "same_category")
    found = levels(**dict(zip(names, table.T, strict=True)))
    # an order in the feed of another category says nothing about the query
    assert found.tolist() == [1, 2, 3, 4, 5, 6, 6]


def test_an_unseen_item_may_score_above_a_shown_one_and_the_weight_stays_finite() -> None:
    unseen, shown = calibrated(np.array([3, 3]), np.array([0, 1000]), np.array([0, 0]), np.array([0, 0]))
    assert unseen > shown
    assert rw_delta(np.array(shown), np.array(unseen), least=0.05) == pytest.approx(20)
    assert rw_delta(np.array(0.9), np.array(0.4)) == pytest.approx(2)
