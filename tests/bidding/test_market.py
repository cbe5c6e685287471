"""The auction keeps its rules whatever is bid, and the simulated market looks like the markets it is set against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.bidding.bounds import best_constant, knapsack_oracle
from rankloom.bidding.controllers import Constant
from rankloom.bidding.day import play_day
from rankloom.bidding.market import (
    IPINYOU_QUANTILES,
    Cleared,
    MarketSettings,
    Session,
    SimulatedDay,
    World,
    clear,
    record_days,
    shaded,
    simulate,
)
from rankloom.bidding.protocol import N_TICKS, FloatArray
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.score import concatenate
from rankloom.bidding.traces import load_traces
from rankloom.errors import RankloomError

SMALL = MarketSettings(opportunities=6_000)


@pytest.fixture(scope="module")
def days() -> list[SimulatedDay]:
    return [simulate(SMALL, seed=seed) for seed in range(3)]


def tick(seed: int, m: int = 30, seats: int = 8) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    rng = np.random.default_rng(seed)
    bid = rng.gamma(2.0, 0.05, (m, seats)) * (rng.random((m, seats)) < 0.8)
    visible = np.stack([np.ones(m, bool), rng.random(m) < 0.8, np.zeros(m, bool)], axis=1)
    visible[:, 2] = visible[:, 1] & (rng.random(m) < 0.6)
    return bid.astype(np.float32), rng.gamma(1.0, 0.02, m), rng.random(m) < 0.3, visible  # type: ignore[return-value]


def slow_clear(bid, floor, first_price, visible, remaining):  # type: ignore[no-untyped-def]
    """One auction after the other, as the rules read."""
    m, seats = bid.shape
    left, gone, spend = remaining.copy(), np.zeros(seats, bool), np.zeros(seats)
    shown = np.zeros(visible.shape, bool)
    for row in range(m):
        while True:
            alive = [s for s in range(seats) if not gone[s] and bid[row, s] >= max(floor[row], 1e-12)]
            order = sorted(alive, key=lambda s: -bid[row, s])
            pays = {}
            for slot, seat in enumerate(order[:3]):
                following = float(bid[row, order[slot + 1]]) if slot + 1 < len(order) else 0.0
                price = float(bid[row, seat]) if first_price[row] else max(following, floor[row])
                if visible[row, slot]:
                    pays[seat] = min(price, float(bid[row, seat]))
            broke = [s for s, price in pays.items() if spend[s] + price > remaining[s]]
            if not broke:
                break
            gone[min(broke)] = True
        for seat, price in pays.items():
            spend[seat] += price
            left[seat] -= price
        shown[row, : min(3, len(order))] = visible[row, : min(3, len(order))]
    return spend, gone, shown


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 3))
def test_clearing_equals_the_slow_twin(seed: int, budget: float) -> None:
    bid, floor, first_price, visible = tick(seed)
    remaining = np.random.default_rng(seed).uniform(0, budget, bid.shape[1])
    cleared = clear(bid, floor, first_price, visible, remaining)  # type: ignore[arg-type]
    spend, gone, shown = slow_clear(bid, floor, first_price, visible, remaining)
    assert cleared.spend_A == pytest.approx(spend, abs=1e-9)
    assert np.array_equal(cleared.stopped_A, gone)
    assert np.array_equal(cleared.shown_MS, shown)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_no_price_is_above_the_bid_or_below_the_floor_and_no_budget_is_exceeded(seed: int) -> None:
    bid, floor, first_price, visible = tick(seed)
    remaining = np.full(bid.shape[1], 0.5)
    cleared: Cleared = clear(bid, floor, first_price, visible, remaining)  # type: ignore[arg-type]
    assert (cleared.spend_A <= remaining).all()
    assert (cleared.price_MS <= cleared.top_bid_M5[:, :3] + 1e-12)[cleared.shown_MS].all()
    assert (cleared.price_MS >= floor[:, None] * (1 - 1e-6))[cleared.shown_MS].all()
    assert (cleared.shown_MS[:, 2] <= cleared.shown_MS[:, 1]).all()  # slot 3 shows only what slot 2 showed


def test_first_price_pays_the_own_bid() -> None:
    bid = np.array([[0.5, 0.3, 0.2]], dtype=np.float32)
    visible = np.ones((1, 3), dtype=bool)
    for first, expected in ((True, [0.5, 0.3, 0.2]), (False, [0.3, 0.2, 0.05])):
        cleared = clear(bid, np.array([0.05]), np.array([first]), visible, np.full(3, 9.0))
        assert cleared.price_MS[0] == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 10), st.floats(0.01, 10))
def test_shading_bids_below_value_and_more_for_more(value: float, typical: float) -> None:
    bids = shaded(np.array([[value, value * 1.3]], dtype=np.float32), typical)[0]
    assert 0 < bids[0] < value * (1 + 1e-6)
    assert bids[1] >= bids[0] * (1 - 1e-3)


def test_a_campaign_wins_more_the_higher_it_bids() -> None:
    """One seat's multiplier rises in the live market, its budget out of the way."""
    won = []
    for factor in (0.4, 0.8, 1.2, 2.0, 4.0):
        session = Session(World(SMALL, 5))
        multiplier = session.campaigns.target_cpa_N.copy()
        multiplier[7] *= factor
        session.remaining_A[:] = 1e9
        for _ in range(4):
            session.play(multiplier)
        won.append(session.history().won_NT[7].sum())
    assert won == sorted(won)
    assert won[-1] > won[0]


