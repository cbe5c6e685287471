"""A relevance is a chance: it comes back from takes that were drawn by it, keeps a list's order, and is nothing without a word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankloom.calibrating import Judged
from rankloom.decoding.relevance import Relevance, calibration_error


def drawn(truth: Relevance, *, seed: int, searches: int = 3_000) -> Judged:
    """Lists whose taken item was drawn by a known calibration of their scores; in some it is not among them."""
    rng = torch.Generator().manual_seed(seed)
    score = torch.log_softmax(2 * torch.randn(searches, 20, generator=rng), dim=1)
    coverage = torch.rand(searches, 1, generator=rng).clamp_min(0.5).expand(-1, 20)
    chance = truth(score, score, coverage)
    rest = (1 - chance.sum(1, keepdim=True)).clamp_min(0)
    choice = torch.multinomial(torch.cat([chance, rest], dim=1), 1, generator=rng)
    return Judged(score, torch.arange(20) == choice, coverage)


@pytest.mark.parametrize("sharpness", [0.5, 1.7])
def test_scores_that_are_too_sure_or_too_shy_become_chances(sharpness: float) -> None:
    truth = Relevance(sharpness, 0.8, 0.5)
    fitted = drawn(truth, seed=1).fit()
    assert fitted.sharpness == pytest.approx(sharpness, rel=0.08)
    assert fitted.found == pytest.approx(0.8, abs=0.03)
    assert fitted.usual == pytest.approx(0.5, abs=0.02)
    later = drawn(truth, seed=2)
    assert later.error(fitted) < 0.008
    assert later.error(None) > 2 * later.error(fitted)


def test_the_error_is_the_distance_of_chance_and_frequency() -> None:
    # two bins of one chance each: .2 with half of it taken, .8 with nothing
    assert calibration_error(
        np.array([0.2, 0.2, 0.8, 0.8]), np.array([True, False, False, False]), bins=2
    ) == pytest.approx(0.55)
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0, dtype=np.bool_)))


@given(st.lists(st.floats(-30, 30), min_size=2, max_size=30), st.floats(0.2, 5), st.floats(0, 1), st.floats(0, 1))
def test_chances_fall_along_the_list_and_sum_to_no_more_than_one(
    scores: list[float], sharpness: float, found: float, coverage: float
) -> None:
    score = torch.tensor([sorted(scores, reverse=True)])
    chance = Relevance(sharpness, found, 0.5)(score, score, torch.full_like(score, coverage))
    assert bool((chance[0, :-1] >= chance[0, 1:]).all())
    assert float(chance.min()) >= 0
    assert float(chance.sum()) <= found + 1e-4


def test_few_searches_bend_the_chances_little() -> None:
    score = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    own = Relevance.fit(score, torch.tensor([[True, False, False]]), torch.ones(1))
    assert 0.8 < own.sharpness < 1.4
    nothing = Relevance.fit(score, torch.zeros(1, 3, dtype=torch.bool), torch.ones(1))
    assert (nothing.sharpness, nothing.found) == (1.0, 0.25)


def test_a_query_that_is_understood_less_than_usual_counts_less() -> None:
    score = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.5, 0.5, 0.0], [0.5, 0.3, 0.2]]))
    coverage = torch.tensor([[0.25, 0.1, 0.0], [0.0, 0.0, 1.0], [0.9, 0.0, 0.0]])
    chance = Relevance(1.0, 1.0, 0.5)(score[:, :2], score, coverage)
    # the padding of the second list has all words, and is not there
    assert chance.tolist() == [pytest.approx([0.25, 0.15]), [0.0, 0.0], pytest.approx([0.5, 0.3])]
    none = torch.full((1, 2), float("-inf"))
    assert Relevance(1.0, 1.0, 0.5)(none, none, torch.ones(1, 2)).tolist() == [[0.0, 0.0]]
