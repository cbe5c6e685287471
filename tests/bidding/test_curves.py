"""Response curves never fall, and a day that has begun tells as much about its rest as past days say."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.bidding.curves import MarketPrior, PathPrior, ResponseShape
from rankloom.bidding.protocol import N_TICKS, FloatArray
from rankloom.errors import RankloomError


def noisy_points(seed: int, n: int = 3000) -> tuple[FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    log_x = rng.uniform(-2, 2, n)
    share = 1 / (1 + np.exp(-3 * log_x))
    return log_x, share * rng.gamma(4, 0.25, n), share * np.exp(log_x) * 0.8 * rng.gamma(4, 0.25, n)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 20))
def test_curves_are_monotone_and_no_price_is_above_the_bid(seed: int) -> None:
    log_x, value, cost = noisy_points(seed, 400)
    shape = ResponseShape.fit(log_x, value, cost, np.ones_like(log_x))
    at = np.linspace(-6, 5, 300)
    found_value, found_cost = shape(at)
    assert (np.diff(found_value) >= -1e-12).all()
    assert (np.diff(found_cost) >= -1e-12).all()
    grid = shape.low + shape.step * np.arange(shape.value_G.size)
    assert (shape.cost_G[1:] <= np.maximum.accumulate(shape.value_G * np.exp(grid))[1:] + 1e-9).all()
    assert found_value[0] == found_cost[0] == 0


def test_curves_recover_what_made_the_log() -> None:
    log_x, value, cost = noisy_points(1, 30_000)
    shape = ResponseShape.fit(log_x, value, cost, np.ones_like(log_x))
    at = np.linspace(-1.5, 1.5, 13)
    assert shape(at)[0] == pytest.approx(1 / (1 + np.exp(-3 * at)), rel=0.15, abs=0.02)


def test_paths_learn_blocks_from_the_log_alone() -> None:
    """p is redrawn every 8 ticks: the first tick of a block tells the block, and nothing about the next."""
    rng = np.random.default_rng(0)
    blocks = np.repeat(rng.lognormal(-7.5, 0.5, (800, 6)), 8, axis=1)
    prior = PathPrior.fit(blocks)
    today = np.full((1, 17), np.exp(-7.5))
    today[:, 16] *= 2  # the third block starts high
    ahead = prior.condition(today)[0]
    assert ahead[:7] == pytest.approx(np.log(2) - 7.5, abs=0.1)
    assert ahead[7:] == pytest.approx(-7.5, abs=0.12)


def test_scenarios_have_the_conditional_spread() -> None:
    rng = np.random.default_rng(0)
    blocks = np.repeat(rng.lognormal(0, 0.5, (800, 6)), 8, axis=1)
    prior = PathPrior.fit(blocks)
    draws = prior.residuals(17, rng.standard_normal((4000, N_TICKS)))
    assert draws[:, :7].std(axis=0).max() < 0.12
    assert draws[:, 10:].std(axis=0) == pytest.approx(np.full(21, 0.5), rel=0.12)


def test_a_market_of_another_scale_shifts_the_path() -> None:
    rng = np.random.default_rng(0)
    prior = PathPrior.fit(np.repeat(rng.lognormal(-7.5, 0.3, (300, 6)), 8, axis=1))
    ahead = prior.condition(np.full((1, 4), 10 * np.exp(-7.5)))
    assert ahead == pytest.approx(np.full((1, 44), np.log(10) - 7.5), abs=0.3)


@pytest.mark.parametrize("known", [3, 4])
def test_a_path_is_shifted_by_its_median_where_its_median_tick_is_far_away(known: int) -> None:
    """Campaign by campaign, also where half of an even number of ticks is far: there the mean of the two in the middle decides."""
    prior = MarketPrior.default().price
    deviation_T = np.sqrt(np.diag(prior.covariance_TT))[:known]
    away = np.array([[0.0, 9.0, 0.1, 9.0], [9.0, 9.0, 0.0, 3.0], [9.0, 9.0, 9.0, -9.0], [3.6, 3.8, 3.9, 0.0], [3.9, 3.0, 3.6, 9.0]])[:, :known]
    path_NT = np.exp(prior.mean_T[:known] + away * deviation_T)
    expected = []
    for row in away:
        shift = np.median(row * deviation_T) if np.median(np.abs(row)) > 3.7 else 0.0
        rest = np.clip(row * deviation_T - shift, -5 * deviation_T, 5 * deviation_T)
        expected.append(prior.mean_T[known:] + shift + prior.gain(known) @ rest)
    np.testing.assert_allclose(prior.condition(path_NT), expected, rtol=1e-9)


def test_unknown_prices_leave_the_path_as_it_was() -> None:
    prior = MarketPrior.default().price
    assert prior.condition(np.zeros((2, 5))) == pytest.approx(np.tile(prior.mean_T[5:], (2, 1)))


def test_a_prior_is_fitted_from_a_log_and_survives_its_arrays() -> None:
    rng = np.random.default_rng(3)
    true = MarketPrior.default()
    days, rows = 40, 40 * N_TICKS
    m, volume = rng.lognormal(-7.6, 0.4, (days, N_TICKS)), np.full((days, N_TICKS), 1e4)
    price, action = np.full((days, N_TICKS), 0.1), rng.uniform(50, 300, (days, N_TICKS))
    value, cost = true.curves(np.log(action * m / price))
    log = pl.DataFrame(
        {
            "period": np.repeat(np.arange(days), N_TICKS),
            "advertiser": np.zeros(rows, dtype=np.int64),
            "category": np.zeros(rows, dtype=np.int64),
            "budget": np.full(rows, 1e9),
            "cpa": np.full(rows, 100.0),
            "t": np.tile(np.arange(N_TICKS), days),
            "s4": np.where(np.tile(np.arange(N_TICKS), days) > 0, 0.1, 0.0),
            "s12": m.reshape(-1),
            "s13": volume.reshape(-1),
            "action": action.reshape(-1),
            "reward_continuous": (value * m * volume).reshape(-1),
            "cost": (cost * price * volume).reshape(-1),
            "remaining_budget": np.full(rows, 1e9),
        }
    )
    prior = MarketPrior.from_arrays(MarketPrior.fit(log).arrays())
    at = np.linspace(-1.0, 1.0, 9)
    assert prior.curves(at)[0] == pytest.approx(true.curves(at)[0], rel=0.1, abs=0.02)
    assert np.exp(prior.volume.mean_T) == pytest.approx(np.full(N_TICKS, 1e4), rel=1e-3)
    with pytest.raises(RankloomError, match="have bids"):
        MarketPrior.fit(log.with_columns(action=pl.lit(0.0)))