def test_bidding_the_target_keeps_the_expected_cpa(days: list[SimulatedDay]) -> None:
    """Against the p that the campaign is told; what predictions hide shows in the true value."""
    for day in days:
        history = day.results["constant"].history
        target = day.results["constant"].campaigns.target_cpa_N
        assert (history.spend_NT <= target[:, None] * history.value_NT + 1e-6).all()


def test_no_budget_is_ever_exceeded(days: list[SimulatedDay]) -> None:
    wild = simulate(
        MarketSettings(opportunities=4_000, first_price_share=0.5, change_share=0.5, enter_share=0.3, spikes=2), seed=9
    )
    for day in [*days, wild]:
        for result in day.results.values():
            assert (result.outcome.cost_N <= result.campaigns.budget_N + 1e-6).all()


def test_interventions_change_targets_and_late_campaigns_enter_late() -> None:
    market = MarketSettings(opportunities=2_000, change_share=1 / 3, enter_share=0.3)
    world = World(market, 3)
    assert 5 <= len(world.changes) <= 30
    session = Session(world)
    before = session.campaigns
    while not session.done:
        session.play(session.campaigns.target_cpa_N)
    changed = (session.campaigns.budget_N != before.budget_N) | (session.campaigns.target_cpa_N != before.target_cpa_N)
    assert changed.sum() >= 0.5 * len({seat for _, seat, _, _ in world.changes})
    multipliers = session.history().multiplier_NT
    for seat in np.flatnonzero(world.enters_A):
        assert (multipliers[seat, : world.enters_A[seat]] == 0).all()


def test_conversions_come_late_but_come() -> None:
    session = Session(World(SMALL, 1))
    known = []
    while not session.done:
        session.play(session.campaigns.target_cpa_N)
        if session.tick == 24:
            known.append(session.history().conversions_NT[:, :23].sum())
    final = session.history().conversions_NT
    known.append(final[:, :23].sum())
    assert known[0] < known[1]
    assert final.sum() == pytest.approx(session.judged_A.sum(), rel=0.1)


def test_the_same_seed_is_the_same_day(days: list[SimulatedDay]) -> None:
    again = simulate(SMALL, seed=0)
    assert np.array_equal(again.trace.top_bid_M5, days[0].trace.top_bid_M5)
    assert not np.array_equal(again.trace.top_bid_M5, days[1].trace.top_bid_M5)


# ---- calibration


def test_winning_prices_are_spread_like_ipinyous(days: list[SimulatedDay]) -> None:
    """Within the range of the nine campaigns, a fifth more at either end: quantiles over the mean."""
    relative = np.concatenate([day.winning_prices / day.winning_prices.mean() for day in days])
    for quantile, (low, _, high) in IPINYOU_QUANTILES.items():
        assert 0.8 * low <= float(np.quantile(relative, quantile)) <= 1.2 * high, quantile


def test_the_market_is_as_tight_as_the_recorded_one(days: list[SimulatedDay]) -> None:
    played = concatenate([result.outcome for day in days for result in day.results.values()])
    assert 0.7 <= played.utilisation.mean() <= 0.92
    at_target = concatenate([play_day(ReplayMarket(day.trace), Constant()).outcome for day in days])
    assert at_target.summary()["cpa_ratio"] == pytest.approx(0.85, abs=0.08)
    best = best_constant(lambda: ReplayMarket(days[0].trace), points=11)[1]
    first = play_day(ReplayMarket(days[0].trace), Constant()).outcome
    assert 1.2 <= best.score().mean() / first.score().mean() <= 1.75


def test_the_recording_replays_what_the_seat_did(days: list[SimulatedDay]) -> None:
    """A constant bidder replayed in its own seat spends and wins what it did live, up to the luck of exposure."""
    day = days[0]
    live = day.results["constant"]
    seats = day.seats["constant"]
    replayed = play_day(ReplayMarket(day.trace), Constant())
    assert replayed.outcome.cost_N[seats] == pytest.approx(live.outcome.cost_N, rel=0.25)
    assert replayed.outcome.cost_N[seats].sum() == pytest.approx(live.outcome.cost_N.sum(), rel=0.12)


def test_days_are_logged_as_recordings_and_trajectories(tmp_path: Path) -> None:
    path = record_days(MarketSettings(opportunities=1_000), days=2, seed=4, out=tmp_path, quiet=True)
    assert len(load_traces(tmp_path)) == 2
    import polars as pl

    log = pl.read_parquet(path)
    assert log.height == 2 * 48 * N_TICKS
    assert {"s0", "s15", "action", "reward_continuous", "cost", "remaining_budget", "s12", "s13"} <= set(log.columns)
    with pytest.raises(RankloomError, match="0 days"):
        record_days(SMALL, days=0, seed=0, out=tmp_path)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RankloomError, match="slots is 4"):
        MarketSettings(slots=4)


# ---- bounds


def test_bounds_bound_what_can_be_bid(days: list[SimulatedDay]) -> None:
    trace = days[0].trace
    factor, best = best_constant(lambda: ReplayMarket(trace), points=9)
    for each in (0.8, 1.0, 1.3):
        assert best.score().mean() >= play_day(ReplayMarket(trace), Constant(each)).outcome.score().mean() * 0.97
    assert ((factor >= 0.1) & (factor <= 8)).all()
    oracle = knapsack_oracle(ReplayMarket(trace))
    assert oracle.score().mean() >= best.score().mean()
    assert (oracle.cost_N <= oracle.budget_N + 1e-6).all()
