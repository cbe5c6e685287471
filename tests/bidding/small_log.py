"""A small joint market: every seat bids multiplier * p on opportunities whose p is normal inside a tick, and what each seat got is logged."""

from __future__ import annotations

import numpy as np

from rankloom.bidding.day import play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.surrogate import highest_bids
from rankloom.bidding.traces import MarketDay
from rankloom.bidding.trajectories import Trajectories, concatenate, from_result


class Fixed:
    """Bids these multipliers (N, T), whatever happens."""

    name = "fixed"

    def __init__(self, multiplier_NT: FloatArray) -> None:
        self.multiplier_NT = multiplier_NT

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.multiplier_NT[:, observation.tick], ("none",) * observation.campaigns.n)


def small_day(seed: int, *, seats: int = 10, per_tick: int = 40) -> tuple[MarketDay, FloatArray]:
    """One opportunity-level day and the multipliers (A, T) at which its bids were made."""
    rng = np.random.default_rng(seed)
    target_A = 60.0 + 10.0 * (np.arange(seats) % 8)
    # few seats compete here, so a conversion is cheap: short budgets make money matter
    budget_A = rng.uniform(6.0, 16.0, seats) * target_A
    level_AT = 2e-3 * rng.uniform(0.4, 1.6, (seats, 6)).repeat(8, axis=1)
    multiplier_AT = target_A[:, None] * np.exp(
        0.35 * rng.standard_normal((seats, 1)) + np.cumsum(0.05 * rng.standard_normal((seats, N_TICKS)), axis=1)
    )
    tick_M = np.repeat(np.arange(N_TICKS), per_tick)
    normal_MA = rng.standard_normal((len(tick_M), seats))
    p_MA = np.maximum(level_AT.T[tick_M] * (1 + 0.5 * normal_MA), 1e-6).astype(np.float32)
    top_bid, top_seat = highest_bids((p_MA * multiplier_AT.T[tick_M]).astype(np.float32))
    day = MarketDay(
        name=f"small_{seed}",
        tick_M=tick_M,
        p_MA=p_MA,
        top_bid_M5=top_bid,
        top_seat_M5=top_seat,
        campaigns=Campaigns(
            budget_N=budget_A,
            target_cpa_N=target_A,
            category_N=np.arange(seats) % 3,
            name=tuple(f"seat {i}" for i in range(seats)),
        ),
        algorithm=("fixed",) * seats,
        sigma_ratio_A=np.full(seats, 0.15),
        sample_fraction=0.05,
        exposure_S=np.array([1.0, 0.8, 0.48]),
        reserve=1e-4,
    )
    return day, multiplier_AT


def small_log(periods: int = 6, *, seats: int = 10, per_tick: int = 40) -> Trajectories:
    """Logged days of every seat, budgets wide enough to last the day."""
    parts = []
    for period in range(periods):
        day, multiplier_AT = small_day(period, seats=seats, per_tick=per_tick)
        result = play_day(ReplayMarket(day, budget_ratio=50.0), Fixed(multiplier_AT))
        parts.append(from_result(result, period=period))
    return concatenate(parts)
