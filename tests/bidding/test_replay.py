"""A replayed seat equals the obvious loop over auctions, and keeps the rules of the auction and of the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankloom.bidding.day import play_day
from rankloom.bidding.protocol import N_TICKS, Campaigns, Decision, FloatArray, Observation
from rankloom.bidding.replay import ReplayMarket
from rankloom.bidding.traces import MarketDay, load_trace, load_traces, save_trace
from rankloom.errors import RankloomError

SEATS = 7


def small_day(seed: int = 0, per_tick: int = 6, fraction: float = 0.5) -> MarketDay:
    """A day of 48 ticks in which seven seats bid multiplier * p, recorded."""
    rng = np.random.default_rng(seed)
    rows = N_TICKS * per_tick
    p_MA = np.maximum(rng.normal(0.002, 0.001, (rows, SEATS)), 0).astype(np.float16).astype(np.float32)
    bid_MA = p_MA * rng.uniform(40, 160, SEATS).astype(np.float32)
    top = np.argsort(-bid_MA, axis=1, kind="stable")[:, :5]
    return MarketDay(
        name=f"small_{seed}",
        tick_M=np.repeat(np.arange(N_TICKS), per_tick),
        p_MA=p_MA,
        top_bid_M5=np.take_along_axis(bid_MA, top, axis=1),
        top_seat_M5=top.astype(np.int16),
        campaigns=Campaigns(
            budget_N=rng.uniform(2, 12, SEATS),
            target_cpa_N=rng.uniform(60, 130, SEATS),
            category_N=np.zeros(SEATS, dtype=np.int64),
            name=tuple(f"seat {seat}" for seat in range(SEATS)),
        ),
        algorithm=("Const",) * SEATS,
        sigma_ratio_A=np.full(SEATS, 0.15),
        sample_fraction=fraction,
        exposure_S=np.array([1, 0.8, 0.48]),
        reserve=1e-4,
    )


class Constant:
    """multiplier = factor * target CPA."""

    name = "constant"

    def __init__(self, factor: float | FloatArray) -> None:
        self.factor = factor

    def start(self, campaigns: Campaigns, seed: int) -> None: ...

    def decide(self, observation: Observation) -> Decision:
        campaigns = observation.campaigns
        return Decision(campaigns.target_cpa_N * self.factor, ("none",) * campaigns.n)


def slow_seat(day: MarketDay, seat: int, multiplier: float, budget: float) -> dict[str, float]:
    """One seat, one auction at a time, as the rules read."""
    weight = 1 / day.sample_fraction
    left, spend, value, won, stopped = budget, 0.0, 0.0, 0.0, False
    for row in range(day.n_opportunities):
        if stopped or left < 0.1:
            break
        rivals = [
            float(bid) for bid, owner in zip(day.top_bid_M5[row], day.top_seat_M5[row], strict=True) if owner != seat
        ]
        p = float(day.p_MA[row, seat])
        bid = multiplier * p
        if bid < day.reserve:
            continue
        slot = sum(rival >= bid for rival in rivals[:3])
        if slot == 3:
            continue
        price = max(rivals[slot], day.reserve)
        assert price <= bid
        cost = float(day.exposure_S[slot]) * price * weight
        if spend_of_tick_exceeds(left, cost):
            stopped = True
            continue
        left -= cost
        spend += cost
        value += float(day.exposure_S[slot]) * p * weight
        won += weight
    return {"spend": spend, "value": value, "won": won}


def spend_of_tick_exceeds(left: float, cost: float) -> bool:
    return cost > left + 1e-12


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_replay_equals_the_slow_twin_in_every_seat(factor: float) -> None:
    day = small_day(3)
    result = play_day(ReplayMarket(day), Constant(factor))
    for seat in range(SEATS):
        multiplier = float(day.campaigns.target_cpa_N[seat] * factor)
        slow = slow_seat(day, seat, multiplier, float(day.campaigns.budget_N[seat]))
        assert result.history.spend_NT[seat].sum() == pytest.approx(slow["spend"], rel=1e-9)
        assert result.judged_N[seat] == pytest.approx(slow["value"], rel=1e-9)
        assert result.history.won_NT[seat].sum() == pytest.approx(slow["won"], rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.floats(0, 50), st.floats(0.05, 2))
def test_the_budget_is_never_exceeded_and_expected_cpa_holds_at_alpha_c(
    seed: int, factor: float, budget_ratio: float
) -> None:
    day = small_day(seed)
    for outcomes in ("expected", "sampled"):
        market = ReplayMarket(day, budget_ratio=budget_ratio, outcomes=outcomes)  # type: ignore[arg-type]
        result = play_day(market, Constant(factor))
        assert (result.outcome.cost_N <= market.campaigns.budget_N + 1e-9).all()
        if factor <= 1:
            # every price is at most C * p, so every sum of prices is at most C times the sum of p
            assert (
                result.history.spend_NT <= market.campaigns.target_cpa_N[:, None] * result.history.value_NT + 1e-9
            ).all()


def test_what_is_won_grows_with_the_multiplier() -> None:
    market = ReplayMarket(small_day(1), budget_ratio=1e6)
    won = np.array([play_day(market, Constant(f)).history.won_NT.sum(axis=1) for f in np.linspace(0.2, 4, 9)])
    assert (np.diff(won, axis=0) >= 0).all()
    assert won[-1].sum() > won[0].sum()


def test_the_record_adds_up() -> None:
    day = small_day(2)
    history = play_day(ReplayMarket(day, budget_ratio=1e6), Constant(1.0)).history
    assert history.volume_NT.sum(axis=1) == pytest.approx(day.n_opportunities / day.sample_fraction)
    assert history.p_sum_NT.sum(axis=1) == pytest.approx(day.p_MA.sum(axis=0, dtype=np.float64) / day.sample_fraction)
    ratio = history.bid_sum_NT.sum(axis=1) / history.p_sum_NT.sum(axis=1)
    assert ratio == pytest.approx(day.campaigns.target_cpa_N)
    assert (history.exposed_NT <= history.won_NT + 1e-9).all()


def test_a_seat_that_bids_what_it_bid_sees_the_recorded_fourth_bid() -> None:
    day = small_day(4)
    own = np.zeros((SEATS,))
    for seat in range(SEATS):
        rows, ranks = np.nonzero(day.top_seat_M5 == seat)
        own[seat] = np.median(day.top_bid_M5[rows, ranks] / np.maximum(day.p_MA[rows, seat], 1e-9))
    history = play_day(ReplayMarket(day, budget_ratio=1e6), Constant(own / day.campaigns.target_cpa_N)).history
    fourth = day.top_bid_M5[:, 3].reshape(N_TICKS, -1).mean(axis=1)
    assert history.least_winning_cost_NT == pytest.approx(np.broadcast_to(fourth, (SEATS, N_TICKS)), rel=1e-4)


def test_prediction_bias_fools_the_controller_but_not_the_score() -> None:
    day = small_day(5)
    biased = play_day(ReplayMarket(day, p_bias=1.25, budget_ratio=1e6), Constant(0.8))
    plain = play_day(ReplayMarket(day, budget_ratio=1e6), Constant(1.0))
    assert biased.judged_N == pytest.approx(plain.judged_N)
    assert biased.history.value_NT.sum() == pytest.approx(1.25 * plain.history.value_NT.sum())


def test_sampled_outcomes_agree_with_expected_ones_on_average() -> None:
    day = small_day(6, per_tick=200, fraction=1.0)
    expected = play_day(ReplayMarket(day, budget_ratio=1e6), Constant(1.0))
    sampled = play_day(ReplayMarket(day, budget_ratio=1e6, outcomes="sampled"), Constant(1.0))
    assert sampled.outcome.cost_N.sum() == pytest.approx(expected.outcome.cost_N.sum(), rel=0.05)
    assert sampled.judged_N.sum() == pytest.approx(expected.judged_N.sum(), rel=0.35)
    again = play_day(ReplayMarket(day, budget_ratio=1e6, outcomes="sampled"), Constant(1.0))
    assert np.array_equal(again.judged_N, sampled.judged_N)


def test_a_multiplier_that_is_no_number_is_refused() -> None:
    with pytest.raises(RankloomError, match="finite"):
        play_day(ReplayMarket(small_day()), Constant(np.nan))


def test_traces_survive_the_disk(tmp_path: Path) -> None:
    day = small_day()
    save_trace(day, tmp_path)
    (again,) = load_traces(tmp_path)
    assert again.name == day.name
    assert np.allclose(again.p_MA, day.p_MA, rtol=1e-3)
    assert np.array_equal(again.top_seat_M5, day.top_seat_M5)
    assert again.exposure_S == pytest.approx(day.exposure_S)


def test_broken_traces_are_refused_whole(tmp_path: Path) -> None:
    with pytest.raises(RankloomError, match="no recorded market day"):
        load_traces(tmp_path)
    path = save_trace(small_day(), tmp_path)
    with np.load(path) as archive:
        arrays = {key: archive[key] for key in archive.files}
    for key, value, message in (
        ("top5_bid", arrays["top5_bid"][:, ::-1], "descending"),
        ("t", arrays["t"] + 90, "ticks"),
        ("budget", -arrays["budget"], "positive"),
        ("top5_id", arrays["top5_id"] + 90, "outside"),
    ):
        np.savez(path, **(arrays | {key: value}))
        with pytest.raises(RankloomError, match=message):
            load_trace(path)
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(RankloomError, match="recorded market day"):
        load_trace(path)
