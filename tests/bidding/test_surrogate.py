"""A day rebuilt from per-tick totals judges bidders as the day itself does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from rankloom.bidding.day import play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.surrogate import highest_bids, read_log, rebuild_day, rebuild_days
from rankloom.bidding.traces import MarketDay, load_traces
from rankloom.errors import RankloomError

SEATS = 12


class Fixed:
    name = "fixed"

    def __init__(self, multiplier_N: FloatArray) -> None:
        self.multiplier_N = multiplier_N

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        return Decision(self.multiplier_N, ("none",) * observation.campaigns.n)


def true_day_and_log() -> tuple[MarketDay, pl.DataFrame]:
    """A day of linear bidders whose spreads nobody tells, and its log of totals."""
    rng = np.random.default_rng(0)
    volume = 400
    tick_M = np.repeat(np.arange(N_TICKS), volume)
    mean_AT = np.repeat(rng.lognormal(np.log(5e-4), 0.4, (SEATS, 6)), 8, axis=1)
    spread_A = rng.uniform(0.2, 0.7, SEATS)
    centre_MA = mean_AT.T[tick_M]
    p_MA = np.maximum(centre_MA * (1 + spread_A * rng.standard_normal(centre_MA.shape)), 0).astype(np.float32)
    multiplier_A = rng.uniform(60, 160, SEATS)
    bid_M5, seat_M5 = highest_bids(p_MA * multiplier_A.astype(np.float32))
    campaigns = Campaigns(
        budget_N=rng.uniform(50, 250, SEATS),
        target_cpa_N=rng.uniform(60, 130, SEATS),
        category_N=np.zeros(SEATS, dtype=np.int64),
        name=tuple(map(str, range(SEATS))),
    )
    day = MarketDay(
        name="true", tick_M=tick_M, p_MA=p_MA, top_bid_M5=bid_M5, top_seat_M5=seat_M5, campaigns=campaigns,
        algorithm=("Const",) * SEATS, sigma_ratio_A=np.full(SEATS, 0.15), sample_fraction=1.0,
        exposure_S=np.array([1, 0.8, 0.48]), reserve=1e-4,
    )  # fmt: skip
    history = play_day(ReplayMarket(day, budget_ratio=1e6), Fixed(multiplier_A)).history
    flat = {name: np.asarray(getattr(history, f"{name}_NT")).reshape(-1) for name in ("spend", "value", "volume")}
    log = pl.DataFrame(
        {
            "period": np.zeros(SEATS * N_TICKS, dtype=np.int64),
            "advertiser": np.repeat(np.arange(SEATS), N_TICKS),
            "category": np.zeros(SEATS * N_TICKS, dtype=np.int64),
            "budget": np.repeat(campaigns.budget_N, N_TICKS),
            "cpa": np.repeat(campaigns.target_cpa_N, N_TICKS),
            "t": np.tile(np.arange(N_TICKS), SEATS),
            "s12": (history.p_sum_NT / history.volume_NT).reshape(-1),
            "s13": flat["volume"],
            "action": np.repeat(multiplier_A, N_TICKS),
            "reward_continuous": flat["value"],
            "cost": flat["spend"],
            "remaining_budget": np.full(SEATS * N_TICKS, 1e9),
            "split": ["train"] * (SEATS * N_TICKS),
        }
    )
    return day, log


def test_the_rebuilt_day_scores_policies_as_the_true_one(tmp_path: Path) -> None:
    day, log = true_day_and_log()
    (built,) = rebuild_days(log, sample_fraction=1.0, out=tmp_path)
    assert built.n_opportunities == day.n_opportunities
    for factor in (0.8, 1.0, 1.3):
        policy = Fixed(day.campaigns.target_cpa_N * factor)
        true, rebuilt = (play_day(ReplayMarket(each), policy).outcome.score() for each in (day, built))
        assert np.corrcoef(true, rebuilt)[0, 1] > 0.95
        assert rebuilt.mean() == pytest.approx(true.mean(), rel=0.08)
    assert len(load_traces(tmp_path)) == 1


def test_matching_moves_the_spreads_towards_what_was_won() -> None:
    day, log = true_day_and_log()
    logged = log["reward_continuous"].to_numpy().reshape(SEATS, N_TICKS).sum(axis=1)
    multiplier_A = log["action"].to_numpy()[::N_TICKS]

    def error(rounds: int) -> float:
        built = rebuild_day(log, 0, sample_fraction=1.0, rounds=rounds)
        found = play_day(ReplayMarket(built, budget_ratio=1e6), Fixed(multiplier_A)).judged_N
        return float(np.abs(np.log((found + 0.05) / (logged + 0.05))).mean())

    assert error(5) < 0.6 * error(0)
    assert day.campaigns.n == SEATS


def test_budgets_are_the_advertisers_median_unless_recorded_ones_are_asked_for() -> None:
    _, log = true_day_and_log()
    half = log.with_columns(period=pl.lit(1, dtype=pl.Int64), budget=pl.col("budget") * 0.5)
    both = pl.concat([log, half])
    base, recorded = (
        rebuild_days(both, periods=[1], budgets=kind, sample_fraction=0.05)[0].campaigns.budget_N  # type: ignore[arg-type]
        for kind in ("base", "recorded")
    )
    assert base == pytest.approx(recorded * 1.5)


def test_a_log_that_cannot_be_rebuilt_is_refused(tmp_path: Path) -> None:
    _, log = true_day_and_log()
    with pytest.raises(RankloomError, match="lacks the column 's12'"):
        read_log(log.drop("s12"))
    with pytest.raises(RankloomError, match="one row for each"):
        read_log(log.filter(pl.col("t") != 3))
    with pytest.raises(RankloomError, match="no rows"):
        read_log(log, split="eval")
    (tmp_path / "log.parquet").write_text("no")
    with pytest.raises(RankloomError, match="no readable Parquet"):
        read_log(tmp_path / "log.parquet")


def test_highest_bids_of_few_seats_are_padded() -> None:
    bid, seat = highest_bids(np.array([[0.0, 2.0, 1.0]], dtype=np.float32))
    assert bid.tolist() == [[2, 1, 0, 0, 0]]
    assert seat.tolist() == [[1, 2, -1, -1, -1]]
