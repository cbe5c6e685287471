"""What could have been reached, known afterwards: the best constant multiplier, and the best choice of slots.

`best_constant` is the best that bidding alpha * p with one alpha a day could do. `knapsack_oracle` knows every opportunity's p
and prices and picks, in each, the slot (or none) with the best surplus p - price / alpha; alpha carries budget and CPA
limit together, as the duals of the multiple-choice knapsack do (USCB's duality; OIL's oracle, arXiv 2412.11434). Its
one freedom over the constant is that it may take a lower slot than its bid would win. No live bidder can use either.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rankloom.bidding.controllers.constant import Constant, anchor
from rankloom.bidding.day import TickMarket, play_day
from rankloom.bidding.protocol import N_TICKS, FloatArray
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.score import DEFAULT_GAMMA, Outcome, score


def best_constant(
    market: Callable[[], TickMarket],
    *,
    gamma: float = DEFAULT_GAMMA,
    low: float = 0.2,
    high: float = 4.0,
    points: int = 25,
) -> tuple[FloatArray, Outcome]:
    """The best constant of each campaign, in hindsight.

    Args:
        market: makes the day to be played, once a try.
        low, high, points: grid of multiples of the CPA target; the neighbourhood of each best point is searched again.

    Returns:
        (N,) the multiples, and what they reach.
    """
    grid = np.geomspace(low, high, points)
    step = np.log(grid[1] / grid[0])
    best_factor_N: FloatArray = np.zeros(0)
    best_score_N: FloatArray = np.zeros(0)
    kept: Outcome | None = None

    def consider(factor_N: FloatArray) -> None:
        nonlocal best_factor_N, best_score_N, kept
        found = play_day(market(), Constant(factor_N), forecasts=False).outcome
        score_N = found.score(gamma)
        if kept is None:
            best_factor_N, best_score_N, kept = factor_N.copy(), score_N, found
            return
        better_N = score_N > best_score_N
        best_factor_N = np.where(better_N, factor_N, best_factor_N)
        best_score_N = np.where(better_N, score_N, best_score_N)
        kept = Outcome(
            value_N=np.where(better_N, found.value_N, kept.value_N),
            cost_N=np.where(better_N, found.cost_N, kept.cost_N),
            budget_N=kept.budget_N,
            target_cpa_N=kept.target_cpa_N,
        )

    n = market().campaigns.n
    for factor in grid:
        consider(np.full(n, factor))
    for reach in (0.5, 0.25, 0.125):
        centre_N = best_factor_N
        for side in (-1.0, 1.0):
            consider(centre_N * np.exp(side * reach * step))
    assert kept is not None
    return best_factor_N, kept


def knapsack_oracle(
    market: ReplayMarket, *, gamma: float = DEFAULT_GAMMA, low: float = 0.2, high: float = 4.0, points: int = 28
) -> Outcome:
    """The best choice of slots over the day, in hindsight; the last opportunity may be bought in part."""
    target_N = anchor(market.campaigns)
    grid_A = np.geomspace(low, high, points)
    value_AN, cost_AN = (np.zeros((points, market.campaigns.n)) for _ in range(2))
    bounds = market.day.bounds
    for tick in range(N_TICKS):
        p_MN = market.day.p_MA[bounds[tick] : bounds[tick + 1]]
        price_SMN = np.maximum(market.rivals(tick)[:-1], np.float32(market.day.reserve))
        weight = market.weight(tick)
        for place, factor in enumerate(grid_A):
            most_MN = np.zeros_like(p_MN)
            value_MN, cost_MN = np.zeros_like(p_MN), np.zeros_like(p_MN)
            inverse_N = (1.0 / (target_N * factor)).astype(np.float32)
            for slot, shown in enumerate(market.day.exposure_S.astype(np.float32)):
                surplus_MN = shown * (p_MN - price_SMN[slot] * inverse_N)
                better_MN = surplus_MN > most_MN
                np.copyto(most_MN, surplus_MN, where=better_MN)
                np.copyto(value_MN, shown * p_MN, where=better_MN)
                np.copyto(cost_MN, shown * price_SMN[slot], where=better_MN)
            value_AN[place] += value_MN.sum(axis=0, dtype=np.float64) * weight
            cost_AN[place] += cost_MN.sum(axis=0, dtype=np.float64) * weight
    # between two multipliers a part of the opportunities that differ is taken; all of it counts as reachable
    part_F1 = np.linspace(0, 1, 21)[:, None, None]
    value_FN = (value_AN[:-1] + part_F1 * np.diff(value_AN, axis=0)).reshape(-1, market.campaigns.n)
    cost_FN = (cost_AN[:-1] + part_F1 * np.diff(cost_AN, axis=0)).reshape(-1, market.campaigns.n)
    reach_FN = np.minimum(1.0, market.campaigns.budget_N / np.maximum(cost_FN, 1e-12))
    value_FN, cost_FN = value_FN * reach_FN, cost_FN * reach_FN
    best_N = score(value_FN, cost_FN, market.campaigns.target_cpa_N, gamma).argmax(axis=0)
    columns = np.arange(market.campaigns.n)
    return Outcome(
        value_N=value_FN[best_N, columns],
        cost_N=cost_FN[best_N, columns],
        budget_N=market.campaigns.budget_N,
        target_cpa_N=market.campaigns.target_cpa_N,
    )
